// A loaded model: weights bound by the ModelSpec and one forward pass written against Ops.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>

#include "checkpoint/model_dir.h"
#include "device/device.h"
#include "device/wrap/metering_ops.h"
#include "model/config.h"
#include "model/weights.h"

namespace nibble {

// Bytes of cache a sequence needs; engine/ never knows what they mean.
struct CacheShape {
  int num_blocks = 0;          // KV blocks over all sequences
  int block_size = 16;         // tokens
  int num_state_slots = 0;     // sequences with live recurrent state
  int num_snapshot_slots = 0;  // kept states of prefixes: rows behind the live ones
  DType kv_dtype = DType::kF32;
};

// All caches of a model in one arena: per full-attention layer a KvCache, per linear-attention
// layer a conv state [slots, conv_dim, kernel - 1] and a recurrent state [slots, nv, dk, dv] F32,
// slots = num_state_slots + num_snapshot_slots.
struct ModelCaches {
  std::vector<KvCache> kv;  // index: layer; empty tensors where the layer has none
  std::vector<Tensor> conv_state;
  std::vector<Tensor> recurrent_state;
};
ModelCaches place_caches(const ModelSpec& spec, const CacheShape& shape, DType activation_dtype,
                         Arena& arena);

// What a forward pass may touch.
struct Step {
  Ops* ops = nullptr;
  RaggedBatch batch;
  const int32_t* token_ids = nullptr;   // [num_tokens]
  const int32_t* positions = nullptr;   // [3, num_tokens]
  const int32_t* logit_rows = nullptr;  // [num_logit_rows] tokens whose logits are wanted
  int32_t num_logit_rows = 0;
  ModelCaches* caches = nullptr;
  Arena* scratch = nullptr;  // activations live here between mark and release
  // Called at each point of interest: "embed", "mixer input", "mixer", "mlp input", "mlp", "layer",
  // "norm". For tests and calibration.
  std::function<void(const char* what, int layer, const Tensor& value)> observe;
};

class Model {
 public:
  // Binds every weight; a missing tensor or wrong shape is an error that names it. `storage` counts
  // for BF16 weights that meet BF16 activations.
  static Result<Model> load(const ModelDir& dir, Device& device, DType activation_dtype,
                            DenseStorage storage = DenseStorage::kPlain);
  // The same from any source; `spec` is what it holds. Where the device computes on the source's
  // own bytes (arena_bytes() is 0), the source must outlive the model.
  static Result<Model> load(const WeightSource& source, const ModelSpec& spec, Device& device,
                            DType activation_dtype, DenseStorage storage = DenseStorage::kPlain);

  // A model of shapes: every weight has its dtype and size in `device`'s layout and no memory, so
  // it can be counted and metered, not computed. `spec` is one rank's share (model/sharding.h).
  static Result<Model> shapes(const ModelSpec& spec,
                              const std::optional<QuantizationConfig>& quantization, Device& device,
                              DType activation_dtype, DenseStorage storage = DenseStorage::kPlain);

  // Bytes of the device arena that hold weights; 0 where the device computes on the mapped files.
  size_t arena_bytes() const { return arena_bytes_; }
  WeightBytes weight_bytes() const;
  const ModelSpec& spec() const { return spec_; }
  const ModelWeights& weights() const { return weights_; }
  DType activation_dtype() const { return activation_dtype_; }

  // logits [num_logit_rows, vocab_size] F32. Scratch needs activation_bytes(num_tokens,
  // num_logit_rows).
  void forward(const Step& step, const Tensor& logits) const;
  // Counts the scratch a step of this size takes, by running forward over a counting arena.
  size_t activation_bytes(int32_t num_tokens, int32_t num_logit_rows) const;
  // What a step of these sequences moves and computes, by running forward over MeteringOps:
  // sequence s adds new_tokens[s] to context[s] cached ones. Of one rank.
  StepCost step_cost(std::span<const int32_t> new_tokens, std::span<const int32_t> context,
                     int32_t num_logit_rows, DType kv_dtype) const;

 private:
  void decoder_forward(const Step& step, const Tensor& x) const;
  static Result<Model> bind(const WeightSource& source, const ModelSpec& spec, Device& device,
                            DType activation_dtype, DenseStorage storage);
  void meter(const RaggedBatch& batch, int32_t num_logit_rows, DType kv_dtype, MeteringOps* ops,
             Arena* counter) const;

  ModelSpec spec_;
  ModelWeights weights_;
  DType activation_dtype_ = DType::kF32;
  size_t arena_bytes_ = 0;
  DeviceMemory memory_;
};

}  // namespace nibble
