// Where a request's sampling defaults come from: the checkpoint's generation_config.json, flags,
// and named presets. Each step returns a JSON object with generation_config's keys (temperature,
// top_k, top_p, min_p, repetition_penalty, max_new_tokens), which parse_chat_request() takes.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "base/json.h"
#include "base/result.h"
#include "checkpoint/model_dir.h"

namespace nibble {

struct SamplingDefaultsOptions {
  std::string generation_config = "auto";
  std::string override_generation_config = {};
  std::string sampling_preset = {};

  template <class V>
  void visit(V& v) {
    v.option("generation-config", &generation_config,
             "sampling defaults: auto (the model's generation_config.json), vllm (none), or a "
             "directory that has one");
    v.option("override-generation-config", &override_generation_config,
             "JSON object merged over the generation config");
    v.option("sampling-preset", &sampling_preset,
             "general, creative or tools: sampling defaults over the generation config");
  }
};

struct SamplingDefaults {
  Json config = Json::object();
  // max_new_tokens of a directory or an override caps every request; 0: no cap. From "auto" it is
  // only the default.
  int64_t max_tokens_cap = 0;
};

// At start, once. Errors name the flag.
Result<SamplingDefaults> sampling_defaults(const ModelDir& model,
                                           const SamplingDefaultsOptions& options);

std::span<const std::string_view> known_sampling_presets();
// Per request ("sampling_preset" of the body): the preset's values over `config`. An unknown name
// lists the known ones.
Result<Json> with_sampling_preset(const Json& config, std::string_view name);

}  // namespace nibble
