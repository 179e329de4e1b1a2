// Nulls are written out in whole completions and left out of chunks. A chunk is put together from
// text: its frame is the same for the whole stream, and one is written per token.
#include "server/dialect_chat.h"

#include <algorithm>

#include "base/format.h"
#include "net/sse.h"

namespace nibble {
namespace {

using Kind = ReplyEvent::Kind;

constexpr float kLogprobFloor = -9999.0f;

bool is_blank_text(std::string_view text) {
  return text.find_first_not_of(" \t\r\n") == std::string_view::npos;
}

void put_reasoning(Json* target, const Json& text, ReasoningField field) {
  if (field != ReasoningField::kReasoningContent) (*target)["reasoning"] = text;
  if (field != ReasoningField::kReasoning) (*target)["reasoning_content"] = text;
}

// One entry of `logprobs.content`: the chosen token first, then the most likely ones without it.
Json logprob_entry(const TokenEvent& event, const Tokenizer& tokenizer, int num_top, bool as_id) {
  Json entry = token_logprob(event.token, event.logprob, tokenizer, as_id);
  Json top = Json::array();
  if (num_top > 0) top.push_back(entry);
  for (const TokenLogprob& other : event.top_logprobs) {
    if (static_cast<int>(top.size()) >= num_top) break;
    if (other.token != event.token)
      top.push_back(token_logprob(other.token, other.logprob, tokenizer, as_id));
  }
  entry["top_logprobs"] = std::move(top);
  return entry;
}

class ChatAnswer final : public Answer {
 public:
  ChatAnswer(AnswerHead head, const ChatRequest& request, const Prompt& prompt,
             const Tokenizer& tokenizer, std::string echo)
      : head_(std::move(head)),
        request_(request),
        prompt_(prompt),
        tokenizer_(tokenizer),
        echo_(std::move(echo)),
        choices_(static_cast<size_t>(request.num_choices)) {
    frame_ = format("{{\"id\":{},\"object\":\"chat.completion.chunk\",\"created\":{},\"model\":{},",
                    dump_json(head_.id), head_.created, dump_json(head_.model));
  }

  void begin(const TokenUsage& usage, std::string* out) override {
    for (int i = 0; i < request_.num_choices; ++i) {
      std::string more;
      if (request_.return_token_ids && i == 0)
        more = ",\"prompt_token_ids\":" + dump_json(prompt_.ids);
      if (request_.return_prompt_text && i == 0)
        more += ",\"prompt_text\":" + dump_json(prompt_.text);
      chunk(i, dump_json({{"role", head_.role}, {"content", ""}}), "", "null", "", usage, out,
            more);
      if (!echo_.empty()) chunk(i, dump_json({{"content", echo_}}), "", "null", "", usage, out);
    }
  }

  void take(const ChoicePiece& piece, const TokenUsage& usage, std::string* out) override {
    Choice& choice = choices_[static_cast<size_t>(piece.choice)];
    for (const TokenEvent& event : piece.tokens) {
      if (event.token < 0) continue;
      if (request_.logprobs)
        choice.logprobs.push_back(logprob_entry(event, tokenizer_, request_.top_logprobs,
                                                request_.return_tokens_as_token_ids));
      if (request_.return_token_ids) choice.token_ids.push_back(event.token);
      if (!event.prompt_logprobs.empty() && prompt_logprobs_.is_null())
        prompt_logprobs_ = prompt_logprobs_json(event, prompt_.ids, tokenizer_);
    }
    for (const ReplyEvent& event : piece.events)
      choice.has_calls |= event.kind == Kind::kToolCallBegin;
    if (out) {
      stream(piece, choice, usage, out);
    } else {
      collect(piece, choice);
    }
  }

  void end(const TokenUsage& usage, std::string* out) override {
    if (request_.include_usage) {
      std::string data = frame_ + "\"choices\":[]" + fingerprint() +
                         ",\"usage\":" + dump_json(usage_json(usage, head_.prompt_tokens_details)) +
                         "}";
      *out += sse_event(data);
    }
    *out += sse_event("[DONE]");
  }

  void fail(const ApiError& error, std::string* out) override {
    *out += sse_event(dump_json(error_body(error))) + sse_event("[DONE]");
  }

