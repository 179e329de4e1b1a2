// ModelSpec: what a checkpoint's config.json says, as data. One LayerSpec per layer; a model family
// is a row in architectures.cc that fills this in. Field names follow Hugging Face.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tensor/dtype.h"

namespace nibble {

enum class MixerKind { kFullAttention, kGatedDeltaNet };
enum class FfnKind { kDense, kMoe };

struct RopeSpec {
  int rotary_dim = 0;                // leading dims of a head that rotate
  std::vector<float> inv_freq;       // [rotary_dim / 2], with llama3 or linear scaling applied
  int mrope_section[3] = {0, 0, 0};  // all zero: one axis
  float attention_scaling = 1.0f;
};

struct AttentionSpec {
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  bool output_gate = false;  // q_proj also yields a per-head gate (Qwen3.5)
  bool qk_norm = false;      // RMSNorm over each head of q and k before RoPE
};

struct GatedDeltaNetSpec {
  int num_k_heads = 0;
  int num_v_heads = 0;
  int head_k_dim = 0;
  int head_v_dim = 0;
  int conv_kernel = 0;
  int key_dim() const { return num_k_heads * head_k_dim; }
  int value_dim() const { return num_v_heads * head_v_dim; }
  int conv_dim() const { return 2 * key_dim() + value_dim(); }
};

struct MoeSpec {
  int num_experts = 0;
  int num_experts_per_tok = 0;
  int moe_intermediate_size = 0;
  int shared_expert_intermediate_size = 0;
};

struct LayerSpec {
  MixerKind mixer = MixerKind::kFullAttention;
  FfnKind ffn = FfnKind::kDense;
};

struct ModelSpec {
  std::string model_type;     // "qwen3_5_text"
  std::string architecture;   // "Qwen3_5ForCausalLM"
  std::string weight_prefix;  // "model." or "model.language_model."
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;  // dense FFN
  float rms_norm_eps = 1e-6f;
  float norm_weight_offset = 0.0f;  // 1: zero-centred norms (weights stored as w, applied as 1 + w)
  bool tie_word_embeddings = false;
  int64_t max_position_embeddings = 0;
  DType dtype = DType::kBF16;  // of the checkpoint
  std::vector<int32_t> eos_token_ids;
  AttentionSpec attention;
  RopeSpec rope;
  GatedDeltaNetSpec delta_net;
  MoeSpec moe;
  std::vector<LayerSpec> layers;

  bool hybrid() const {
    for (const LayerSpec& layer : layers)
      if (layer.mixer == MixerKind::kGatedDeltaNet) return true;
    return false;
  }
};

}  // namespace nibble
