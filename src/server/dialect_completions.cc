// Text in, text out: no reasoning, no tools, no role chunk.
#include "server/dialect_completions.h"

#include <algorithm>

#include "base/format.h"
#include "net/sse.h"
#include "server/dialect_chat.h"

namespace nibble {
namespace {

constexpr size_t kMaxPrompts = 1024;
constexpr int kDefaultMaxTokens = 16;

void read_ids(Fields& fields, const Json& list, int32_t vocab_size, std::vector<int32_t>* out) {
  out->reserve(list.size());
  for (const Json& id : list) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 ||
        (id.is_number_unsigned() && id.get<uint64_t>() > INT32_MAX) ||
        id.get<int64_t>() >= vocab_size)
      return fields.reject("prompt", format("expected token ids below {}", vocab_size), id);
    out->push_back(id.get<int32_t>());
  }
}

void read_prompt(Fields& fields, int32_t vocab_size, CompletionRequest* out) {
  const Json* prompt = fields.find("prompt");
  if (!prompt)
    return fields.fail(400, "prompt",
                       "Either prompt or prompt_embeds must be provided and non-empty. "
                       "(parameter=prompt)");
  constexpr const char* kForms =
      "expected a string, a list of strings, token ids or a list of them";
  if (prompt->is_string()) {
    out->texts.push_back(prompt->get<std::string>());
    return;
  }
  if (!prompt->is_array() || prompt->empty()) return fields.reject("prompt", kForms, *prompt);
  const Json& first = prompt->front();
  if (first.is_number()) {
    out->token_ids.emplace_back();
    return read_ids(fields, *prompt, vocab_size, &out->token_ids.back());
  }
  if (prompt->size() > kMaxPrompts)
    return fields.reject("prompt", format("expected at most {} prompts", kMaxPrompts), *prompt);
  for (const Json& one : *prompt) {
    if (one.type() != first.type()) return fields.reject("prompt", kForms, one);
    if (one.is_string()) {
      out->texts.push_back(one.get<std::string>());
    } else if (one.is_array()) {
      out->token_ids.emplace_back();
      read_ids(fields, one, vocab_size, &out->token_ids.back());
      if (fields.error()) return;
    } else {
      return fields.reject("prompt", kForms, one);
    }
  }
}

// The parallel lists of a completion's logprobs.
struct LogprobLists {
  Json offsets = Json::array();
  Json logprobs = Json::array();
  Json tokens = Json::array();
  Json top = Json::array();

  Json take() {
    Json out = {{"text_offset", std::move(offsets)},
                {"token_logprobs", std::move(logprobs)},
                {"tokens", std::move(tokens)},
                {"top_logprobs", std::move(top)}};
    *this = {};
    return out;
  }
};