  Json whole(const TokenUsage& usage) override {
    Json list = Json::array();
    for (size_t i = 0; i < choices_.size(); ++i) {
      Choice& choice = choices_[i];
      list.push_back({{"index", i},
                      {"message", message(choice)},
                      {"logprobs", request_.logprobs ? Json{{"content", choice.logprobs}} : Json()},
                      {"finish_reason", finish(choice)},
                      {"stop_reason", choice.stop_reason},
                      {"token_ids", request_.return_token_ids ? Json(choice.token_ids) : Json()}});
    }
    return {{"id", head_.id},
            {"object", "chat.completion"},
            {"created", head_.created},
            {"model", head_.model},
            {"choices", std::move(list)},
            {"service_tier", nullptr},
            {"system_fingerprint", head_.fingerprint.empty() ? Json() : Json(head_.fingerprint)},
            {"usage", usage_json(usage, head_.prompt_tokens_details)},
            {"prompt_logprobs", prompt_logprobs_},
            {"prompt_token_ids", request_.return_token_ids ? Json(prompt_.ids) : Json()},
            {"prompt_text", request_.return_prompt_text ? Json(prompt_.text) : Json()},
            {"kv_transfer_params", nullptr}};
  }

 private:
  struct Choice {
    std::string reasoning;
    std::string content;
    bool has_reasoning = false;
    bool has_calls = false;
    Json calls = Json::array();
    Json logprobs = Json::array();  // streamed: of tokens whose text is still held back
    Json token_ids = Json::array();
    FinishReason finish = FinishReason::kNone;
    Json stop_reason;
  };

  bool hidden(const ReplyEvent& event) const {
    if (event.kind == Kind::kToolCallEnd) return true;
    if (event.kind == Kind::kReasoning) return !request_.include_reasoning || event.text.empty();
    if (event.kind == Kind::kContent) return event.text.empty();
    return event.call_index > 0 && !request_.parallel_tool_calls;
  }

  std::string finish(const Choice& choice) const {
    // A named function is the client's own choice, so its call ends as any text does; a required
    // one that was cut says so.
    const bool calls_end =
        request_.tool_choice == ToolChoice::kAuto ||
        (request_.tool_choice == ToolChoice::kRequired && choice.finish == FinishReason::kStop);
    return finish_name(choice.finish, choice.has_calls && calls_end);
  }

  std::string call_id() const { return "chatcmpl-tool-" + random_hex(16); }

  void collect(const ChoicePiece& piece, Choice& choice) const {
    for (const ReplyEvent& event : piece.events) {
      if (hidden(event)) continue;
      if (event.kind == Kind::kReasoning) {
        choice.reasoning += event.text;
        choice.has_reasoning = true;
      } else if (event.kind == Kind::kContent) {
        choice.content += event.text;
      } else if (event.kind == Kind::kToolCallBegin) {
        choice.calls.push_back({{"id", call_id()},
                                {"type", "function"},
                                {"function", {{"name", event.name}, {"arguments", ""}}}});
      } else {
        choice.calls.back()["function"]["arguments"].get_ref<std::string&>() += event.text;
      }
    }
    choice.finish = piece.finish;
    choice.stop_reason = piece.stop_reason;
  }

  Json message(const Choice& choice) const {
    const bool constrained =
        request_.tool_choice == ToolChoice::kRequired || request_.tool_choice == ToolChoice::kNamed;
    const bool no_content =
        choice.content.empty() || (choice.has_calls && is_blank_text(choice.content));
    Json content = no_content ? (constrained ? Json("") : Json()) : Json(choice.content);
    if (!echo_.empty()) content = echo_ + choice.content;
    Json out = {{"role", head_.role},        {"content", content}, {"refusal", nullptr},
                {"annotations", nullptr},    {"audio", nullptr},   {"function_call", nullptr},
                {"tool_calls", choice.calls}};
    put_reasoning(&out, choice.has_reasoning ? Json(choice.reasoning) : Json(),
                  head_.reasoning_field);
    return out;
  }

  std::string delta(const ReplyEvent& event) const {
    switch (event.kind) {
      case Kind::kContent: return "{\"content\":" + dump_json(event.text) + "}";
      case Kind::kReasoning: {
        Json delta = Json::object();
        put_reasoning(&delta, event.text, head_.reasoning_field);
        return dump_json(delta);
      }
      case Kind::kToolCallBegin: {
        const std::string id =
            request_.tool_choice == ToolChoice::kAuto ? "call_" + random_hex(24) : call_id();
        return dump_json(
            {{"tool_calls",
              Json::array({{{"index", event.call_index},
                            {"id", id},
                            {"type", "function"},
                            {"function", {{"name", event.name}, {"arguments", ""}}}}})}});
      }
      case Kind::kToolCallArguments:
        return dump_json(
            {{"tool_calls", Json::array({{{"index", event.call_index},
                                          {"function", {{"arguments", event.text}}}}})}});
      case Kind::kToolCallEnd: break;
    }
    return "{}";
  }

