// Items in, items out; the events of a stream carry the same items piece by piece, numbered.
#include "server/dialect_responses.h"

#include "base/format.h"
#include "net/sse.h"

namespace nibble {
namespace {

using Kind = ReplyEvent::Kind;

std::optional<ApiError> bad(const char* param, std::string message) {
  return ApiError{400, "BadRequestError", std::move(message), param};
}

std::string text_of(const Json& object, const char* name) {
  const auto it = object.find(name);
  return it != object.end() && it->is_string() ? it->get<std::string>() : std::string();
}

// input_text, output_text and input_image parts as chat parts; others keep their type and are
// refused where chat messages are checked.
Json chat_content(const Json& content) {
  if (!content.is_array()) return content;
  Json parts = Json::array();
  for (const Json& part : content) {
    const std::string type = part.is_object() ? text_of(part, "type") : "";
    if (type == "input_text" || type == "output_text" || type == "text")
      parts.push_back({{"type", "text"}, {"text", text_of(part, "text")}});
    else if (type == "refusal")
      parts.push_back({{"type", "text"}, {"text", text_of(part, "refusal")}});
    else if (type == "input_image")
      parts.push_back(
          {{"type", "image_url"}, {"image_url", {{"url", text_of(part, "image_url")}}}});
    else
      parts.push_back(part);
  }
  return parts;
}

std::string reasoning_text(const Json& item) {
  std::string out;
  for (const char* list : {"content", "summary"}) {
    const auto it = item.find(list);
    if (it == item.end() || !it->is_array() || !out.empty()) continue;
    for (const Json& part : *it)
      if (part.is_object()) out += text_of(part, "text");
  }
  return out;
}

// Reasoning, text and calls of one turn are separate items but one chat message.
std::optional<ApiError> messages_from_items(const Json& items, Json* messages) {
  Json turn;  // the assistant message that grows
  const auto assistant = [&]() -> Json& {
    if (turn.is_null()) turn = {{"role", "assistant"}, {"content", nullptr}};
    return turn;
  };
  const auto flush = [&] {
    if (!turn.is_null()) messages->push_back(turn);
    turn = nullptr;
  };
  for (const Json& item : items) {
    if (!item.is_object()) return bad("input", "input: each item is an object");
    const std::string type = item.contains("type") ? text_of(item, "type") : "message";
    if (type == "message") {
      const std::string role = text_of(item, "role");
      if (role.empty()) return bad("input", "input: a message needs a role");
      if (role == "assistant" && (turn.is_null() || turn["content"].is_null())) {
        assistant()["content"] = chat_content(item.value("content", Json()));
        continue;
      }
      flush();
      messages->push_back({{"role", role == "developer" ? "system" : role},
                           {"content", chat_content(item.value("content", Json()))}});
    } else if (type == "reasoning") {
      assistant()["reasoning"] = reasoning_text(item);
    } else if (type == "function_call") {
      assistant()["tool_calls"].push_back(
          {{"id", text_of(item, "call_id")},
           {"type", "function"},
           {"function",
            {{"name", text_of(item, "name")}, {"arguments", text_of(item, "arguments")}}}});
    } else if (type == "function_call_output") {
      flush();
      const Json output = item.value("output", Json(""));
      messages->push_back({{"role", "tool"},
                           {"tool_call_id", text_of(item, "call_id")},
                           {"content", output.is_array() ? chat_content(output) : output}});
    } else {
      return bad("input", format("input: item type \"{}\" is not known", type));
    }
  }
  flush();
  return std::nullopt;
}

std::optional<ApiError> convert_tools(const Json& body, Json* chat) {
  const auto tools = body.find("tools");
  if (tools != body.end() && !tools->is_null()) {
    if (!tools->is_array()) return bad("tools", "tools: expected a list");
    Json list = Json::array();
    for (const Json& tool : *tools) {
      const std::string type = tool.is_object() ? text_of(tool, "type") : "";
      if (type != "function")
        return bad("tools",
                   format("tools: type \"{}\" is not available here, only function", type));
      if (text_of(tool, "name").empty()) return bad("tools", "tools: a function needs a name");
      Json function = tool;
      function.erase("type");
      list.push_back({{"type", "function"}, {"function", function}});
    }
    if (!list.empty()) (*chat)["tools"] = list;
  }
  const auto choice = body.find("tool_choice");
  if (choice == body.end() || choice->is_null()) return std::nullopt;
  if (choice->is_object())
    (*chat)["tool_choice"] = {{"type", "function"},
                              {"function", {{"name", text_of(*choice, "name")}}}};
  else if (chat->contains("tools") || *choice == "required")
    (*chat)["tool_choice"] = *choice;
  return std::nullopt;
}

std::optional<ApiError> convert_format(const Json& body, Json* chat) {
  const auto text = body.find("text");
  if (text == body.end() || text->is_null()) return std::nullopt;
  if (!text->is_object()) return bad("text", "text: expected an object");
  const Json shape = text->value("format", Json());
  if (shape.is_null()) return std::nullopt;
  if (!shape.is_object()) return bad("text", "text.format: expected an object");
  if (shape.value("type", Json()) == "json_schema")
    (*chat)["response_format"] = {{"type", "json_schema"}, {"json_schema", shape}};
  else
    (*chat)["response_format"] = shape;
  return std::nullopt;
}

class ResponsesAnswer final : public Answer {
 public:
  ResponsesAnswer(AnswerHead head, const ResponsesRequest& request)
      : head_(std::move(head)), echo_(request.echo), store_(request.store) {}

