// Messages, tools and template fields; the rest is read by generation_request.
#include "server/chat_request.h"

#include <algorithm>

#include "base/format.h"

namespace nibble {
namespace {

void read_messages(Fields& fields, const RequestDefaults& defaults, ChatRequest* out) {
  const Json* messages = fields.find("messages");
  if (!messages) return fields.fail(400, "messages", "Field required (parameter=messages)");
  if (!messages->is_array() || messages->empty())
    return fields.reject("messages", "expected a non-empty list", *messages);
  out->messages = *messages;
  if (defaults.system_prompt.empty()) return;
  for (const Json& message : *messages)
    if (message.is_object() &&
        (message.value("role", Json()) == "system" || message.value("role", Json()) == "developer"))
      return;
  out->messages.insert(out->messages.begin(),
                       {{"role", "system"}, {"content", defaults.system_prompt}});
}

void read_tools(Fields& fields, const RequestDefaults& defaults, ChatRequest* out) {
  const Json* tools = fields.find("tools");
  if (tools) {
    if (!tools->is_array()) return fields.reject("tools", "expected a list", *tools);
    if (tools->empty())
      return fields.fail(400, "tools", "`tools` must not be an empty array (parameter=tools)");
    for (const Json& tool : *tools) {
      const auto function = tool.is_object() ? tool.find("function") : tool.end();
      if (!tool.is_object() || tool.value("type", Json("function")) != "function" ||
          function == tool.end() || !function->is_object() ||
          !function->value("name", Json()).is_string())
        return fields.reject(
            "tools", "expected {\"type\": \"function\", \"function\": {\"name\": ...}}", tool);
    }
    out->tools = *tools;
  }
  const Json* choice = fields.find("tool_choice");
  if (!choice) {
    out->tool_choice = tools ? ToolChoice::kAuto : ToolChoice::kNone;
  } else if (*choice == "none") {
    out->tool_choice = ToolChoice::kNone;  // tools stay in the prompt; the reply is plain text
    if (defaults.exclude_tools_when_none) out->tools = Json::array();
  } else if (!tools) {
    fields.fail(400, "tool_choice", "When using `tool_choice`, `tools` must be set.");
  } else if (*choice == "auto") {
    out->tool_choice = ToolChoice::kAuto;
  } else if (*choice == "required") {
    out->tool_choice = ToolChoice::kRequired;
  } else if (choice->is_object()) {
    const auto function = choice->find("function");
    if (function == choice->end() || !function->is_object() ||
        !function->value("name", Json()).is_string())
      return fields.reject("tool_choice",
                           "expected {\"type\": \"function\", \"function\": {\"name\": ...}}",
                           *choice);
    out->tool_choice = ToolChoice::kNamed;
    out->tool_name = (*function)["name"].get<std::string>();
    const bool known = std::ranges::any_of(
        *tools, [&](const Json& tool) { return tool["function"]["name"] == out->tool_name; });
    if (!known) fields.reject("tool_choice", "the named function is not one of `tools`", *choice);
  } else {
    fields.reject("tool_choice", "expected auto, none, required or a named function", *choice);
  }
}

void read_logprobs(Fields& fields, const RequestDefaults& defaults, ChatRequest* out) {
  fields.flag("logprobs", &out->logprobs);
  int64_t count = 0;
  fields.integer("top_logprobs", -1, INT32_MAX, &count);
  if (count != 0 && !out->logprobs)
    fields.fail(400, "top_logprobs", "when using `top_logprobs`, `logprobs` must be set to true.");
  check_logprobs(fields, "top_logprobs", count, defaults);
  out->top_logprobs = static_cast<int>(count == -1 ? INT32_MAX : count);
  out->num_logprobs = out->logprobs ? out->top_logprobs : -1;
}

void read_template_fields(Fields& fields, const RequestDefaults& defaults, ChatRequest* out) {
  out->template_kwargs = defaults.template_kwargs;
  bool thinking_given = false;
  if (const Json* kwargs = fields.find("chat_template_kwargs")) {
    if (!kwargs->is_object())
      return fields.reject("chat_template_kwargs", "expected an object", *kwargs);
    for (const char* reserved :
         {"chat_template", "tokenize", "messages", "tools", "add_generation_prompt"})
      if (kwargs->contains(reserved))
        return fields.reject("chat_template_kwargs", format("`{}` cannot be given here", reserved),
                             *kwargs);
    out->template_kwargs.update(*kwargs);
    thinking_given = kwargs->contains("enable_thinking");
  }
  if (const Json* effort = fields.find("reasoning_effort")) {
    static constexpr const char* kEfforts[] = {"none", "minimal", "low", "medium",
                                               "high", "xhigh",   "max"};
    if (!effort->is_string() ||
        std::ranges::none_of(kEfforts, [&](const char* known) { return *effort == known; }))
      return fields.reject("reasoning_effort",
                           "expected none, minimal, low, medium, high, xhigh or max", *effort);
    if (!thinking_given) out->template_kwargs["enable_thinking"] = *effort != "none";
  }
  if (const Json* text = fields.find("chat_template")) {
    if (!text->is_string()) return fields.reject("chat_template", "expected a string", *text);
    if (!defaults.trust_request_template)
      return fields.fail(400, "chat_template",
                         "A chat template in the request is refused; start the server with "
                         "--trust-request-chat-template, or --chat-template.");
    out->chat_template = text->get<std::string>();
  }
  if (const Json* documents = fields.find("documents")) {
    if (!documents->is_array()) return fields.reject("documents", "expected a list", *documents);
    out->documents = *documents;
  }
  fields.flag("add_generation_prompt", &out->add_generation_prompt);
  fields.flag("continue_final_message", &out->continue_final_message);
  if (out->continue_final_message) {
    if (fields.find("add_generation_prompt") && out->add_generation_prompt)
      fields.fail(400, "continue_final_message",
                  "Cannot set both `continue_final_message` and `add_generation_prompt` to True.");
    out->add_generation_prompt = false;
  }
}

}  // namespace

void read_prompt_fields(Fields& fields, const RequestDefaults& defaults, ChatRequest* out) {
  read_messages(fields, defaults, out);
  read_tools(fields, defaults, out);
  read_template_fields(fields, defaults, out);
}

std::optional<ApiError> parse_chat_request(const Json& body, const RequestDefaults& defaults,
                                           ChatRequest* request) {
  if (!body.is_object())
    return ApiError{400, "Bad Request", "the body is not a JSON object", nullptr};
  Fields fields(body);
  read_prompt_fields(fields, defaults, request);
  read_generation(fields, body, defaults, request);
  if (request->max_tokens == 0)  // only /v1/completions can ask for an echo alone
    fields.fail(400, request->max_tokens_name, "max_tokens must be at least 1, got 0.");
  fields.flag("parallel_tool_calls", &request->parallel_tool_calls);
  fields.flag("include_reasoning", &request->include_reasoning);
  fields.flag("return_prompt_text", &request->return_prompt_text);
  fields.integer("thinking_token_budget", -1, INT32_MAX, &request->sampling.thinking_token_budget);
  read_logprobs(fields, defaults, request);
  return fields.error();
}

}  // namespace nibble
