// The weights of a model, bound by name from a checkpoint; views only.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/model_dir.h"
#include "device/device.h"
#include "model/config.h"

namespace nibble {

struct AttentionWeights {
  LinearWeight q_proj, k_proj, v_proj, o_proj;  // q_proj rows: per head [query | gate] when gated
  Tensor q_norm, k_norm;                        // [head_dim]; empty without qk_norm
};

struct GatedDeltaNetWeights {
  LinearWeight in_proj_qkv, in_proj_z, in_proj_b, in_proj_a, out_proj;
  Tensor conv1d;          // [conv_dim, kernel]
  Tensor a_log, dt_bias;  // [num_v_heads]
  Tensor norm;            // [head_v_dim], applied as stored
};

struct MlpWeights {
  LinearWeight gate_proj, up_proj, down_proj;
};

struct MoeWeights {
  LinearWeight router, shared_expert_gate;
  std::vector<LinearWeight> gate_proj, up_proj, down_proj;  // [num_experts]
  MlpWeights shared_expert;
};

struct LayerWeights {
  Tensor input_layernorm, post_attention_layernorm;
  AttentionWeights attention;  // one of these two
  GatedDeltaNetWeights delta_net;
  MlpWeights mlp;  // one of these two
  MoeWeights moe;
};

struct ModelWeights {
  Tensor embed_tokens;  // [vocab_size, hidden_size]
  std::vector<LayerWeights> layers;
  Tensor norm;
  LinearWeight lm_head;  // the embedding when tied
};

// Every Linear of the model in definition order, with its module name without the ".weight" suffix
// ("model.layers.3.self_attn.q_proj") and its shape. What quantization recipes match against.
struct LinearModule {
  std::string name;
  int64_t out_features = 0;
  int64_t in_features = 0;
};
std::vector<LinearModule> linear_modules(const ModelSpec& spec);

// Where binding finds tensors: a checkpoint, or only its shapes (model/weight_shapes.h).
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  virtual bool has(std::string_view name) const = 0;
  virtual Result<Tensor> tensor(std::string_view name, const Shape& expected) const = 0;
  virtual Result<LinearWeight> linear(std::string_view name, int64_t out_features,
                                      int64_t in_features) const = 0;
};

// A checkpoint as a source; it must outlive what is returned.
std::unique_ptr<WeightSource> source_of(const ModelDir& dir);

Result<LayerWeights> bind_layer(const ModelDir& dir, const ModelSpec& spec, int layer,
                                Device& device, Arena& arena);
// `storage`: of 16-bit Linears, but for experts and a head that is the embedding.
Result<ModelWeights> bind_weights(const WeightSource& source, const ModelSpec& spec, Device& device,
                                  Arena& arena, DenseStorage storage = DenseStorage::kPlain);

// Asks for every tensor of the model in its shape, as binding does, and keeps none.
Status look_up_weights(const WeightSource& source, const ModelSpec& spec);

// Bytes of bound weights in their device layout, by kind.
struct WeightBytes {
  size_t quantized = 0;   // packed integers, scales, zero points
  size_t dense = 0;       // Linears in 16 or 32 bits, without the head
  size_t embeddings = 0;  // embed_tokens
  size_t lm_head = 0;     // 0 when it is the embedding
  size_t other = 0;       // norms, convolutions, gates
  size_t total() const { return quantized + dense + embeddings + lm_head + other; }
};
WeightBytes weight_bytes(const ModelWeights& weights, bool head_is_embedding);

}  // namespace nibble
