// What a request of any dialect can ask of the generation itself: sampling, ends, choices,
// streaming, log-probabilities. The dialects add where the prompt comes from.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "engine/request.h"
#include "server/constraint.h"
#include "server/fields.h"

namespace nibble {

// What the server sets for every request; a request's own fields go before.
struct RequestDefaults {
  Json generation_config = Json::object();  // temperature, top_k, ..., max_new_tokens
  int64_t max_tokens_cap = 0;               // of every request; 0: none
  int max_logprobs = 20;                    // -1: no limit
  Json template_kwargs = Json::object();
  std::string system_prompt;  // for chats without a system message
  bool trust_request_template = false;
  bool exclude_tools_when_none = false;
  bool force_include_usage = false;
};

struct GenerationRequest {
  std::string model;
  SamplingParams sampling;
  std::vector<std::string> bad_words;
  std::optional<int64_t> max_tokens;
  std::string max_tokens_name = "max_tokens";  // as the client called it
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  bool include_stop = false;
  bool ignore_eos = false;
  bool skip_special_tokens = true;
  int num_choices = 1;
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;
  int num_logprobs = -1;  // of generated tokens; -1: none
  bool return_token_ids = false;
  bool return_tokens_as_token_ids = false;
  std::optional<int64_t> truncate_prompt_tokens;  // -1: to what fits
  bool truncate_left = true;                      // keep the end
  bool echo = false;
  int priority = 0;
  std::string cache_salt;
  RepetitionDetection repetition;
  StructuredOutput structured;
  std::string request_id;
};

// Reads every field but logprobs (whose form differs between chat and completions).
void read_generation(Fields& fields, const Json& body, const RequestDefaults& defaults,
                     GenerationRequest* out);

// 400 when `count` log-probabilities are more than the server gives; -1 asks for all.
void check_logprobs(Fields& fields, const char* name, int64_t count,
                    const RequestDefaults& defaults);

}  // namespace nibble
