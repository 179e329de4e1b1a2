// The body of POST /v1/chat/completions: fields, defaults and checks as in vLLM.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "engine/request.h"
#include "server/api_error.h"

namespace nibble {

struct ChatRequest {
  std::string model;
  Json messages;
  Json tools = Json::array();
  bool parse_tools = false;  // tools given and tool_choice is auto
  SamplingParams sampling;
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
  bool parallel_tool_calls = true;
  bool include_reasoning = true;
  bool logprobs = false;
  int top_logprobs = 0;
  bool add_generation_prompt = true;
  bool continue_final_message = false;
  Json template_kwargs = Json::object();
  std::string request_id;
};

// `generation_config` gives the sampling defaults. Unknown fields are ignored; fields that ask for
// what nibble cannot do yet are 501 rather than ignored. Returns the first error.
std::optional<ApiError> parse_chat_request(const Json& body, const Json& generation_config,
                                           ChatRequest* request);

}  // namespace nibble
