// One row per model family: what its config.json means.
#include "model/architectures.h"

#include <array>
#include <cmath>
#include <limits>
#include <numbers>
#include <optional>

#include "base/format.h"
#include "base/text.h"

namespace nibble {
namespace {

// Typed access to one level of config.json; every error names the field, what was found and what
// was expected.
class Fields {
 public:
  explicit Fields(const Json& object) : object_(&object) {}

  bool has(const char* name) const { return !value(name).is_null(); }
  const Json& value(const char* name) const {
    static const Json kNull;
    const auto it = object_->find(name);
    return it == object_->end() ? kNull : *it;
  }

  Result<int64_t> count(const char* name, std::optional<int64_t> fallback = {},
                        int64_t least = 1) const {
    const Json& found = value(name);
    if (found.is_null() && fallback) return *fallback;
    constexpr int64_t kMost = int64_t{1} << 30;
    if (!found.is_number_integer() || found < least || found > kMost)
      return wrong(name, found, format("a whole number from {} to {}", least, kMost));
    return found.get<int64_t>();
  }
  Result<double> number(const char* name, double fallback) const {
    const Json& found = value(name);
    if (found.is_null()) return fallback;
    if (!found.is_number()) return wrong(name, found, "a number");
    return found.get<double>();
  }
  Result<bool> flag(const char* name, bool fallback) const {
    const Json& found = value(name);
    if (found.is_null()) return fallback;
    if (!found.is_boolean()) return wrong(name, found, "true or false");
    return found.get<bool>();
  }
  Result<std::string> text(const char* name, std::string fallback) const {
    const Json& found = value(name);
    if (found.is_null()) return fallback;
    if (!found.is_string()) return wrong(name, found, "a string");
    return found.get<std::string>();
  }

  static Error wrong(std::string_view name, const Json& found, std::string_view expected) {
    std::string shown = found.is_null() ? "missing" : dump_json(found);
    if (shown.size() > 80) shown = shown.substr(0, 77) + "...";
    return make_error(ErrorCode::kInvalidArgument, "config.json: {} is {}, expected {}", name,
                      shown, expected);
  }

