// Blocks to messages on the way in; events to blocks on the way out. A block is open at a time.
#include "server/dialect_anthropic.h"

#include "base/format.h"
#include "net/sse.h"

namespace nibble {
namespace {

using Kind = ReplyEvent::Kind;

std::string text_of(const Json& block, const char* name) {
  const auto it = block.find(name);
  return it != block.end() && it->is_string() ? it->get<std::string>() : std::string();
}

Json image_part(const Json& block) {
  const Json source = block.value("source", Json::object());
  if (!source.is_object()) return {{"type", "image_url"}, {"image_url", {{"url", ""}}}};
  const std::string url =
      text_of(source, "type") == "url"
          ? text_of(source, "url")
          : format("data:{};base64,{}", text_of(source, "media_type"), text_of(source, "data"));
  return {{"type", "image_url"}, {"image_url", {{"url", url}}}};
}

// The text of a string or of text blocks, joined; images go to `images`.
std::string joined_text(const Json& content, Json* images) {
  if (content.is_string()) return content.get<std::string>();
  std::string out;
  if (!content.is_array()) return out;
  bool first = true;
  for (const Json& block : content) {
    if (!block.is_object()) continue;
    if (text_of(block, "type") == "image") {
      images->push_back(image_part(block));
      continue;
    }
    if (!first) out += '\n';
    first = false;
    out += text_of(block, "text");
  }
  return out;
}

std::optional<ApiError> bad(const char* param, std::string message) {
  return ApiError{400, "BadRequestError", std::move(message), param};
}

// One message of the list to one or more chat messages.
std::optional<ApiError> add_message(const Json& message, std::string* system, Json* out) {
  if (!message.is_object() || !message.value("role", Json()).is_string() ||
      !message.contains("content"))
    return bad("messages", "messages: each needs a role and content");
  const auto role = message["role"].get<std::string>();
  const Json& content = message["content"];
  if (role == "system") {
    Json images = Json::array();
    *system += (system->empty() ? "" : "\n") + joined_text(content, &images);
    return std::nullopt;
  }
  if (role != "user" && role != "assistant")
    return bad("messages", format("messages: role \"{}\" is not user or assistant", role));
  if (content.is_string()) {
    out->push_back({{"role", role}, {"content", content}});
    return std::nullopt;
  }
  if (!content.is_array()) return bad("messages", "messages: content is a string or a list");
  Json parts = Json::array();
  Json calls = Json::array();
  std::string reasoning;
  const auto flush_parts = [&] {
    if (parts.empty()) return;
    out->push_back({{"role", role}, {"content", parts}});
    parts = Json::array();
  };
  for (const Json& block : content) {
    if (!block.is_object()) return bad("messages", "messages: a content block is an object");
    const std::string type = text_of(block, "type");
    if (type == "text") {
      parts.push_back({{"type", "text"}, {"text", text_of(block, "text")}});
    } else if (type == "image") {
      parts.push_back(image_part(block));
    } else if (type == "thinking") {
      reasoning += text_of(block, "thinking");
    } else if (type == "redacted_thinking") {
      continue;
    } else if (type == "tool_use") {
      calls.push_back({{"id", text_of(block, "id")},
                       {"type", "function"},
                       {"function",
                        {{"name", text_of(block, "name")},
                         {"arguments", dump_json(block.value("input", Json::object()))}}}});
    } else if (type == "tool_result") {
      Json images = Json::array();
      std::string text = joined_text(block.value("content", Json("")), &images);
      out->push_back(
          {{"role", "tool"}, {"tool_call_id", text_of(block, "tool_use_id")}, {"content", text}});
      if (!images.empty()) out->push_back({{"role", "user"}, {"content", images}});
    } else {
      return bad("messages", format("messages: content block type \"{}\" is not known", type));
    }
  }
  if (role == "user") {
    flush_parts();
    return std::nullopt;
  }
  Json assistant = {{"role", role}, {"content", parts.empty() ? Json() : parts}};
  if (!reasoning.empty()) assistant["reasoning"] = reasoning;
  if (!calls.empty()) assistant["tool_calls"] = calls;
  out->push_back(assistant);
  return std::nullopt;
}

std::optional<ApiError> convert_tools(const Json& body, Json* chat) {
  const auto tools = body.find("tools");
  if (tools != body.end() && !tools->is_null()) {
    if (!tools->is_array()) return bad("tools", "tools: expected a list");
    Json list = Json::array();
    for (const Json& tool : *tools) {
      if (!tool.is_object() || text_of(tool, "name").empty())
        return bad("tools", "tools: each needs a name");
      Json function = {{"name", tool["name"]}};
      if (tool.contains("description")) function["description"] = tool["description"];
      function["parameters"] = tool.value("input_schema", Json::object());
      list.push_back({{"type", "function"}, {"function", function}});
    }
    if (!list.empty()) (*chat)["tools"] = list;
  }
  const auto choice = body.find("tool_choice");
  if (choice == body.end() || choice->is_null()) return std::nullopt;
  const std::string type = choice->is_object() ? text_of(*choice, "type") : "";
  if (type == "auto" || type == "none") {
    if (chat->contains("tools")) (*chat)["tool_choice"] = type;
  } else if (type == "any") {
    (*chat)["tool_choice"] = "required";
  } else if (type == "tool") {
    (*chat)["tool_choice"] = {{"type", "function"},
                              {"function", {{"name", text_of(*choice, "name")}}}};
  } else {
    return bad("tool_choice", "tool_choice: expected a type of auto, any, tool or none");
  }
  if (choice->value("disable_parallel_tool_use", Json(false)) == true)
    (*chat)["parallel_tool_calls"] = false;
  return std::nullopt;
}

class MessagesAnswer final : public Answer {
 public:
  explicit MessagesAnswer(AnswerHead head) : head_(std::move(head)) {}

