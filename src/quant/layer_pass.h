// One decoder layer at a time over the calibration samples: activations in, activations out, and
// what the quantizer wants to know recorded on the way. Only one layer's weights are in use, on the
// device that computes; activations of all samples lie where there is room.
#pragma once

#include <functional>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "checkpoint/model_dir.h"
#include "device/device.h"
#include "device/quant_ops.h"
#include "model/decoder.h"
#include "model/model.h"
#include "quant/owned_tensor.h"

namespace nibble {

// The inputs of every Linear of one layer, summed over all tokens.
struct InputMoments {
  std::vector<double> sum_abs;      // [in_features]
  std::vector<double> sum_squares;  // [in_features]
  OwnedTensor
      gram;  // F32 [in_features, in_features] on the device, sum of x'x; unless asked: empty
  int64_t num_tokens = 0;
};

// The weights of one layer by module name, on the device; each can be pointed at other values.
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

// Tensors of activations that may be alive together: the stream, and the recorded inputs and
// outputs of two blocks.
inline constexpr size_t kActivationsAlive = 5;

// Where activations go.
struct Spill {
  fs::path folder;                        // for those that memory has no room for
  size_t memory_limit = size_t{8} << 30;  // of host memory, for all that are alive together
  size_t device_limit = 0;  // of a GPU's memory, for everything; 0: 90% of what is free
};

class LayerPass {
 public:
  // Embeds the samples. kOutOfMemory when caches, scratch or a layer do not fit. Activations are
  // F32 where the device is the host, elsewhere of the checkpoint's dtype. Both outlive this.
  static Result<LayerPass> start(const ModelDir& dir, const ModelSpec& spec, Device& device,
                                 QuantOps& quant_ops,
                                 const std::vector<std::vector<int32_t>>& samples,
                                 const Spill& spill, ThreadPool& pool);
  // Memory for the inputs and outputs of blocks that replays need; on the device where that leaves
  // `working_bytes` of it for the rest.
  Status reserve_recordings(bool mixer, bool mlp, size_t working_bytes);

  // The residual stream before the current layer, sample after sample [num_tokens, hidden], in host
  // memory.
  const Tensor& stream() const { return stream_.view(); }
  int64_t num_tokens() const { return num_tokens_; }
  size_t layer_bytes() const { return layer_memory_.size(); }  // of the largest layer's weights
  // Memory of the device for the weights of the layer at work.
  Arena layer_arena() const { return Arena(layer_memory_.data(), layer_memory_.size()); }

  struct Recording {
    bool mixer = false;  // keep the inputs and outputs of these blocks, as reserved
    bool mlp = false;
    std::map<const LinearWeight*, InputMoments> inputs;  // of every Linear that ran
    OwnedTensor first_input, first_output;  // the stream of the first sample, on the device
    // Every expert of a mixture sees every token, as upstream; else those routed to it.
    bool all_experts = true;
  };
  // Runs one layer over all samples; with `keep`, stream() becomes its output. With `recording`,
  // fills it; grams for the Linears of `want_gram`.
  Status run(int layer, const LayerWeights& weights, bool keep, Recording* recording = nullptr,
             const std::function<bool(const LinearWeight*)>& want_gram = {});

  // Runs one layer over the first sample alone; x [its tokens, hidden] in and out, on the device.
  void run_first(int layer, const LayerWeights& weights, const Tensor& x);

  // How much of the samples a replay looks at, and when it gives up.
  struct ReplayLimits {
    int64_t max_tokens = std::numeric_limits<int64_t>::max();  // whole samples, from the first on
    double bound = std::numeric_limits<double>::infinity();
  };
  // What earlier replays of the same weights have seen.
  struct Replayed {
    int64_t num_tokens = 0;
    double sum = 0;  // of squared differences
  };
  // Replays one block on recorded inputs, from where `replayed` stands, and moves that on; the mean
  // squared difference from recorded outputs, or infinity once it is sure to exceed the bound.
  double replay_mixer(int layer, const LayerWeights& weights, const ReplayLimits& limits,
                      Replayed* replayed);
  double replay_mlp(int layer, const LayerWeights& weights, const ReplayLimits& limits,
                    Replayed* replayed);

 private:
  // Activations of all samples, on the device or in host memory.
  struct Store {
    OwnedTensor tensor;
    bool on_device = false;
  };
  // What the ragged batch of one sample points at, on the device.
  struct DeviceBatch {
    int32_t* positions = nullptr;    // sample after sample, each [3, its tokens]
    int32_t* query_start = nullptr;  // [num_samples, 2]
    int32_t* blocks = nullptr;
    int32_t* zero = nullptr;
    uint8_t* fresh = nullptr;
    size_t num_bytes = 0;
  };

  LayerPass() = default;
  Status place_batch();
  DeviceBatch batch_in(Arena arena) const;
  Status embed(const ModelDir& dir, const std::vector<std::vector<int32_t>>& samples,
               ThreadPool& pool);
  Shape activations_shape() const { return {num_tokens_, spec_->hidden_size}; }
  Result<OwnedTensor> host_activations() const;
  Result<Store> new_store(size_t* room) const;
  void keep(const Store& store, int64_t first, const Tensor& value) const;
  // Rows of a store on the device, in `staging` if they come from elsewhere.
  Tensor fetch(const Store& store, int64_t first, int64_t last, const OwnedTensor& staging) const;
  int64_t num_first_tokens() const;
  // Calls body(step, first, last) per sample, tokens [first, last) of the stream, until it says no.
  void each_sample(Ops& ops, const std::function<bool(const Step&, int64_t, int64_t)>& body);
  // replay(step, input, output) over all samples.
  double loss(const Store& input, const Store& expected, const ReplayLimits& limits,
              Replayed* replayed,
              const std::function<void(const Step&, const Tensor&, const Tensor&)>& replay);

  const ModelSpec* spec_ = nullptr;
  Device* device_ = nullptr;
  QuantOps* quant_ops_ = nullptr;
  DType dtype_ = DType::kF32;          // of activations
  std::vector<int64_t> sample_start_;  // [num_samples + 1]
  int64_t num_tokens_ = 0;
  int64_t longest_ = 0;
  Spill spill_;
  OwnedTensor stream_;
  Store mixer_input_, mixer_output_, mlp_input_, mlp_output_;
  OwnedTensor work_, input_staging_, output_staging_;  // [longest, hidden], on the device
  DeviceMemory cache_memory_, scratch_memory_, layer_memory_, batch_memory_;
  DeviceBatch batch_;
  ModelCaches caches_;
};

}  // namespace nibble
