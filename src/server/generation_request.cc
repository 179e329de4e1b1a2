// Ranges and messages as in vLLM; what would change the result if it were ignored is refused.
#include "server/generation_request.h"

#include <algorithm>
#include <limits>

#include "base/format.h"
#include "server/sampling_presets.h"

namespace nibble {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kMaxChoices = 16384;
constexpr size_t kMaxStops = 64;
constexpr size_t kMaxBias = 4096;

void read_sampling(Fields& fields, SamplingParams* out) {
  fields.number("temperature", 0, kInfinity, false, &out->temperature);
  fields.number("top_p", 0, 1, true, &out->top_p);
  fields.integer("top_k", -1, INT32_MAX, &out->top_k);
  fields.number("min_p", 0, 1, false, &out->min_p);
  fields.number("repetition_penalty", 0, kInfinity, true, &out->repetition_penalty);
}

void read_logit_bias(Fields& fields, SamplingParams* out) {
  const Json* bias = fields.find("logit_bias");
  if (!bias) return;
  constexpr const char* kExpected = "expected an object of token ids and numbers";
  if (!bias->is_object() || bias->size() > kMaxBias)
    return fields.reject("logit_bias", kExpected, *bias);
  for (const auto& [key, value] : bias->items()) {
    if (key.empty() || key.size() > 9 || key.find_first_not_of("0123456789") != std::string::npos ||
        !value.is_number())
      return fields.reject("logit_bias", kExpected, *bias);
    out->logit_bias.emplace_back(std::stoi(key), std::clamp(value.get<float>(), -100.0f, 100.0f));
  }
}

void read_limits(Fields& fields, const RequestDefaults& defaults, GenerationRequest* out) {
  for (const char* name : {"max_completion_tokens", "max_tokens"}) {
    if (!fields.find(name) || out->max_tokens) continue;
    int64_t limit = 1;
    fields.integer(name, INT64_MIN, INT64_MAX, &limit);
    const bool prompt_only = limit == 0 && out->echo;
    if (limit < 1 && !prompt_only)
      fields.fail(400, name,
                  format("max_tokens must be at least 1, got {}. (parameter={}, value={})", limit,
                         name, limit));
    out->max_tokens = limit;
    out->max_tokens_name = name;
  }
  if (const auto cap = defaults.generation_config.find("max_new_tokens");
      cap != defaults.generation_config.end() && cap->is_number_integer()) {
    const auto most = cap->get<int64_t>();
    if (most > 0 && !out->max_tokens) out->max_tokens = most;
  }
  if (defaults.max_tokens_cap > 0)
    out->max_tokens = std::min(out->max_tokens.value_or(INT64_MAX), defaults.max_tokens_cap);
  fields.integer("min_tokens", 0, INT32_MAX, &out->sampling.min_tokens);
  if (out->max_tokens && out->sampling.min_tokens > *out->max_tokens)
    fields.fail(400, "min_tokens",
                format("min_tokens must be less than or equal to max_tokens={}, got {}.",
                       *out->max_tokens, out->sampling.min_tokens));
}

void read_stream(Fields& fields, const RequestDefaults& defaults, GenerationRequest* out) {
  fields.flag("stream", &out->stream);
  const Json* options = fields.find("stream_options");
  if (options && !options->is_object())
    return fields.reject("stream_options", "expected an object", *options);
  if (options && !out->stream)
    return fields.fail(400, "stream_options",
                       "Stream options can only be defined when `stream=True`.");
  if (options) {
    Fields inner(*options);
    inner.flag("include_usage", &out->include_usage);
    inner.flag("continuous_usage_stats", &out->continuous_usage);
    if (inner.error()) fields.fail(400, inner.error()->param, inner.error()->message);
  }
  if (!out->include_usage) out->continuous_usage = false;
  if (out->stream && defaults.force_include_usage)
    out->include_usage = out->continuous_usage = true;
}

void read_repetition(Fields& fields, RepetitionDetection* out) {
  const Json* rule = fields.find("repetition_detection");
  if (!rule) return;
  if (!rule->is_object()) return fields.reject("repetition_detection", "expected an object", *rule);
  Fields inner(*rule);
  inner.integer("max_pattern_size", 0, 1 << 16, &out->max_pattern_size);
  inner.integer("min_pattern_size", 0, 1 << 16, &out->min_pattern_size);
  inner.integer("min_count", 2, 1 << 16, &out->min_count);
  out->min_pattern_size = std::max(out->min_pattern_size, 1);
  if (inner.error()) return fields.fail(400, "repetition_detection", inner.error()->message);
  if (out->max_pattern_size > 0 && out->min_pattern_size > out->max_pattern_size)
    fields.reject("repetition_detection", "min_pattern_size is above max_pattern_size", *rule);
}

// A rule the output must follow; its grammar is checked when the request starts.
void read_structured(Fields& fields, const Json& body, StructuredOutput* out) {
  Result<StructuredOutput> parsed = parse_structured_output(body);
  if (parsed) {
    *out = std::move(*parsed);
    return;
  }
  const char* field = fields.find("structured_outputs") ? "structured_outputs" : "response_format";
  fields.fail(http_status(parsed.error().code), field, parsed.error().message);
}

}  // namespace

