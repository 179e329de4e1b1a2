// One decoder layer at a time over the calibration samples: activations in, activations out, and
// what the quantizer wants to know recorded on the way. Only one layer's weights are in use.
#pragma once

#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/model_dir.h"
#include "device/device.h"
#include "model/decoder.h"
#include "model/model.h"

namespace nibble {

// The inputs of every Linear of one layer, summed over all tokens.
struct InputMoments {
  std::vector<double> sum_abs;      // [in_features]
  std::vector<double> sum_squares;  // [in_features]
  std::vector<float> gram;          // [in_features, in_features] sum of x'x; empty unless asked for
  int64_t num_tokens = 0;
};

// A float tensor that owns its bytes.
class OwnedTensor {
 public:
  OwnedTensor() = default;
  OwnedTensor(DType dtype, Shape shape)
      : bytes_(static_cast<size_t>(shape.num_elements()) * dtype_size(dtype)),
        dtype_(dtype),
        shape_(shape) {}
  static OwnedTensor copy_of(const Tensor& from);
  // Its pages live in an unnamed file in `folder`, which the kernel writes back under pressure.
  static Result<OwnedTensor> on_disk(const fs::path& folder, DType dtype, Shape shape);
  Tensor view() { return {mapped_ ? mapped_.get() : bytes_.data(), dtype_, shape_}; }
  bool empty() const { return bytes_.empty() && mapped_ == nullptr; }

 private:
  std::vector<std::byte> bytes_;
  std::shared_ptr<std::byte> mapped_;
  DType dtype_ = DType::kF32;
  Shape shape_;
};

// The weights of one layer by module name; each can be pointed at other values.
class WorkingLayer {
 public:
  static Result<WorkingLayer> load(const ModelDir& dir, const ModelSpec& spec, int layer,
                                   Device& device, Arena& arena);
  const LayerWeights& weights() const { return weights_; }
  // `module` as in linear_modules(), or the router of a mixture ("...mlp.gate"); null when the
  // layer has no such Linear or norm.
  LinearWeight* linear(const std::string& module);
  Tensor* norm(const std::string& module);

 private:
  LayerWeights weights_;
  std::string prefix_;
};

// Where activations go when all that are alive together exceed `memory_limit` bytes.
struct Spill {
  fs::path folder;
  size_t memory_limit = size_t{8} << 30;
};

class LayerPass {
 public:
  // Embeds the samples. kOutOfMemory when their caches do not fit.
  static Result<LayerPass> start(const ModelDir& dir, const ModelSpec& spec, Device& device,
                                 const std::vector<std::vector<int32_t>>& samples,
                                 const Spill& spill);

  // The residual stream before the current layer, sample after sample [num_tokens, hidden] F32.
  OwnedTensor& stream() { return stream_; }
  int64_t num_tokens() const { return num_tokens_; }
  // [num_tokens, hidden] F32, in memory or on disk.
  Result<OwnedTensor> new_activations() const;

  struct Recording {
    // Each [num_tokens, hidden] F32, or empty when not wanted.
    OwnedTensor mixer_input, mixer_output, mlp_input, mlp_output;
    std::map<const LinearWeight*, InputMoments> inputs;  // of every Linear that ran
    // Every expert of a mixture sees every token, as upstream; else those routed to it.
    bool all_experts = true;
  };
  // Runs one layer over all samples: stream() becomes the layer's output. With `recording`, fills
  // what it has room for; grams for the Linears of `want_gram`.
  void run(int layer, const LayerWeights& weights, Recording* recording,
           const std::function<bool(const LinearWeight*)>& want_gram = {});

  // Runs one layer over the first sample alone; x [its tokens, hidden] F32 in and out.
  void run_first(int layer, const LayerWeights& weights, const Tensor& x);
  int64_t num_first_tokens() const;

  // How much of the samples a replay looks at, and when it gives up.
  struct ReplayLimits {
    int64_t max_tokens = std::numeric_limits<int64_t>::max();  // whole samples, from the first on
    double bound = std::numeric_limits<double>::infinity();
  };
  // Replays one block on recorded inputs; the mean squared difference from recorded outputs, or
  // infinity once it is sure to exceed the bound.
  double replay_mixer(int layer, const LayerWeights& weights, Recording& recording,
                      const ReplayLimits& limits);
  double replay_mlp(int layer, const LayerWeights& weights, Recording& recording,
                    const ReplayLimits& limits);

  Ops& ops() { return device_->ops(); }

 private:
  LayerPass() = default;
  // Calls body(step, first, last) per sample, tokens [first, last) of the stream, until it says no.
  void each_sample(Ops& ops, const std::function<bool(const Step&, int64_t, int64_t)>& body);
  // replay(step, input, output) over all samples.
  double loss(const Tensor& input, const Tensor& expected, const ReplayLimits& limits,
              const std::function<void(const Step&, const Tensor&, const Tensor&)>& replay);

  const ModelSpec* spec_ = nullptr;
  Device* device_ = nullptr;
  std::vector<int64_t> sample_start_;  // [num_samples + 1]
  int64_t num_tokens_ = 0;
  int64_t longest_ = 0;
  Spill spill_;
  OwnedTensor stream_;
  DeviceMemory cache_memory_;
  DeviceMemory scratch_memory_;
  ModelCaches caches_;
};

}  // namespace nibble
