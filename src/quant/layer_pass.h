// One decoder layer at a time over the calibration samples: activations in, activations out, and
// what the quantizer wants to know recorded on the way. Only one layer's weights are in use.
#pragma once

#include <functional>
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
  std::vector<double> sum_abs;  // [in_features]
  std::vector<float> gram;      // [in_features, in_features] sum of x'x; empty unless asked for
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
  Tensor view() { return {bytes_.data(), dtype_, shape_}; }
  bool empty() const { return bytes_.empty(); }

 private:
  std::vector<std::byte> bytes_;
  DType dtype_ = DType::kF32;
  Shape shape_;
};

// The weights of one layer by module name; each can be pointed at other values.
class WorkingLayer {
 public:
  static Result<WorkingLayer> load(const ModelDir& dir, const ModelSpec& spec, int layer,
                                   Device& device, Arena& arena);
  const LayerWeights& weights() const { return weights_; }
  // `module` as in linear_modules(); null when the layer has no such Linear or norm.
  LinearWeight* linear(const std::string& module);
  Tensor* norm(const std::string& module);

 private:
  LayerWeights weights_;
  std::string prefix_;
};

class LayerPass {
 public:
  // Embeds the samples. kOutOfMemory when their activations do not fit.
  static Result<LayerPass> start(const ModelDir& dir, const ModelSpec& spec, Device& device,
                                 const std::vector<std::vector<int32_t>>& samples);

  // The residual stream before the current layer, sample after sample [num_tokens, hidden] F32.
  OwnedTensor& stream() { return stream_; }
  int64_t num_tokens() const { return num_tokens_; }

  struct Recording {
    OwnedTensor mixer_input, mixer_output, mlp_input, mlp_output;  // [num_tokens, hidden] F32
    std::map<const LinearWeight*, InputMoments> inputs;            // of every Linear that ran
  };
  // Runs one layer over all samples: stream() becomes the layer's output. With `recording`, fills
  // it; grams for the Linears of `want_gram`.
  void run(int layer, const LayerWeights& weights, Recording* recording,
           const std::function<bool(const LinearWeight*)>& want_gram = {});

  // Replays one block on recorded inputs; out [num_tokens, hidden] F32.
  void replay_mixer(int layer, const LayerWeights& weights, const Tensor& input, const Tensor& out);
  void replay_mlp(const LayerWeights& weights, const Tensor& input, const Tensor& out);

  Ops& ops() { return device_->ops(); }

 private:
  LayerPass() = default;
  // Calls body(step, first, last) per sample: tokens [first, last) of the stream.
  void each_sample(Ops& ops, const std::function<void(const Step&, int64_t, int64_t)>& body);

  const ModelSpec* spec_ = nullptr;
  Device* device_ = nullptr;
  std::vector<int64_t> sample_start_;  // [num_samples + 1]
  int64_t num_tokens_ = 0;
  int64_t longest_ = 0;
  OwnedTensor stream_;
  DeviceMemory cache_memory_;
  DeviceMemory scratch_memory_;
  ModelCaches caches_;
};

}  // namespace nibble
