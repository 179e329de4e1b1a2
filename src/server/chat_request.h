// The body of POST /v1/chat/completions: fields, defaults and checks as in vLLM. The other chat
// dialects are translated to this form first.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "server/api_error.h"
#include "server/generation_request.h"

namespace nibble {

enum class ToolChoice { kNone, kAuto, kRequired, kNamed };

struct ChatRequest : GenerationRequest {
  Json messages;
  Json tools = Json::array();
  ToolChoice tool_choice = ToolChoice::kNone;
  std::string tool_name;  // of kNamed
  bool parallel_tool_calls = true;
  bool include_reasoning = true;
  bool logprobs = false;
  int top_logprobs = 0;
  bool add_generation_prompt = true;
  bool continue_final_message = false;
  bool return_prompt_text = false;
  Json documents;
  std::string chat_template;  // "" unless the server trusts requests with one
  Json template_kwargs = Json::object();

  bool parses_tools() const { return tool_choice != ToolChoice::kNone; }
};

// Unknown fields are ignored; fields that ask for what nibble cannot do are refused. Returns the
// first error.
std::optional<ApiError> parse_chat_request(const Json& body, const RequestDefaults& defaults,
                                           ChatRequest* request);

// The messages, tools and template fields alone: what rendering a prompt needs (/tokenize).
void read_prompt_fields(Fields& fields, const RequestDefaults& defaults, ChatRequest* out);

}  // namespace nibble
