// The layers, lowest first: generation_config.json, the override, the preset. A request's own
// fields come on top, in parse_chat_request().
#include "server/sampling_presets.h"

#include <algorithm>
#include <array>

#include "base/file.h"
#include "base/format.h"
#include "base/text.h"

namespace nibble {
namespace {

struct Preset {
  std::string_view name;
  double temperature, top_p;
  int top_k;
  double repetition_penalty;
};
constexpr std::array kPresets = {
    Preset{"general", 0.7, 0.95, 20, 1.0},
    Preset{"creative", 0.7, 0.95, 20, 1.05},
    Preset{"tools", 0.4, 0.95, 20, 1.0},
};
constexpr std::array<std::string_view, 3> kNames = {"general", "creative", "tools"};

// The number `key` must be, if it is there.
Status check_numbers(const Json& config, std::string_view what) {
  for (const char* key :
       {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens"}) {
    const auto it = config.find(key);
    if (it == config.end() || it->is_null() || it->is_number()) continue;
    return make_error(ErrorCode::kInvalidArgument, "{}: {} is {}, expected a number", what, key,
                      dump_json(*it));
  }
  return {};
}

int64_t cap_of(const Json& config) {
  const auto it = config.find("max_new_tokens");
  return it != config.end() && it->is_number_integer() ? std::max<int64_t>(0, it->get<int64_t>())
                                                       : 0;
}

}  // namespace

std::span<const std::string_view> known_sampling_presets() {
  return kNames;
}

Result<Json> with_sampling_preset(const Json& config, std::string_view name) {
  const auto preset = std::ranges::find(kPresets, name, &Preset::name);
  if (preset == kPresets.end()) {
    const std::string nearest = nearest_name(name, kNames);
    return make_error(ErrorCode::kInvalidArgument,
                      "sampling_preset \"{}\" is not known{}; known are {}", name,
                      nearest.empty() ? "" : format(", did you mean {}?", nearest),
                      join(std::span<const std::string_view>(kNames), ", "));
  }
  Json out = config.is_object() ? config : Json::object();
  out["temperature"] = preset->temperature;
  out["top_p"] = preset->top_p;
  out["top_k"] = preset->top_k;
  out["repetition_penalty"] = preset->repetition_penalty;
  out.erase("min_p");
  return out;
}

Result<SamplingDefaults> sampling_defaults(const ModelDir& model,
                                           const SamplingDefaultsOptions& options) {
  SamplingDefaults defaults;
  if (options.generation_config == "auto") {
    if (model.generation_config().is_object()) defaults.config = model.generation_config();
    NB_TRY_STATUS(check_numbers(defaults.config, "generation_config.json"));
  } else if (options.generation_config != "vllm") {
    const std::string path = options.generation_config + "/generation_config.json";
    const Result<std::string> text = read_file(path, size_t{1} << 20);
    if (!text)
      return make_error(text.error().code,
                        "--generation-config {}: {}; give auto, vllm, or a directory with a "
                        "generation_config.json",
                        options.generation_config, text.error().message);
    NB_TRY(defaults.config, parse_json(*text, path));
    if (!defaults.config.is_object())
      return make_error(ErrorCode::kInvalidArgument, "{}: must hold a JSON object", path);
    NB_TRY_STATUS(check_numbers(defaults.config, path));
    defaults.max_tokens_cap = cap_of(defaults.config);
  }
  if (!options.override_generation_config.empty()) {
    NB_TRY(const Json extra,
           parse_json(options.override_generation_config, "--override-generation-config"));
    if (!extra.is_object())
      return make_error(ErrorCode::kInvalidArgument,
                        "--override-generation-config: must be a JSON object");
    NB_TRY_STATUS(check_numbers(extra, "--override-generation-config"));
    for (const auto& [key, value] : extra.items()) defaults.config[key] = value;
    if (cap_of(extra) > 0) defaults.max_tokens_cap = cap_of(extra);
  }
  if (!options.sampling_preset.empty()) {
    Result<Json> config = with_sampling_preset(defaults.config, options.sampling_preset);
    if (!config)
      return make_error(ErrorCode::kInvalidArgument, "--sampling-preset: {}",
                        config.error().message);
    defaults.config = *std::move(config);
  }
  return defaults;
}

}  // namespace nibble