  void begin(const TokenUsage&, std::string* out) override {
    emit("response.created", {{"response", response("in_progress", nullptr)}}, out);
    emit("response.in_progress", {{"response", response("in_progress", nullptr)}}, out);
  }

  void take(const ChoicePiece& piece, const TokenUsage&, std::string* out) override {
    bool reasons = false;
    for (const ReplyEvent& event : piece.events) {
      reasons |= event.kind == Kind::kReasoning;
      take_event(event, out);
    }
    if (reasons) num_reasoning_tokens_ += static_cast<int>(piece.tokens.size());
    if (piece.finish == FinishReason::kNone) return;
    finish_ = piece.finish;
    if (!has_calls_ && !blank_.empty()) text(out);
    close(out, finish_ == FinishReason::kStop ? "completed" : "incomplete");
  }

  void end(const TokenUsage& usage, std::string* out) override {
    const Json final = whole(usage);
    const char* name = finish_ == FinishReason::kLength  ? "response.incomplete"
                       : finish_ == FinishReason::kAbort ? "response.failed"
                                                         : "response.completed";
    emit(name, {{"response", final}}, out);
  }

  void fail(const ApiError& error, std::string* out) override {
    emit("error", {{"code", error.type}, {"message", error.message}, {"param", error.param}}, out);
    Json failed = response("failed", nullptr);
    failed["error"] = {{"code", "server_error"}, {"message", error.message}};
    emit("response.failed", {{"response", failed}}, out);
  }

  Json whole(const TokenUsage& usage) override {
    const bool cut = finish_ == FinishReason::kLength;
    const bool aborted = finish_ == FinishReason::kAbort || finish_ == FinishReason::kTimeout;
    Json out = response(cut       ? "incomplete"
                        : aborted ? "cancelled"
                                  : "completed",
                        {{"input_tokens", usage.num_prompt_tokens},
                         {"input_tokens_details", {{"cached_tokens", usage.num_cached_tokens}}},
                         {"output_tokens", usage.num_completion_tokens},
                         {"output_tokens_details", {{"reasoning_tokens", num_reasoning_tokens_}}},
                         {"total_tokens", usage.num_prompt_tokens + usage.num_completion_tokens}});
    if (cut) out["incomplete_details"] = {{"reason", "max_output_tokens"}};
    return out;
  }

 private:
  Json response(const char* status, Json usage) const {
    Json out = {{"id", head_.id},
                {"object", "response"},
                {"created_at", head_.created},
                {"status", status},
                {"background", false},
                {"error", nullptr},
                {"incomplete_details", nullptr},
                {"model", head_.model},
                {"output", output_},
                {"store", store_}};
    out.update(echo_);
    out["usage"] = std::move(usage);
    return out;
  }

  void emit(const char* name, Json data, std::string* out) {
    if (!out) return;
    Json event = {{"type", name}, {"sequence_number", sequence_++}};
    event.update(data);
    *out += sse_event(name, dump_json(event));
  }

  Json position() const {
    return {{"item_id", output_.back()["id"]}, {"output_index", output_.size() - 1}};
  }
  Json part_position() const {
    Json out = position();
    out["content_index"] = 0;
    return out;
  }
  void emit_at(const char* name, Json place, Json data, std::string* out) {
    if (!out) return;
    place.update(data);
    emit(name, std::move(place), out);
  }

