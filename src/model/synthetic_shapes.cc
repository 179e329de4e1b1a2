// One row per shape.
#include "model/synthetic_shapes.h"

#include <array>

#include "base/format.h"
#include "base/text.h"
#include "checkpoint/compressed_tensors.h"

namespace nibble {
namespace {

// Three linear-attention layers, then a full one, as in every published Qwen3.5.
constexpr int kFullAttentionInterval = 4;

Json qwen_27b() {
  return {{"architectures", {"Qwen3_5ForCausalLM"}},
          {"model_type", "qwen3_5_text"},
          {"dtype", "bfloat16"},
          {"attention_bias", false},
          {"attn_output_gate", true},
          {"hidden_act", "silu"},
          {"hidden_size", 5120},
          {"intermediate_size", 17408},
          {"num_hidden_layers", 64},
          {"full_attention_interval", kFullAttentionInterval},
          {"num_attention_heads", 24},
          {"num_key_value_heads", 4},
          {"head_dim", 256},
          {"linear_num_key_heads", 16},
          {"linear_num_value_heads", 48},
          {"linear_key_head_dim", 128},
          {"linear_value_head_dim", 128},
          {"linear_conv_kernel_dim", 4},
          {"mamba_ssm_dtype", "float32"},
          {"rms_norm_eps", 1e-6},
          {"max_position_embeddings", 262144},
          {"vocab_size", 248320},
          {"eos_token_id", 248046},
          {"tie_word_embeddings", false},
          {"rope_parameters",
           {{"rope_type", "default"},
            {"rope_theta", 10000000},
            {"partial_rotary_factor", 0.25},
            {"mrope_interleaved", true},
            {"mrope_section", {11, 11, 10}}}}};
}

Json qwen_40b() {
  Json config = qwen_27b();
  config["num_hidden_layers"] = 96;
  return config;
}

Json qwen_35b_a3b() {
  Json config = qwen_27b();
  config["architectures"] = {"Qwen3_5MoeForCausalLM"};
  config["model_type"] = "qwen3_5_moe_text";
  config.erase("intermediate_size");
  config["hidden_size"] = 2048;
  config["num_hidden_layers"] = 40;
  config["num_attention_heads"] = 16;
  config["num_key_value_heads"] = 2;
  config["linear_num_value_heads"] = 32;
  config["num_experts"] = 256;
  config["num_experts_per_tok"] = 8;
  config["moe_intermediate_size"] = 512;
  config["shared_expert_intermediate_size"] = 512;
  return config;
}

// The bundled demo model: small enough for tests.
Json demo() {
  Json config = qwen_27b();
  config["hidden_size"] = 256;
  config["intermediate_size"] = 768;
  config["num_hidden_layers"] = 12;
  config["num_attention_heads"] = 4;
  config["num_key_value_heads"] = 2;
  config["head_dim"] = 128;
  config["linear_num_key_heads"] = 4;
  config["linear_num_value_heads"] = 8;
  config["linear_key_head_dim"] = 64;
  config["linear_value_head_dim"] = 64;
  config["max_position_embeddings"] = 32768;
  config["vocab_size"] = 4096;
  config["eos_token_id"] = 4085;
  config["tie_word_embeddings"] = true;
  config["rope_parameters"]["rope_theta"] = 1000000;
  config["rope_parameters"]["mrope_section"] = {6, 5, 5};
  return config;
}

Json llama_8b() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"dtype", "bfloat16"},
          {"attention_bias", false},
          {"mlp_bias", false},
          {"hidden_act", "silu"},
          {"hidden_size", 4096},
          {"intermediate_size", 14336},
          {"num_hidden_layers", 32},
          {"num_attention_heads", 32},
          {"num_key_value_heads", 8},
          {"head_dim", 128},
          {"rms_norm_eps", 1e-5},
          {"max_position_embeddings", 131072},
          {"vocab_size", 128256},
          {"eos_token_id", {128001, 128008, 128009}},
          {"tie_word_embeddings", false},
          {"rope_theta", 500000.0},
          {"rope_scaling",
           {{"rope_type", "llama3"},
            {"factor", 8.0},
            {"low_freq_factor", 1.0},
            {"high_freq_factor", 4.0},
            {"original_max_position_embeddings", 8192}}}};
}

struct Row {
  std::string_view name;
  Json (*config)();
};
constexpr std::array<Row, 5> kRows = {{
    {"qwen3.6-40b", qwen_40b},
    {"qwen3.6-27b", qwen_27b},
    {"qwen3.6-35b-a3b", qwen_35b_a3b},
    {"llama-8b", llama_8b},
    {"demo", demo},
}};

constexpr auto kNames = [] {
  std::array<std::string_view, kRows.size()> names{};
  for (size_t i = 0; i < names.size(); ++i) names[i] = kRows[i].name;
  return names;
}();

// What recipes/w4a16-*.yaml ask for.
QuantizationConfig bundled_quantization() {
  QuantizationGroup group;
  group.targets = {"Linear"};
  group.format = {.num_bits = 4, .group_size = 128, .symmetric = false};
  group.observer = "mse";
  return {.groups = {group},
          .ignore = {"re:.*lm_head", "re:visual.*", "re:model.visual.*", "re:.*mlp.gate$",
                     "re:.*embed_tokens$", "re:.*shared_expert_gate$", "re:.*linear_attn.*",
                     "re:.*mtp.*"}};
}

}  // namespace

std::span<const std::string_view> synthetic_shapes() {
  return kNames;
}

Result<Json> synthetic_config(std::string_view like, const SyntheticConfig& options) {
  for (const Row& row : kRows) {
    if (row.name != like) continue;
    Json config = row.config();
    const int most = config["num_hidden_layers"].get<int>();
    if (options.num_layers < 0 || options.num_layers > most)
      return make_error(ErrorCode::kInvalidArgument, "--layers {}: {} has {} layers; give 1 to {}",
                        options.num_layers, like, most, most);
    if (options.num_layers > 0) config["num_hidden_layers"] = options.num_layers;
    if (config.contains("full_attention_interval")) {
      Json types = Json::array();
      for (int layer = 1; layer <= config["num_hidden_layers"].get<int>(); ++layer)
        types.push_back(layer % kFullAttentionInterval == 0 ? "full_attention"
                                                            : "linear_attention");
      config["layer_types"] = std::move(types);
    }
    if (options.quantized)
      config["quantization_config"] = quantization_config_json(bundled_quantization());
    return config;
  }
  const std::string nearest = nearest_name(like, kNames);
  return make_error(ErrorCode::kInvalidArgument, "--like {}: unknown{}; give one of {}", like,
                    nearest.empty() ? "" : ", did you mean " + nearest + "?", join(kNames, ", "));
}

}  // namespace nibble
