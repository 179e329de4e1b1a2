// Reads the request field by field; the first thing wrong is reported with its name and value.
#include "server/chat_request.h"

#include <cmath>
#include <limits>

#include "base/format.h"
#include "base/text.h"

namespace nibble {
namespace {

// Reads typed members of one object and remembers the first error.
class Fields {
 public:
  explicit Fields(const Json& body) : body_(body) {}

  // The member, unless it is absent or null.
  const Json* find(const char* name) const {
    const auto it = body_.find(name);
    return it == body_.end() || it->is_null() ? nullptr : &*it;
  }

  void flag(const char* name, bool* out) {
    const Json* value = find(name);
    if (!value) return;
    if (!value->is_boolean()) return reject(name, "expected true or false", *value);
    *out = value->get<bool>();
  }

  void text(const char* name, std::string* out) {
    const Json* value = find(name);
    if (!value) return;
    if (!value->is_string()) return reject(name, "expected a string", *value);
    *out = value->get<std::string>();
  }

  template <class T>
  void integer(const char* name, int64_t low, int64_t high, T* out) {
    const Json* value = find(name);
    if (!value) return;
    const bool whole =
        value->is_number_integer() ||
        (value->is_number_float() && std::nearbyint(value->get<double>()) == value->get<double>() &&
         std::fabs(value->get<double>()) < 9e15);
    if (!whole) return reject(name, "expected an integer", *value);
    if (value->is_number_unsigned() &&
        value->get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
      return reject(name, format("expected at most {}", high), *value);
    const auto number = value->get<int64_t>();
    if (number < low || number > high)
      return reject(name, format("expected a value from {} to {}", low, high), *value);
    *out = static_cast<T>(number);
  }

  // Range [low, high], or (low, high] with `open_low`.
  void number(const char* name, double low, double high, bool open_low, float* out) {
    const Json* value = find(name);
    if (!value) return;
    if (!value->is_number()) return reject(name, "expected a number", *value);
    const auto got = value->get<double>();
    if (!(got <= high) || !(open_low ? got > low : got >= low))
      return reject(name,
                    std::isinf(high)
                        ? format("expected a value {} {}", open_low ? ">" : ">=", low)
                        : format("expected a value in {}{}, {}]", open_low ? "(" : "[", low, high),
                    *value);
    *out = static_cast<float>(got);
  }

  void ids(const char* name, std::vector<int32_t>* out) {
    const Json* value = find(name);
    if (!value) return;
    if (!value->is_array()) return reject(name, "expected a list of token ids", *value);
    for (const Json& id : *value) {
      if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX)
        return reject(name, "expected token ids", id);
      out->push_back(id.get<int32_t>());
    }
  }

  void reject(const char* name, std::string_view expected, const Json& found) {
    std::string shown = dump_json(found);
    if (shown.size() > 80) shown = shown.substr(0, 77) + "...";
    fail(400, name, format("{}: {} (parameter={}, value={})", name, expected, name, shown));
  }
  void fail(int status, const Json& param, std::string message) {
    if (error_) return;
    error_ = ApiError{status, status == 501 ? "NotImplementedError" : "BadRequestError",
                      std::move(message), param};
  }
  const std::optional<ApiError>& error() const { return error_; }