void check_logprobs(Fields& fields, const char* name, int64_t count,
                    const RequestDefaults& defaults) {
  if (defaults.max_logprobs < 0) return;
  if (count == -1 || count > defaults.max_logprobs)
    fields.fail(400, name,
                format("Requested sample logprobs of {}, which is greater than max allowed: {} "
                       "(parameter={}, value={})",
                       count, defaults.max_logprobs, name, count));
}

void read_generation(Fields& fields, const Json& body, const RequestDefaults& defaults,
                     GenerationRequest* out) {
  Json config = defaults.generation_config;
  std::string preset;
  fields.text("sampling_preset", &preset);
  if (!preset.empty()) {
    Result<Json> merged = with_sampling_preset(config, preset);
    if (merged)
      config = std::move(*merged);
    else
      fields.fail(400, "sampling_preset", merged.error().message);
  }
  Fields file(config);
  read_sampling(file, &out->sampling);  // a bad default leaves ours
  fields.text("model", &out->model);
  read_sampling(fields, &out->sampling);
  fields.number("presence_penalty", -2, 2, false, &out->sampling.presence_penalty);
  fields.number("frequency_penalty", -2, 2, false, &out->sampling.frequency_penalty);
  int64_t seed = -1;
  fields.integer("seed", INT64_MIN, INT64_MAX, &seed);
  if (seed != -1) out->sampling.seed = seed;
  fields.flag("echo", &out->echo);
  read_limits(fields, defaults, out);
  fields.integer("n", 1, kMaxChoices, &out->num_choices);
  if (out->num_choices > 1 && out->sampling.temperature < 1e-5f)
    fields.fail(400, "n",
                format("n must be 1 when using greedy sampling, got {}.", out->num_choices));
  fields.texts("stop", &out->stop, kMaxStops);
  fields.ids("stop_token_ids", &out->stop_token_ids, 1024);
  fields.flag("include_stop_str_in_output", &out->include_stop);
  fields.flag("ignore_eos", &out->ignore_eos);
  fields.flag("skip_special_tokens", &out->skip_special_tokens);
  bool ignored = true;
  fields.flag("spaces_between_special_tokens", &ignored);  // the tokenizers here add none
  fields.flag("add_special_tokens", &ignored);
  read_logit_bias(fields, &out->sampling);
  fields.texts("bad_words", &out->bad_words, 1024);
  fields.ids("allowed_token_ids", &out->sampling.allowed_token_ids);
  if (const Json* allowed = fields.find("allowed_token_ids"); allowed && allowed->empty())
    fields.fail(400, "allowed_token_ids",
                "allowed_token_ids is not None and empty! (parameter=allowed_token_ids)");
  read_stream(fields, defaults, out);
  fields.flag("return_token_ids", &out->return_token_ids);
  fields.flag("return_tokens_as_token_ids", &out->return_tokens_as_token_ids);
  if (fields.find("prompt_logprobs")) {
    int64_t count = 0;
    fields.integer("prompt_logprobs", -1, INT32_MAX, &count);
    if (out->stream)
      fields.fail(400, "prompt_logprobs",
                  "`prompt_logprobs` are not available when `stream=True`.");
    check_logprobs(fields, "prompt_logprobs", count, defaults);
    out->sampling.num_prompt_logprobs = static_cast<int>(count == -1 ? INT32_MAX : count);
  }
  if (fields.find("truncate_prompt_tokens")) {
    int64_t count = 0;
    fields.integer("truncate_prompt_tokens", -1, INT32_MAX, &count);
    out->truncate_prompt_tokens = count;
  }
  if (const Json* side = fields.find("truncation_side")) {
    if (*side != "left" && *side != "right")
      fields.reject("truncation_side", "expected left or right", *side);
    out->truncate_left = *side != "right";
  }
  fields.integer("priority", INT32_MIN, INT32_MAX, &out->priority);
  fields.text("cache_salt", &out->cache_salt);
  if (fields.find("cache_salt") && out->cache_salt.empty())
    fields.fail(400, "cache_salt",
                "Parameter 'cache_salt' must be a non-empty string if provided.");
  fields.text("request_id", &out->request_id);
  read_repetition(fields, &out->repetition);
  read_structured(fields, body, &out->structured);
  if (const auto beam = body.find("use_beam_search"); beam != body.end() && *beam == true)
    fields.fail(501, "use_beam_search", "Beam search is not supported.");
}

}  // namespace nibble