  void open(Json item, std::string* out) {
    close(out, "completed");
    output_.push_back(std::move(item));
    open_ = true;
    emit("response.output_item.added",
         {{"output_index", output_.size() - 1}, {"item", output_.back()}}, out);
  }
  // `part_type` "output_text" or "reasoning_text".
  void open_part(const char* part_type, std::string* out) {
    Json part = {{"type", part_type}, {"text", ""}};
    if (part_type == std::string_view("output_text")) {
      part["annotations"] = Json::array();
      part["logprobs"] = Json::array();
    }
    emit_at("response.content_part.added", part_position(), {{"part", part}}, out);
    output_.back()["content"].push_back(std::move(part));
  }

  void close(std::string* out, const char* status) {
    if (!open_) return;
    open_ = false;
    Json& item = output_.back();
    item["status"] = status;
    if (item["type"] == "function_call") {
      emit_at("response.function_call_arguments.done", position(),
              {{"name", item["name"]}, {"arguments", item["arguments"]}}, out);
    } else {
      const bool is_text = item["type"] == "message";
      Json place = part_position();
      const Json& part = item["content"][0];
      Json done = {{"text", part["text"]}};
      if (is_text) done["logprobs"] = Json::array();
      emit_at(is_text ? "response.output_text.done" : "response.reasoning_text.done", place, done,
              out);
      emit_at("response.content_part.done", place, {{"part", part}}, out);
    }
    emit("response.output_item.done", {{"output_index", output_.size() - 1}, {"item", item}}, out);
  }

  bool is_open(const char* type) const { return open_ && output_.back()["type"] == type; }

  void add_text(const std::string& text) {
    output_.back()["content"][0]["text"].get_ref<std::string&>() += text;
  }

  void text(std::string* out) {
    if (!is_open("message")) {
      open({{"type", "message"},
            {"id", "msg_" + random_hex(24)},
            {"status", "in_progress"},
            {"role", "assistant"},
            {"content", Json::array()}},
           out);
      open_part("output_text", out);
    }
    add_text(blank_);
    emit_at("response.output_text.delta", part_position(),
            {{"delta", blank_}, {"logprobs", Json::array()}}, out);
    blank_.clear();
  }

  void take_event(const ReplyEvent& event, std::string* out) {
    switch (event.kind) {
      case Kind::kReasoning:
        if (!is_open("reasoning")) {
          open({{"type", "reasoning"},
                {"id", "rs_" + random_hex(24)},
                {"summary", Json::array()},
                {"content", Json::array()},
                {"encrypted_content", nullptr},
                {"status", "in_progress"}},
               out);
          open_part("reasoning_text", out);
        }
        add_text(event.text);
        return emit_at("response.reasoning_text.delta", part_position(), {{"delta", event.text}},
                       out);
      case Kind::kContent:
        blank_ += event.text;
        if (!is_open("message") && blank_.find_first_not_of(" \t\r\n") == std::string::npos) return;
        return text(out);
      case Kind::kToolCallBegin:
        blank_.clear();
        has_calls_ = true;
        return open({{"type", "function_call"},
                     {"id", "fc_" + random_hex(24)},
                     {"call_id", "call_" + random_hex(24)},
                     {"name", event.name},
                     {"arguments", ""},
                     {"status", "in_progress"}},
                    out);
      case Kind::kToolCallArguments:
        output_.back()["arguments"].get_ref<std::string&>() += event.text;
        return emit_at("response.function_call_arguments.delta", position(),
                       {{"delta", event.text}}, out);
      case Kind::kToolCallEnd: return close(out, "completed");
    }
  }