  void begin(const TokenUsage& usage, std::string* out) override {
    Json message = envelope();
    message["usage"] = usage_of(usage);
    message["content"] = Json::array();
    message["stop_reason"] = nullptr;
    message["stop_sequence"] = nullptr;
    emit("message_start", {{"message", message}}, out);
  }

  void take(const ChoicePiece& piece, const TokenUsage&, std::string* out) override {
    for (const ReplyEvent& event : piece.events) take_event(event, out);
    if (piece.finish == FinishReason::kNone) return;
    finish_ = piece.finish;
    stop_reason_ = piece.stop_reason;
    if (!has_calls_ && !blank_.empty()) text(out);
    close_block(out);
  }

  void end(const TokenUsage& usage, std::string* out) override {
    emit("message_delta",
         {{"delta", {{"stop_reason", reason()}, {"stop_sequence", sequence()}}},
          {"usage", usage_of(usage)}},
         out);
    emit("message_stop", Json::object(), out);
  }

  void fail(const ApiError& error, std::string* out) override {
    *out += sse_event("error", dump_json(messages_error_body(error)));
  }

  Json error(const ApiError& error) const override { return messages_error_body(error); }

  Json whole(const TokenUsage& usage) override {
    Json out = envelope();
    out["content"] = blocks_;
    out["stop_reason"] = reason();
    if (!sequence().is_null()) out["stop_sequence"] = sequence();
    out["usage"] = usage_of(usage);
    return out;
  }

 private:
  Json envelope() const {
    return {{"id", head_.id}, {"type", "message"}, {"role", "assistant"}, {"model", head_.model}};
  }
  static Json usage_of(const TokenUsage& usage) {
    return {{"input_tokens", usage.num_prompt_tokens},
            {"output_tokens", usage.num_completion_tokens}};
  }
  Json sequence() const { return stop_reason_.is_string() ? stop_reason_ : Json(); }
  std::string reason() const {
    if (finish_ == FinishReason::kLength) return "max_tokens";
    return has_calls_ ? "tool_use" : "end_turn";
  }

  void emit(const char* name, Json data, std::string* out) const {
    if (!out) return;
    Json event = {{"type", name}};
    event.update(data);
    *out += sse_event(name, dump_json(event));
  }

  void open_block(const char* type, Json start, std::string* out) {
    if (open_type_ == type) return;
    close_block(out);
    open_type_ = type;
    blocks_.push_back(std::move(start));
    emit("content_block_start", {{"index", blocks_.size() - 1}, {"content_block", blocks_.back()}},
         out);
  }

  void close_block(std::string* out) {
    if (open_type_.empty()) return;
    if (open_type_ == "thinking") {
      blocks_.back()["signature"] = kSignature;
      delta({{"type", "signature_delta"}, {"signature", kSignature}}, out);
    }
    if (open_type_ == "tool_use") {
      Result<Json> input = parse_json(arguments_, "arguments", {.allow_duplicate_keys = true});
      blocks_.back()["input"] = input ? std::move(*input) : Json::object();
    }
    emit("content_block_stop", {{"index", blocks_.size() - 1}}, out);
    open_type_.clear();
  }

  void delta(Json what, std::string* out) const {
    emit("content_block_delta", {{"index", blocks_.size() - 1}, {"delta", std::move(what)}}, out);
  }

  void text(std::string* out) {
    open_block("text", {{"type", "text"}, {"text", ""}}, out);
    blocks_.back()["text"].get_ref<std::string&>() += blank_;
    delta({{"type", "text_delta"}, {"text", blank_}}, out);
    blank_.clear();
  }