  void stream(const ChoicePiece& piece, Choice& choice, const TokenUsage& usage, std::string* out) {
    for (size_t i = 0; i < piece.events.size(); ++i) {
      ReplyEvent event = piece.events[i];
      if (hidden(event)) continue;
      // Several tokens of one kind are one chunk.
      const bool text = event.kind == Kind::kContent || event.kind == Kind::kReasoning;
      while (text && i + 1 < piece.events.size() && piece.events[i + 1].kind == event.kind)
        event.text += piece.events[++i].text;
      chunk(piece.choice, delta(event), take_logprobs(choice), "null", "", usage, out, "",
            take_ids(choice));
    }
    if (piece.finish == FinishReason::kNone) return;
    choice.finish = piece.finish;
    chunk(piece.choice, "{}", take_logprobs(choice), dump_json(finish(choice)),
          ",\"stop_reason\":" + dump_json(piece.stop_reason), usage, out,
          request_.include_usage ? "" : fingerprint(), take_ids(choice));
  }

  std::string take_logprobs(Choice& choice) const {
    if (choice.logprobs.empty()) return "";
    std::string taken = "{\"content\":" + dump_json(choice.logprobs) + "}";
    choice.logprobs = Json::array();
    return taken;
  }
  std::string take_ids(Choice& choice) const {
    if (!request_.return_token_ids) return "";
    std::string taken = ",\"token_ids\":" + dump_json(choice.token_ids);
    choice.token_ids = Json::array();
    return taken;
  }
  std::string fingerprint() const {
    return head_.fingerprint.empty() ? ""
                                     : ",\"system_fingerprint\":" + dump_json(head_.fingerprint);
  }

  // `in_choice` and `more` are further members: of the choice, and of the chunk.
  void chunk(int index, const std::string& delta, const std::string& logprobs,
             const std::string& finish_reason, const std::string& stop_reason,
             const TokenUsage& usage, std::string* out, const std::string& more = "",
             const std::string& in_choice = "") const {
    std::string data = frame_;
    data += "\"choices\":[{\"index\":";
    data += std::to_string(index);
    data += ",\"delta\":" + delta;
    data += ",\"logprobs\":" + (logprobs.empty() ? "null" : logprobs);
    data += ",\"finish_reason\":" + finish_reason;
    data += stop_reason;
    data += in_choice + "}]" + more;
    if (request_.continuous_usage)
      data += ",\"usage\":" + dump_json(usage_json(usage, head_.prompt_tokens_details));
    data += '}';
    *out += sse_event(data);
  }

  AnswerHead head_;
  const ChatRequest& request_;
  const Prompt& prompt_;
  const Tokenizer& tokenizer_;
  std::string echo_;
  std::string frame_;  // what every chunk begins with
  std::vector<Choice> choices_;
  Json prompt_logprobs_;
};

}  // namespace

Json token_logprob(int32_t id, float logprob, const Tokenizer& tokenizer, bool as_id) {
  const std::string_view raw = tokenizer.token_bytes(id);
  Json bytes = Json::array();
  for (const char c : raw) bytes.push_back(static_cast<unsigned char>(c));
  const int32_t ids[] = {id};
  return {{"token", as_id ? format("token_id:{}", id) : tokenizer.decode(ids)},
          {"logprob", std::max(logprob, kLogprobFloor)},
          {"bytes", bytes}};
}

Json prompt_logprobs_json(const TokenEvent& first, std::span<const int32_t> prompt,
                          const Tokenizer& tokenizer) {
  Json out = Json::array({nullptr});
  for (size_t i = 0; i < first.prompt_logprobs.size() && i + 1 < prompt.size(); ++i) {
    Json entry = Json::object();
    const std::vector<TokenLogprob>& row = first.prompt_logprobs[i];
    for (const TokenLogprob& token : row) {
      // The rank of a token is known when it is among the likely ones.
      int rank = 1;
      for (const TokenLogprob& other : row) rank += other.logprob > token.logprob;
      const int32_t ids[] = {token.token};
      entry[std::to_string(token.token)] = {{"logprob", std::max(token.logprob, kLogprobFloor)},
                                            {"rank", rank},
                                            {"decoded_token", tokenizer.decode(ids)}};
    }
    out.push_back(std::move(entry));
  }
  return out;
}

std::unique_ptr<Answer> make_chat_answer(const AnswerHead& head, const ChatRequest& request,
                                         const Prompt& prompt, const Tokenizer& tokenizer,
                                         std::string echo) {
  return std::make_unique<ChatAnswer>(head, request, prompt, tokenizer, std::move(echo));
}

}  // namespace nibble