  AnswerHead head_;
  Json echo_;
  bool store_;
  Json output_ = Json::array();
  bool open_ = false;  // the last item still grows
  bool has_calls_ = false;
  std::string blank_;  // content not written yet
  int sequence_ = 0;
  int num_reasoning_tokens_ = 0;
  FinishReason finish_ = FinishReason::kNone;
};

}  // namespace

void ResponseStore::put(const std::string& id, Entry entry) {
  const size_t num_bytes = dump_json(entry.response).size() + dump_json(entry.items).size();
  std::lock_guard lock(mutex_);
  if (by_id_.contains(id)) return;
  stored_.push_back({id, std::move(entry), num_bytes});
  by_id_[id] = std::prev(stored_.end());
  num_bytes_ += num_bytes;
  while (stored_.size() > 1 && (stored_.size() > kMaxResponses || num_bytes_ > kMaxBytes)) {
    num_bytes_ -= stored_.front().num_bytes;
    by_id_.erase(stored_.front().id);
    stored_.pop_front();
  }
}

std::optional<ResponseStore::Entry> ResponseStore::find(const std::string& id) const {
  std::lock_guard lock(mutex_);
  const auto it = by_id_.find(id);
  if (it == by_id_.end()) return std::nullopt;
  return it->second->entry;
}

void ResponseStore::add_running(const std::string& id, std::function<void()> cancel) {
  std::lock_guard lock(mutex_);
  running_[id] = std::move(cancel);
}
void ResponseStore::remove_running(const std::string& id) {
  std::lock_guard lock(mutex_);
  running_.erase(id);
}
bool ResponseStore::cancel(const std::string& id) {
  std::lock_guard lock(mutex_);
  const auto it = running_.find(id);
  if (it == running_.end()) return false;
  it->second();
  return true;
}

std::optional<ApiError> read_responses_request(const Json& body, const ResponseStore& store,
                                               ResponsesRequest* request) {
  if (!body.is_object())
    return ApiError{400, "Bad Request", "the body is not a JSON object", nullptr};
  request->items = Json::array();
  Fields fields(body);
  std::string previous;
  std::string instructions;
  bool background = false;
  fields.text("previous_response_id", &previous);
  fields.text("instructions", &instructions);
  fields.flag("store", &request->store);
  fields.flag("background", &background);
  if (background)
    fields.fail(501, "background", "background responses are not supported; use stream");
  if (fields.error()) return fields.error();
  if (!previous.empty()) {
    const std::optional<ResponseStore::Entry> before = store.find(previous);
    if (!before)
      return ApiError{404, "NotFoundError", format("Response with id '{}' not found.", previous),
                      "previous_response_id"};
    request->items = before->items;
  }
  const Json* input = fields.find("input");
  if (!input) return bad("input", "Field required (parameter=input)");
  if (input->is_string()) {
    request->items.push_back({{"type", "message"}, {"role", "user"}, {"content", *input}});
  } else if (input->is_array()) {
    for (const Json& item : *input) request->items.push_back(item);
  } else {
    return bad("input", "input: expected a string or a list of items (parameter=input)");
  }

  Json& chat = request->chat;
  chat = Json::object();
  Json messages = Json::array();
  if (!instructions.empty()) messages.push_back({{"role", "system"}, {"content", instructions}});
  if (auto error = messages_from_items(request->items, &messages)) return error;
  chat["messages"] = messages;
  if (auto error = convert_tools(body, &chat)) return error;
  if (auto error = convert_format(body, &chat)) return error;
  // Same names, same meaning.
  for (const char* name : {"model", "stream", "temperature", "top_p", "top_k", "min_p",
                           "repetition_penalty", "parallel_tool_calls", "seed", "stop", "priority",
                           "cache_salt", "request_id", "chat_template_kwargs", "sampling_preset"})
    if (body.contains(name)) chat[name] = body[name];
  if (body.contains("max_output_tokens")) chat["max_completion_tokens"] = body["max_output_tokens"];
  const Json reasoning = body.value("reasoning", Json());
  if (reasoning.is_object() && reasoning.contains("effort"))
    chat["reasoning_effort"] = reasoning["effort"];

  request->echo = {{"instructions", instructions.empty() ? Json() : Json(instructions)},
                   {"max_output_tokens", body.value("max_output_tokens", Json())},
                   {"metadata", body.value("metadata", Json::object())},
                   {"parallel_tool_calls", body.value("parallel_tool_calls", Json(true))},
                   {"previous_response_id", previous.empty() ? Json() : Json(previous)},
                   {"reasoning", reasoning.is_object() ? reasoning : Json({{"effort", nullptr}})},
                   {"temperature", body.value("temperature", Json())},
                   {"text", body.value("text", Json({{"format", {{"type", "text"}}}}))},
                   {"tool_choice", body.value("tool_choice", Json("auto"))},
                   {"tools", body.value("tools", Json::array())},
                   {"top_p", body.value("top_p", Json())},
                   {"truncation", "disabled"},
                   {"user", body.value("user", Json())}};
  if (request->echo["tools"].is_null()) request->echo["tools"] = Json::array();
  if (request->echo["tool_choice"].is_null()) request->echo["tool_choice"] = "auto";
  if (request->echo["parallel_tool_calls"].is_null()) request->echo["parallel_tool_calls"] = true;
  return std::nullopt;
}

std::unique_ptr<Answer> make_responses_answer(const AnswerHead& head,
                                              const ResponsesRequest& request) {
  return std::make_unique<ResponsesAnswer>(head, request);
}

}  // namespace nibble