  void take_event(const ReplyEvent& event, std::string* out) {
    switch (event.kind) {
      case Kind::kReasoning:
        open_block("thinking", {{"type", "thinking"}, {"thinking", ""}, {"signature", ""}}, out);
        blocks_.back()["thinking"].get_ref<std::string&>() += event.text;
        return delta({{"type", "thinking_delta"}, {"thinking", event.text}}, out);
      case Kind::kContent:
        // Blank text between reasoning and a call makes no block of its own.
        blank_ += event.text;
        if (open_type_ != "text" && blank_.find_first_not_of(" \t\r\n") == std::string::npos)
          return;
        return text(out);
      case Kind::kToolCallBegin:
        has_calls_ = true;
        blank_.clear();
        close_block(out);
        arguments_.clear();
        return open_block("tool_use",
                          {{"type", "tool_use"},
                           {"id", "toolu_" + random_hex(24)},
                           {"name", event.name},
                           {"input", Json::object()}},
                          out);
      case Kind::kToolCallArguments:
        arguments_ += event.text;
        return delta({{"type", "input_json_delta"}, {"partial_json", event.text}}, out);
      case Kind::kToolCallEnd: return close_block(out);
    }
  }

  // Clients send thinking blocks back with their signature; there is nothing to sign here.
  static constexpr const char* kSignature = "nibble";
  AnswerHead head_;
  Json blocks_ = Json::array();
  std::string open_type_;  // of the last block while it grows
  std::string arguments_;
  std::string blank_;  // content not written yet
  bool has_calls_ = false;
  FinishReason finish_ = FinishReason::kNone;
  Json stop_reason_;
};

}  // namespace

std::optional<ApiError> chat_body_from_messages(const Json& body, bool count_only, Json* chat) {
  if (!body.is_object())
    return ApiError{400, "Bad Request", "the body is not a JSON object", nullptr};
  *chat = Json::object();
  if (text_of(body, "model").empty()) return bad("model", "model: field required");
  (*chat)["model"] = body["model"];
  const auto max_tokens = body.find("max_tokens");
  if (!count_only) {
    if (max_tokens == body.end() || max_tokens->is_null())
      return bad("max_tokens", "max_tokens: field required");
    (*chat)["max_tokens"] = *max_tokens;
  }
  const auto messages = body.find("messages");
  if (messages == body.end() || !messages->is_array() || messages->empty())
    return bad("messages", "messages: expected a non-empty list");

  std::string system;
  if (const auto it = body.find("system"); it != body.end() && !it->is_null()) {
    if (it->is_array()) {
      for (const Json& block : *it) {
        const std::string text = block.is_object() ? text_of(block, "text") : "";
        // A client's billing note, of no use to the model.
        if (text.starts_with("x-anthropic-billing-header")) continue;
        system += (system.empty() ? "" : "\n") + text;
      }
    } else if (it->is_string()) {
      system = it->get<std::string>();
    } else {
      return bad("system", "system: expected a string or a list of text blocks");
    }
  }
  Json list = Json::array();
  for (const Json& message : *messages)
    if (auto error = add_message(message, &system, &list)) return error;
  Json all = Json::array();
  if (!system.empty()) all.push_back({{"role", "system"}, {"content", system}});
  for (Json& message : list) all.push_back(std::move(message));
  (*chat)["messages"] = std::move(all);

  if (auto error = convert_tools(body, chat)) return error;
  for (const char* name : {"temperature", "top_p", "top_k", "stream", "chat_template_kwargs"})
    if (body.contains(name)) (*chat)[name] = body[name];
  if (body.contains("stop_sequences") && !body["stop_sequences"].empty())
    (*chat)["stop"] = body["stop_sequences"];
  if (const auto thinking = body.find("thinking");
      thinking != body.end() && thinking->is_object() && !body.contains("chat_template_kwargs"))
    (*chat)["chat_template_kwargs"] = {
        {"enable_thinking", thinking->value("type", Json()) != "disabled"}};
  if (const auto config = body.find("output_config"); config != body.end() && config->is_object()) {
    if (config->contains("effort")) (*chat)["reasoning_effort"] = (*config)["effort"];
    const Json format = config->value("format", Json());
    if (format.is_object() && format.value("type", Json()) == "json_schema")
      (*chat)["response_format"] = {
          {"type", "json_schema"},
          {"json_schema", {{"name", "output"}, {"schema", format.value("schema", Json())}}}};
  }
  return std::nullopt;
}

std::unique_ptr<Answer> make_messages_answer(const AnswerHead& head) {
  return std::make_unique<MessagesAnswer>(head);
}

Json messages_error_body(const ApiError& error) {
  const char* type = "api_error";
  if (error.status == 400 || error.status == 413) type = "invalid_request_error";
  if (error.status == 401) type = "authentication_error";
  if (error.status == 404) type = "not_found_error";
  if (error.status == 429) type = "rate_limit_error";
  if (error.status == 503) type = "overloaded_error";
  return {{"type", "error"}, {"error", {{"type", type}, {"message", error.message}}}};
}

}  // namespace nibble