 private:
  const Json& body_;
  std::optional<ApiError> error_;
};

constexpr double kInfinity = std::numeric_limits<double>::infinity();

void read_sampling(Fields& fields, SamplingParams* out) {
  fields.number("temperature", 0, kInfinity, false, &out->temperature);
  fields.number("top_p", 0, 1, true, &out->top_p);
  fields.integer("top_k", -1, INT32_MAX, &out->top_k);
  fields.number("min_p", 0, 1, false, &out->min_p);
  fields.number("repetition_penalty", 0, kInfinity, true, &out->repetition_penalty);
}

void read_stop(Fields& fields, ChatRequest* out) {
  if (const Json* stop = fields.find("stop")) {
    for (const Json& text : stop->is_array() ? *stop : Json::array({*stop})) {
      if (!text.is_string() || text.get_ref<const std::string&>().empty())
        return fields.reject("stop", "expected a non-empty string or a list of them", text);
      out->stop.push_back(text.get<std::string>());
    }
  }
  fields.ids("stop_token_ids", &out->stop_token_ids);
  fields.flag("include_stop_str_in_output", &out->include_stop);
  fields.flag("ignore_eos", &out->ignore_eos);
}

void read_logit_bias(Fields& fields, SamplingParams* out) {
  const Json* bias = fields.find("logit_bias");
  if (!bias) return;
  if (!bias->is_object())
    return fields.reject("logit_bias", "expected an object of token ids and numbers", *bias);
  for (const auto& [key, value] : bias->items()) {
    if (key.empty() || key.size() > 9 || key.find_first_not_of("0123456789") != std::string::npos ||
        !value.is_number())
      return fields.reject("logit_bias", "expected an object of token ids and numbers", *bias);
    out->logit_bias.emplace_back(std::stoi(key), std::clamp(value.get<float>(), -100.0f, 100.0f));
  }
}

void read_tools(Fields& fields, ChatRequest* out) {
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
    out->parse_tools = tools != nullptr;
    return;
  }
  if (*choice == "none") {
    // Tools stay in the prompt; the reply is plain text.
  } else if (!tools) {
    fields.fail(400, "tool_choice", "When using `tool_choice`, `tools` must be set.");
  } else if (*choice == "auto") {
    out->parse_tools = true;
  } else if (*choice == "required" || choice->is_object()) {
    fields.fail(501, "tool_choice",
                "tool_choice \"required\" and named functions need constrained decoding, which "
                "this build does not have; use \"auto\"");
  } else {
    fields.reject("tool_choice", "expected auto, none, required or a named function", *choice);
  }
}

void read_stream(Fields& fields, const Json& body, ChatRequest* out) {
  fields.flag("stream", &out->stream);
  const Json* options = fields.find("stream_options");
  if (!options) return;
  if (!options->is_object()) return fields.reject("stream_options", "expected an object", *options);
  if (!out->stream)
    return fields.fail(400, "stream_options",
                       "Stream options can only be defined when `stream=True`.");
  Fields inner(body["stream_options"]);
  inner.flag("include_usage", &out->include_usage);
  inner.flag("continuous_usage_stats", &out->continuous_usage);
  if (inner.error()) fields.fail(400, inner.error()->param, inner.error()->message);
}

void read_logprobs(Fields& fields, ChatRequest* out) {
  constexpr int kMaxLogprobs = 20;
  fields.flag("logprobs", &out->logprobs);
  fields.integer("top_logprobs", 0, kMaxLogprobs, &out->top_logprobs);
  if (out->top_logprobs != 0 && !out->logprobs)
    fields.fail(400, "top_logprobs", "when using `top_logprobs`, `logprobs` must be set to true.");
  out->sampling.num_logprobs = out->logprobs ? out->top_logprobs : -1;
}

void read_template_fields(Fields& fields, ChatRequest* out) {
  if (const Json* kwargs = fields.find("chat_template_kwargs")) {
    if (!kwargs->is_object())
      return fields.reject("chat_template_kwargs", "expected an object", *kwargs);
    for (const char* reserved : {"chat_template", "tokenize", "messages", "tools"})
      if (kwargs->contains(reserved))
        return fields.reject("chat_template_kwargs", format("`{}` cannot be given here", reserved),
                             *kwargs);
    out->template_kwargs = *kwargs;
  }
  if (const Json* effort = fields.find("reasoning_effort")) {
    if (!effort->is_string())
      return fields.reject("reasoning_effort", "expected none, low, medium or high", *effort);
    if (!out->template_kwargs.contains("enable_thinking"))
      out->template_kwargs["enable_thinking"] = *effort != "none";
  }
  if (fields.find("chat_template"))
    fields.fail(
        400, "chat_template",
        "A chat template in the request is refused; start the server with --chat-template.");
  fields.flag("include_reasoning", &out->include_reasoning);
  fields.flag("add_generation_prompt", &out->add_generation_prompt);
  fields.flag("continue_final_message", &out->continue_final_message);
  if (out->continue_final_message) {
    if (fields.find("add_generation_prompt") && out->add_generation_prompt)
      fields.fail(400, "continue_final_message",
                  "Cannot set both `continue_final_message` and `add_generation_prompt` to True.");
    out->add_generation_prompt = false;
  }
}

// What would change the result if it were ignored.
void refuse_unsupported(Fields& fields) {
  if (const Json* shape = fields.find("response_format");
      shape && !(shape->is_object() && shape->value("type", Json()) == "text"))
    fields.fail(501, "response_format", "response_format other than text is not supported yet");
  for (const char* name :
       {"structured_outputs", "prompt_logprobs", "bad_words", "allowed_token_ids",
        "thinking_token_budget", "repetition_detection", "truncate_prompt_tokens"}) {
    const Json* value = fields.find(name);
    if (value && !value->empty() && !(value->is_number() && *value == -1))
      fields.fail(501, name, format("{} is not supported yet", name));
  }
  for (const char* name : {"echo", "use_beam_search"})
    if (const Json* value = fields.find(name); value && *value == true)
      fields.fail(501, name, format("{} is not supported yet", name));
}

}  // namespace