 private:
  const Json* object_;
};

struct Family {
  std::string_view architecture;
  bool qwen3_5 = false;  // hybrid layers, gated attention, zero-centred norms
  bool qk_norm = false;
  bool moe = false;
  bool multimodal = false;  // text weights under model.language_model.
};

constexpr std::array<Family, 6> kFamilies = {{
    {.architecture = "Qwen3_5ForCausalLM", .qwen3_5 = true, .qk_norm = true},
    {.architecture = "Qwen3_5ForConditionalGeneration",
     .qwen3_5 = true,
     .qk_norm = true,
     .multimodal = true},
    {.architecture = "Qwen3_5MoeForCausalLM", .qwen3_5 = true, .qk_norm = true, .moe = true},
    {.architecture = "Qwen3_5MoeForConditionalGeneration",
     .qwen3_5 = true,
     .qk_norm = true,
     .moe = true,
     .multimodal = true},
    {.architecture = "Qwen3ForCausalLM", .qk_norm = true},
    {.architecture = "LlamaForCausalLM"},
}};

constexpr auto kArchitectureNames = [] {
  std::array<std::string_view, kFamilies.size()> names{};
  for (size_t i = 0; i < names.size(); ++i) names[i] = kFamilies[i].architecture;
  return names;
}();

Result<const Family*> find_family(const Json& config) {
  const Json& list = Fields(config).value("architectures");
  if (!list.is_array() || list.empty() || !list[0].is_string())
    return Fields::wrong("architectures", list, "a list with one class name");
  const std::string& name = list[0].get_ref<const std::string&>();
  for (const Family& family : kFamilies)
    if (family.architecture == name) return &family;
  const std::string nearest =
      nearest_name(name, std::span<const std::string_view>(kArchitectureNames));
  return make_error(ErrorCode::kUnsupported,
                    "config.json: architecture {} is not known{}; known are {}", name,
                    nearest.empty() ? "" : format(", the nearest is {}", nearest),
                    join(kArchitectureNames, ", "));
}

// Frequencies, scaled as `rope_type` says. Source: Hugging Face modeling_rope_utils.
Result<RopeSpec> parse_rope(const Fields& text, const Family& family, int64_t head_dim) {
  const Json empty = Json::object();
  const Json& parameters = text.has("rope_parameters") ? text.value("rope_parameters")
                           : text.has("rope_scaling")  ? text.value("rope_scaling")
                                                       : empty;
  if (!parameters.is_object()) return Fields::wrong("rope_parameters", parameters, "an object");
  const Fields rope(parameters);
  RopeSpec spec;
  NB_TRY(const double flat_theta, text.number("rope_theta", 10000.0));
  NB_TRY(const double theta, rope.number("rope_theta", flat_theta));
  if (!(theta > 1.0)) return Fields::wrong("rope_theta", Json(theta), "a number above 1");
  NB_TRY(const double flat_factor,
         text.number("partial_rotary_factor", family.qwen3_5 ? 0.25 : 1.0));
  NB_TRY(const double partial, rope.number("partial_rotary_factor", flat_factor));
  if (!(partial > 0.0 && partial <= 1.0))
    return Fields::wrong("partial_rotary_factor", Json(partial), "a number in (0, 1]");
  spec.rotary_dim = static_cast<int>(static_cast<double>(head_dim) * partial);
  if (spec.rotary_dim < 2 || spec.rotary_dim % 2 != 0)
    return Fields::wrong("partial_rotary_factor", Json(partial),
                         format("one that leaves an even part of head_dim {}", head_dim));
  const int half = spec.rotary_dim / 2;
  spec.inv_freq.resize(static_cast<size_t>(half));
  for (int i = 0; i < half; ++i)
    spec.inv_freq[static_cast<size_t>(i)] =
        1.0f / std::pow(static_cast<float>(theta),
                        static_cast<float>(2 * i) / static_cast<float>(spec.rotary_dim));

  NB_TRY(const std::string old_type, rope.text("type", "default"));
  NB_TRY(const std::string type, rope.text("rope_type", old_type));
  if (type == "linear") {
    NB_TRY(const double factor, rope.number("factor", 1.0));
    if (!(factor >= 1.0)) return Fields::wrong("factor", Json(factor), "a number of 1 or more");
    for (float& f : spec.inv_freq) f /= static_cast<float>(factor);
  } else if (type == "llama3") {
    NB_TRY(const double factor, rope.number("factor", 8.0));
    NB_TRY(const double low, rope.number("low_freq_factor", 1.0));
    NB_TRY(const double high, rope.number("high_freq_factor", 4.0));
    NB_TRY(const int64_t original, rope.count("original_max_position_embeddings"));
    if (!(factor >= 1.0 && high > low && low > 0))
      return Fields::wrong("rope_parameters", parameters, "factor >= 1 and 0 < low < high");
    for (float& f : spec.inv_freq) {
      const double wavelength = 2.0 * std::numbers::pi / f;
      if (wavelength > static_cast<double>(original) / low) {
        f = static_cast<float>(f / factor);
      } else if (wavelength > static_cast<double>(original) / high) {
        const double smooth = (static_cast<double>(original) / wavelength - low) / (high - low);
        f = static_cast<float>((1.0 - smooth) * f / factor + smooth * f);
      }
    }
  } else if (type != "default") {
    return make_error(ErrorCode::kUnsupported,
                      "config.json: rope_type \"{}\" is not supported; supported are default, "
                      "linear and llama3",
                      type);
  }

  if (family.qwen3_5) {
    const Json& section =
        rope.has("mrope_section") ? rope.value("mrope_section") : text.value("mrope_section");
    const int fallback[3] = {11, 11, 10};
    for (int axis = 0; axis < 3; ++axis) spec.mrope_section[axis] = fallback[axis];
    if (!section.is_null()) {
      if (!section.is_array() || section.size() != 3)
        return Fields::wrong("mrope_section", section, "three whole numbers");
      for (int axis = 0; axis < 3; ++axis) {
        const Json& width = section[static_cast<size_t>(axis)];
        if (!width.is_number_integer() || width < 0 || width > head_dim)
          return Fields::wrong("mrope_section", section, "three whole numbers");
        spec.mrope_section[axis] = width.get<int>();
      }
    }
  }
  return spec;
}

Status parse_layers(const Fields& text, const Family& family, ModelSpec* spec) {
  NB_TRY(const int64_t num_layers, text.count("num_hidden_layers"));
  if (num_layers > 4096)
    return Fields::wrong("num_hidden_layers", Json(num_layers), "at most 4096");
  spec->layers.resize(static_cast<size_t>(num_layers));
  for (LayerSpec& layer : spec->layers) layer.ffn = family.moe ? FfnKind::kMoe : FfnKind::kDense;
  if (!family.qwen3_5) return {};
  const Json& types = text.value("layer_types");
  if (types.is_null()) {
    NB_TRY(const int64_t interval, text.count("full_attention_interval", 4));
    for (size_t i = 0; i < spec->layers.size(); ++i)
      if ((static_cast<int64_t>(i) + 1) % interval != 0)
        spec->layers[i].mixer = MixerKind::kGatedDeltaNet;
    return {};
  }
  if (!types.is_array() || types.size() != spec->layers.size())
    return Fields::wrong("layer_types", types,
                         format("a list of {} entries, one a layer", num_layers));
  for (size_t i = 0; i < types.size(); ++i) {
    if (types[i] == "linear_attention") {
      spec->layers[i].mixer = MixerKind::kGatedDeltaNet;
    } else if (types[i] != "full_attention") {
      return Fields::wrong(format("layer_types[{}]", i), types[i],
                           "\"linear_attention\" or \"full_attention\"");
    }
  }
  return {};
}

Result<int> small(const Fields& fields, const char* name, std::optional<int64_t> fallback = {}) {
  NB_TRY(const int64_t value, fields.count(name, fallback));
  if (value > (1 << 20)) return Fields::wrong(name, Json(value), "at most 1048576");
  return static_cast<int>(value);
}

Status parse_delta_net(const Fields& text, GatedDeltaNetSpec* spec) {
  NB_TRY(spec->num_k_heads, small(text, "linear_num_key_heads", 16));
  NB_TRY(spec->num_v_heads, small(text, "linear_num_value_heads", 32));
  NB_TRY(spec->head_k_dim, small(text, "linear_key_head_dim", 128));
  NB_TRY(spec->head_v_dim, small(text, "linear_value_head_dim", 128));
  NB_TRY(spec->conv_kernel, small(text, "linear_conv_kernel_dim", 4));
  if (spec->num_v_heads % spec->num_k_heads != 0)
    return Fields::wrong("linear_num_value_heads", Json(spec->num_v_heads),
                         format("a multiple of linear_num_key_heads {}", spec->num_k_heads));
  if (spec->conv_kernel < 2)
    return Fields::wrong("linear_conv_kernel_dim", Json(spec->conv_kernel), "2 or more");
  const int64_t width = int64_t{2} * spec->num_k_heads * spec->head_k_dim +
                        int64_t{1} * spec->num_v_heads * spec->head_v_dim;
  if (width > (1 << 24))
    return Fields::wrong("linear_key_head_dim", Json(spec->head_k_dim),
                         "a smaller product with heads");
  return {};
}

Status parse_eos(const Json& value, std::vector<int32_t>* ids) {
  if (value.is_null()) return {};
  const Json list = value.is_array() ? value : Json::array({value});
  for (const Json& id : list) {
    if (!id.is_number_integer() || id < 0 || id > (1 << 30))
      return Fields::wrong("eos_token_id", value, "a token id or a list of them");
    ids->push_back(id.get<int32_t>());
  }
  return {};
}

}  // namespace

std::span<const std::string_view> known_architectures() {
  return kArchitectureNames;
}

Result<ModelSpec> parse_model_config(const Json& config) {
  if (!config.is_object()) return Fields::wrong("the file", config, "an object");
  NB_TRY(const Family* family, find_family(config));
  const Fields top(config);
  const bool nested = top.value("text_config").is_object();
  const Fields text(nested ? top.value("text_config") : config);

  ModelSpec spec;
  spec.architecture = family->architecture;
  NB_TRY(spec.model_type, text.text("model_type", ""));
  spec.weight_prefix = family->multimodal ? "model.language_model." : "model.";
  NB_TRY(spec.vocab_size, text.count("vocab_size"));
  NB_TRY(spec.hidden_size, text.count("hidden_size"));
  NB_TRY(spec.max_position_embeddings, text.count("max_position_embeddings", 32768));
  NB_TRY(const double eps, text.number("rms_norm_eps", 1e-6));
  spec.rms_norm_eps = static_cast<float>(eps);
  spec.norm_weight_offset = family->qwen3_5 ? 1.0f : 0.0f;
  NB_TRY(const bool text_tied, text.flag("tie_word_embeddings", false));
  NB_TRY(spec.tie_word_embeddings, top.flag("tie_word_embeddings", text_tied));
  NB_TRY(const std::string act, text.text("hidden_act", "silu"));
  if (act != "silu" && act != "swish")
    return make_error(ErrorCode::kUnsupported,
                      "config.json: hidden_act \"{}\" is not supported; supported is silu", act);
  for (const char* bias : {"attention_bias", "mlp_bias"}) {
    NB_TRY(const bool set, text.flag(bias, false));
    if (set)
      return make_error(ErrorCode::kUnsupported,
                        "config.json: {} is true; models with biases are not supported", bias);
  }

  NB_TRY(spec.attention.num_heads, small(text, "num_attention_heads"));
  NB_TRY(spec.attention.num_kv_heads, small(text, "num_key_value_heads", spec.attention.num_heads));
  if (spec.attention.num_heads % spec.attention.num_kv_heads != 0)
    return Fields::wrong("num_key_value_heads", Json(spec.attention.num_kv_heads),
                         format("a divisor of num_attention_heads {}", spec.attention.num_heads));
  NB_TRY(
      spec.attention.head_dim,
      small(text, "head_dim",
            family->qwen3_5 ? 256
                            : std::max<int64_t>(1, spec.hidden_size / spec.attention.num_heads)));
  spec.attention.qk_norm = family->qk_norm;
  NB_TRY(spec.attention.output_gate, text.flag("attn_output_gate", family->qwen3_5));
  NB_TRY(spec.rope, parse_rope(text, *family, spec.attention.head_dim));

  NB_TRY_STATUS(parse_layers(text, *family, &spec));
  if (spec.hybrid()) NB_TRY_STATUS(parse_delta_net(text, &spec.delta_net));
  if (family->moe) {
    NB_TRY(spec.moe.num_experts, small(text, "num_experts", 256));
    NB_TRY(spec.moe.num_experts_per_tok, small(text, "num_experts_per_tok", 8));
    NB_TRY(spec.moe.moe_intermediate_size, small(text, "moe_intermediate_size", 512));
    NB_TRY(spec.moe.shared_expert_intermediate_size,
           small(text, "shared_expert_intermediate_size", 512));
    if (spec.moe.num_experts_per_tok > spec.moe.num_experts)
      return Fields::wrong("num_experts_per_tok", Json(spec.moe.num_experts_per_tok),
                           format("at most num_experts {}", spec.moe.num_experts));
  } else {
    NB_TRY(spec.intermediate_size, text.count("intermediate_size"));
  }

  NB_TRY(const std::string old_dtype, top.text("torch_dtype", "bfloat16"));
  NB_TRY(const std::string top_dtype, top.text("dtype", old_dtype));
  NB_TRY(const std::string dtype, text.text("dtype", top_dtype));
  spec.dtype = dtype == "float32" ? DType::kF32 : dtype == "float16" ? DType::kF16 : DType::kBF16;
  NB_TRY_STATUS(parse_eos(text.value("eos_token_id"), &spec.eos_token_ids));
  if (nested) NB_TRY_STATUS(parse_eos(top.value("eos_token_id"), &spec.eos_token_ids));
  return spec;
}

}  // namespace nibble