int64_t num_characters(std::string_view text) {
  return std::ranges::count_if(
      text, [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

class CompletionAnswer final : public Answer {
 public:
  CompletionAnswer(AnswerHead head, const CompletionRequest& request,
                   const std::vector<Prompt>& prompts, const Tokenizer& tokenizer)
      : head_(std::move(head)),
        request_(request),
        prompts_(prompts),
        tokenizer_(tokenizer),
        choices_(prompts.size() * static_cast<size_t>(request.num_choices)) {
    frame_ = format("{{\"id\":{},\"object\":\"text_completion\",\"created\":{},\"model\":{},",
                    dump_json(head_.id), head_.created, dump_json(head_.model));
  }

  void begin(const TokenUsage&, std::string*) override {}

  void take(const ChoicePiece& piece, const TokenUsage& usage, std::string* out) override {
    Choice& choice = choices_[static_cast<size_t>(piece.choice)];
    std::string text;
    for (const TokenEvent& event : piece.tokens) {
      if (!choice.begun) begin_choice(piece.choice, choice, event, &text);
      choice.begun = true;
      if (event.token < 0 || prompt_only()) continue;
      if (request_.num_logprobs >= 0)
        add_logprob(choice, event.token, event.logprob, event.top_logprobs);
      if (request_.return_token_ids) choice.token_ids.push_back(event.token);
    }
    if (!prompt_only())
      for (const ReplyEvent& event : piece.events) text += event.text;
    if (piece.finish != FinishReason::kNone) {
      choice.finish = piece.finish;
      choice.stop_reason = piece.stop_reason;
    }
    if (!out) {
      choice.text += text;
      return;
    }
    const bool last = piece.finish != FinishReason::kNone;
    if (text.empty() && !last) return;
    chunk(piece.choice, choice, text, last, usage, out);
  }

  void end(const TokenUsage& usage, std::string* out) override {
    if (request_.include_usage)
      *out += sse_event(frame_ + "\"choices\":[],\"usage\":" +
                        dump_json(usage_json(usage, head_.prompt_tokens_details)) + "}");
    *out += sse_event("[DONE]");
  }

  void fail(const ApiError& error, std::string* out) override {
    *out += sse_event(dump_json(error_body(error))) + sse_event("[DONE]");
  }

  Json whole(const TokenUsage& usage) override {
    Json list = Json::array();
    for (size_t i = 0; i < choices_.size(); ++i) {
      Choice& choice = choices_[i];
      Json prompt_ids;
      if (request_.return_token_ids) prompt_ids = prompt_of(i).ids;
      list.push_back({{"index", i},
                      {"text", choice.text},
                      {"logprobs", request_.num_logprobs >= 0 ? choice.logprobs.take() : Json()},
                      {"finish_reason", finish_name(choice.finish, false)},
                      {"stop_reason", choice.stop_reason},
                      {"token_ids", request_.return_token_ids ? Json(choice.token_ids) : Json()},
                      {"prompt_logprobs", choice.prompt_logprobs},
                      {"prompt_token_ids", prompt_ids}});
    }
    return {{"id", head_.id},
            {"object", "text_completion"},
            {"created", head_.created},
            {"model", head_.model},
            {"choices", std::move(list)},
            {"service_tier", nullptr},
            {"system_fingerprint", head_.fingerprint.empty() ? Json() : Json(head_.fingerprint)},
            {"usage", usage_json(usage, head_.prompt_tokens_details)},
            {"kv_transfer_params", nullptr}};
  }

 private:
  struct Choice {
    bool begun = false;
    std::string text;
    int64_t offset = 0;  // characters of the tokens listed so far
    LogprobLists logprobs;
    Json prompt_logprobs;
    Json token_ids = Json::array();
    FinishReason finish = FinishReason::kNone;
    Json stop_reason;
  };

  // echo with max_tokens 0: the prompt alone.
  bool prompt_only() const { return request_.max_tokens == 0; }
  const Prompt& prompt_of(size_t choice) const {
    return prompts_[choice / static_cast<size_t>(request_.num_choices)];
  }

  void begin_choice(int number, Choice& choice, const TokenEvent& event, std::string* text) {
    const Prompt& prompt = prompt_of(static_cast<size_t>(number));
    if (!event.prompt_logprobs.empty() && request_.sampling.num_prompt_logprobs >= 0)
      choice.prompt_logprobs = prompt_logprobs_json(event, prompt.ids, tokenizer_);
    if (!request_.echo) return;
    *text += prompt.text;
    if (request_.num_logprobs < 0) return;
    for (size_t i = 0; i < prompt.ids.size(); ++i) {
      // The first token of the prompt has nothing before it to be likely after.
      if (i == 0 || i > event.prompt_logprobs.size()) {
        add_token(choice, prompt.ids[i], nullptr, nullptr);
        continue;
      }
      const std::vector<TokenLogprob>& row = event.prompt_logprobs[i - 1];
      const auto own = std::ranges::find(row, prompt.ids[i], &TokenLogprob::token);
      add_logprob(choice, prompt.ids[i], own == row.end() ? kFloor : own->logprob, row);
    }
  }

  void add_token(Choice& choice, int32_t id, Json logprob, Json top) {
    const int32_t ids[] = {id};
    const std::string text = tokenizer_.decode(ids);
    choice.logprobs.offsets.push_back(choice.offset);
    choice.logprobs.logprobs.push_back(std::move(logprob));
    choice.logprobs.tokens.push_back(request_.return_tokens_as_token_ids ? format("token_id:{}", id)
                                                                         : text);
    choice.logprobs.top.push_back(std::move(top));
    choice.offset += num_characters(text);
  }

  // The chosen token first, then up to k likely ones.
  void add_logprob(Choice& choice, int32_t id, float logprob,
                   std::span<const TokenLogprob> likely) {
    Json top = Json::object();
    const auto name = [&](int32_t token) {
      const int32_t ids[] = {token};
      return request_.return_tokens_as_token_ids ? format("token_id:{}", token)
                                                 : tokenizer_.decode(ids);
    };
    top[name(id)] = std::max(logprob, kFloor);
    int listed = 0;
    for (const TokenLogprob& other : likely) {
      if (listed++ >= request_.num_logprobs) break;
      if (other.token != id) top.emplace(name(other.token), std::max(other.logprob, kFloor));
    }
    add_token(choice, id, std::max(logprob, kFloor), std::move(top));
  }

  void chunk(int number, Choice& choice, const std::string& text, bool last,
             const TokenUsage& usage, std::string* out) {
    Json body = {{"index", number},
                 {"text", text},
                 {"logprobs", request_.num_logprobs >= 0 ? choice.logprobs.take() : Json()},
                 {"finish_reason", last ? Json(finish_name(choice.finish, false)) : Json()},
                 {"stop_reason", choice.stop_reason}};
    if (request_.return_token_ids) {
      body["token_ids"] = std::move(choice.token_ids);
      choice.token_ids = Json::array();
    }
    std::string data = frame_ + "\"choices\":[" + dump_json(body) + "]";
    if (request_.continuous_usage)
      data += ",\"usage\":" + dump_json(usage_json(usage, head_.prompt_tokens_details));
    *out += sse_event(data + "}");
  }

  static constexpr float kFloor = -9999.0f;
  AnswerHead head_;
  const CompletionRequest& request_;
  const std::vector<Prompt>& prompts_;
  const Tokenizer& tokenizer_;
  std::string frame_;
  std::vector<Choice> choices_;
};

}  // namespace

std::optional<ApiError> parse_completion_request(const Json& body, const RequestDefaults& defaults,
                                                 int32_t vocab_size, CompletionRequest* request) {
  if (!body.is_object())
    return ApiError{400, "Bad Request", "the body is not a JSON object", nullptr};
  Fields fields(body);
  read_prompt(fields, vocab_size, request);
  read_generation(fields, body, defaults, request);
  // A null, unlike nothing, means as many as fit.
  if (!request->max_tokens && !body.contains("max_tokens"))
    request->max_tokens = kDefaultMaxTokens;
  if (const Json* suffix = fields.find("suffix"); suffix && *suffix != "")
    fields.fail(400, "suffix", "suffix is not currently supported");
  int64_t count = -1;
  if (fields.find("logprobs")) {
    count = 0;
    fields.integer("logprobs", 0, INT32_MAX, &count);
    check_logprobs(fields, "logprobs", count, defaults);
  }
  request->num_logprobs = static_cast<int>(count);
  if (request->echo && count >= 0 && request->sampling.num_prompt_logprobs < 0)
    request->sampling.num_prompt_logprobs = request->num_logprobs;
  int64_t ignored = 1;
  fields.integer("best_of", 1, 16384, &ignored);
  return fields.error();
}

std::unique_ptr<Answer> make_completion_answer(const AnswerHead& head,
                                               const CompletionRequest& request,
                                               const std::vector<Prompt>& prompts,
                                               const Tokenizer& tokenizer) {
  return std::make_unique<CompletionAnswer>(head, request, prompts, tokenizer);
}

}  // namespace nibble