std::optional<ApiError> parse_chat_request(const Json& body, const Json& generation_config,
                                           ChatRequest* request) {
  if (!body.is_object())
    return ApiError{400, "Bad Request", "the body is not a JSON object", nullptr};
  Fields defaults(generation_config);
  read_sampling(defaults, &request->sampling);  // a bad default leaves ours

  Fields fields(body);
  fields.text("model", &request->model);
  const Json* messages = fields.find("messages");
  if (!messages)
    fields.fail(400, "messages", "Field required (parameter=messages)");
  else if (!messages->is_array() || messages->empty())
    fields.reject("messages", "expected a non-empty list", *messages);
  else
    request->messages = *messages;

  read_sampling(fields, &request->sampling);
  fields.number("presence_penalty", -2, 2, false, &request->sampling.presence_penalty);
  fields.number("frequency_penalty", -2, 2, false, &request->sampling.frequency_penalty);
  fields.integer("min_tokens", 0, INT32_MAX, &request->sampling.min_tokens);
  int64_t seed = -1;
  fields.integer("seed", INT64_MIN, INT64_MAX, &seed);
  if (seed != -1) request->sampling.seed = seed;
  for (const char* name : {"max_completion_tokens", "max_tokens"}) {
    const Json* value = fields.find(name);
    if (!value || request->max_tokens) continue;
    int64_t limit = 0;
    fields.integer(name, INT64_MIN, INT64_MAX, &limit);
    if (limit < 1) fields.fail(400, name, format("{} must be at least 1, got {}.", name, limit));
    request->max_tokens = limit;
    request->max_tokens_name = name;
  }
  if (request->max_tokens && request->sampling.min_tokens > *request->max_tokens)
    fields.fail(400, "min_tokens",
                format("min_tokens must be less than or equal to max_tokens={}, got {}.",
                       *request->max_tokens, request->sampling.min_tokens));
  fields.integer("n", 1, 128, &request->num_choices);
  if (request->num_choices > 1 && request->sampling.temperature < 1e-5f)
    fields.fail(400, "n",
                format("n must be 1 when using greedy sampling, got {}.", request->num_choices));
  fields.flag("skip_special_tokens", &request->skip_special_tokens);
  if (fields.find("parallel_tool_calls"))
    fields.flag("parallel_tool_calls", &request->parallel_tool_calls);
  fields.text("request_id", &request->request_id);
  read_stop(fields, request);
  read_logit_bias(fields, &request->sampling);
  read_tools(fields, request);
  read_stream(fields, body, request);
  read_logprobs(fields, request);
  read_template_fields(fields, request);
  refuse_unsupported(fields);
  return fields.error();
}

}  // namespace nibble
