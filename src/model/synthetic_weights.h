// Random weights of any model, at the speed of memory: for measuring shapes whose weights are not
// at hand. Values are scaled so that activations keep a size of about one, and so stay finite.
//
// What is made follows from what binding asks for (model/weights.h), so names, shapes and dtypes
// are those of a real checkpoint by construction. A value depends on the seed, the tensor's name
// and its place only, not on threads.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/thread_pool.h"
#include "checkpoint/writer.h"
#include "model/weight_shapes.h"

namespace nibble {

// Fills a tensor of a checkpoint: F32, F16 or BF16 by the part `name` plays ("...A_log",
// "...norm.weight", any matrix: normal with variance 1 / columns), I32 with random bits. Of norms,
// `spec.norm_weight_offset` says what is neutral.
void fill_random(std::string_view name, const ModelSpec& spec, uint64_t seed, const Tensor& out,
                 ThreadPool& pool);

// Bytes of the checkpoint that write_synthetic_checkpoint() writes.
Result<size_t> synthetic_bytes(const Json& config);

// Writes every tensor of the model that config.json describes; config.json itself as well, other
// side files and finish() are the caller's.
Status write_synthetic_checkpoint(const Json& config, uint64_t seed, ThreadPool& pool,
                                  CheckpointWriter& writer);

// The same weights without files, to load a model from. Must outlive a model on a device that
// computes in host memory. `shared` saves memory where a device copies what it is given: tensors
// of a kind are then views of the same bytes.
class SyntheticWeights final : public WeightSource {
 public:
  static Result<SyntheticWeights> make(const ModelSpec& spec,
                                       const std::optional<QuantizationConfig>& quantization,
                                       uint64_t seed, bool shared, ThreadPool& pool);
  SyntheticWeights(SyntheticWeights&&) noexcept;
  ~SyntheticWeights() override;

  bool has(std::string_view name) const override;
  Result<Tensor> tensor(std::string_view name, const Shape& expected) const override;
  Result<LinearWeight> linear(std::string_view name, int64_t out_features,
                              int64_t in_features) const override;

 private:
  struct State;
  explicit SyntheticWeights(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace nibble
