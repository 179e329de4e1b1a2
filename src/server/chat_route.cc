// POST /v1/chat/completions: check, render, submit, and answer whole or as a stream.
#include <algorithm>
#include <chrono>
#include <ctime>

#include "base/format.h"
#include "base/log.h"
#include "base/text.h"
#include "net/sse.h"
#include "server/api_server.h"
#include "server/prompt_builder.h"
#include "server/reply_stream.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

// One choice at work: its request in the engine and its text stage.
struct Choice {
  std::unique_ptr<RequestHandle> handle;
  std::unique_ptr<ReplyStream> stream;
};

std::optional<ApiError> check_length(const ChatRequest& request, int64_t num_prompt,
                                     int64_t max_model_len) {
  if (request.max_tokens && *request.max_tokens > max_model_len)
    return ApiError{400, "BadRequestError",
                    format("{}={} cannot be greater than max_model_len={}.",
                           request.max_tokens_name, *request.max_tokens, max_model_len),
                    request.max_tokens_name};
  if (num_prompt == 0)
    return ApiError{400, "BadRequestError", "The decoder prompt cannot be empty", "messages"};
  const int64_t wanted = request.max_tokens.value_or(0);
  if (num_prompt + wanted > max_model_len)
    return ApiError{
        400, "BadRequestError",
        format("This model's maximum context length is {} tokens. However, you requested {} output "
               "tokens and your prompt contains {} input tokens, for a total of {} tokens. Please "
               "reduce the length of the input prompt or the number of requested output tokens. "
               "(parameter=input_tokens, value={})",
               max_model_len, wanted, num_prompt, num_prompt + wanted, num_prompt),
        "input_tokens"};
  if (num_prompt == max_model_len)
    return ApiError{400, "BadRequestError",
                    format("The decoder prompt (length {}) plus the number of requested output "
                           "tokens (at least 1) is longer than the maximum model length of {}.",
                           num_prompt, max_model_len),
                    "input_tokens"};
  return std::nullopt;
}

// X-Request-Id, else the body's, else random; anything that is no plain identifier is dropped.
std::string choose_id(const HttpRequest& http, const ChatRequest& request) {
  const auto header = http.headers.find("x-request-id");
  std::string id = header != http.headers.end() ? header->second : request.request_id;
  const bool plain = !id.empty() && id.size() <= 128 && std::ranges::all_of(id, [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_' || c == '.';
  });
  return "chatcmpl-" + (plain ? id : random_hex(16));
}

// What the log says about a request; no text of it.
class RequestLog {
 public:
  explicit RequestLog(std::string id) : id_(std::move(id)) {}
  void first_token() {
    if (!first_) first_ = Clock::now();
  }
  void done(HttpReply& reply, std::string_view reason, const TokenUsage& usage) const {
    const auto now = Clock::now();
    const auto seconds = [](Clock::duration time) {
      return std::chrono::duration<double>(time).count();
    };
    const double ttft = seconds(first_.value_or(now) - start_);
    const double rest = seconds(now - first_.value_or(now));
    const double tpot_ms =
        usage.num_completion_tokens > 1 ? rest * 1e3 / (usage.num_completion_tokens - 1) : 0;
    reply.note("id", id_);
    reply.note("reason", std::string(reason));
    reply.note("prompt_tokens", std::to_string(usage.num_prompt_tokens));
    reply.note("tokens", std::to_string(usage.num_completion_tokens));
    reply.note("ttft_ms", format("{:.1f}", ttft * 1e3));
    reply.note("tpot_ms", format("{:.2f}", tpot_ms));
    log_info("request id={} reason={} prompt_tokens={} tokens={} ttft_ms={:.1f} tpot_ms={:.2f}",
             id_, reason, usage.num_prompt_tokens, usage.num_completion_tokens, ttft * 1e3,
             tpot_ms);
  }

 private:
  std::string id_;
  Clock::time_point start_ = Clock::now();
  std::optional<Clock::time_point> first_;
};

class ChatAnswer {
 public:
  ChatAnswer(const ServedModel& model, const ChatRequest& request, AnswerHead head,
             std::vector<Choice> choices, int num_prompt_tokens)
      : model_(model),
        request_(request),
        head_(std::move(head)),
        choices_(std::move(choices)),
        log_(head_.id) {
    usage_.num_prompt_tokens = num_prompt_tokens;
  }

  // False when the client got an error or nothing.
  bool send_whole(HttpReply& reply) {
    reply.on_client_gone([this] { cancel(); });
    Json list = Json::array();
    std::string reason;
    for (size_t i = 0; i < choices_.size(); ++i) {
      MessageBuilder builder;
      Json logprobs = Json::array();
      std::string error;
      run(choices_[i], [&](const TokenEvent& event, const std::vector<ReplyEvent>& events) {
        if (event.finish == FinishReason::kError) error = event.error;
        if (request_.logprobs && event.token >= 0)
          logprobs.push_back(logprob_entry(event, model_.tokenizer, request_.top_logprobs));
        for (const ReplyEvent& piece : events) builder.take(piece);
        return true;
      });
      if (!error.empty()) {
        finish(reply, "error");
        reply.send(error_reply({500, "InternalServerError", error, nullptr}));
        return false;
      }
      const ReplyStream& stream = *choices_[i].stream;
      reason = finish_name(stream.finish(), builder.has_calls());
      list.push_back({{"index", i},
                      {"message", builder.message(head_.reasoning_field, request_.include_reasoning,
                                                  request_.parallel_tool_calls)},
                      {"logprobs", request_.logprobs ? Json{{"content", logprobs}} : Json()},
                      {"finish_reason", reason},
                      {"stop_reason", stream.stop_reason()},
                      {"token_ids", nullptr}});
    }
    finish(reply, reason);
    const bool answered = !reply.client_gone();
    reply.send({.status = 200, .body = dump_json(completion(head_, std::move(list), usage_))});
    return answered;
  }

  bool send_stream(HttpReply& reply) {
    reply.on_client_gone([this] { cancel(); });
    reply.begin_stream({.status = 200,
                        .content_type = kSseContentType,
                        .headers = {{"Cache-Control", "no-cache"}}});
    std::string reason = "abort";
    bool open = true;
    for (size_t i = 0; i < choices_.size() && open; ++i)
      open = write(reply, chunk(head_, static_cast<int>(i),
                                {{"role", "assistant"}, {"content", ""}}, nullptr, nullptr));
    for (size_t i = 0; i < choices_.size() && open; ++i) open = stream_choice(reply, i, &reason);
    if (open && request_.include_usage)
      open = reply.write(sse_event(dump_json(usage_chunk(head_, usage_))));
    finish(reply, open ? reason : "client gone");
    if (open) open = reply.write(sse_event("[DONE]"));
    if (!open) return false;  // the connection is cut, not ended
    reply.end_stream();
    return reason != "error";
  }

 private:
  void cancel() {
    for (const Choice& choice : choices_) choice.handle->cancel();
  }

  void finish(HttpReply& reply, std::string_view reason) {
    reply.on_client_gone({});
    log_.done(reply, reason, usage_);
  }

  // Drives one choice to its end; `take` returns false to stop early.
  template <class Take>
  void run(Choice& choice, const Take& take) {
    while (!choice.stream->done()) {
      const TokenEvent event = choice.handle->next();
      if (event.token >= 0) {
        log_.first_token();
        ++usage_.num_completion_tokens;
      }
      const bool wanted = take(event, choice.stream->push(event));
      // A stop string ends the choice before the engine does.
      if (!wanted || (choice.stream->done() && event.finish == FinishReason::kNone)) {
        choice.handle->cancel();
        return;
      }
    }
  }

  bool stream_choice(HttpReply& reply, size_t index, std::string* reason) {
    Choice& choice = choices_[index];
    const int number = static_cast<int>(index);
    bool open = true;
    bool has_calls = false;
    std::string error;
    Json logprobs = Json::array();  // of tokens whose text is still held back
    const auto take_logprobs = [&] {
      Json taken = logprobs.empty() ? Json() : Json{{"content", logprobs}};
      logprobs = Json::array();
      return taken;
    };
    run(choice, [&](const TokenEvent& event, const std::vector<ReplyEvent>& events) {
      if (event.finish == FinishReason::kError) error = event.error;
      if (request_.logprobs && event.token >= 0)
        logprobs.push_back(logprob_entry(event, model_.tokenizer, request_.top_logprobs));
      for (const ReplyEvent& piece : events) {
        has_calls = has_calls || piece.kind == ReplyEvent::Kind::kToolCallBegin;
        Json delta = stream_delta(piece, head_.reasoning_field, request_.include_reasoning,
                                  request_.parallel_tool_calls);
        if (!delta.is_null() && open)
          open = write(reply, chunk(head_, number, std::move(delta), take_logprobs(), nullptr));
      }
      return open;
    });
    if (!error.empty()) {
      *reason = "error";
      return reply.write(
          sse_event(dump_json(error_body({500, "InternalServerError", error, nullptr}))));
    }
    if (!open) return false;
    *reason = finish_name(choice.stream->finish(), has_calls);
    Json last = chunk(head_, number, Json::object(), take_logprobs(), *reason);
    last["choices"][0]["stop_reason"] = choice.stream->stop_reason();
    return write(reply, std::move(last));
  }

  bool write(HttpReply& reply, Json piece) {
    if (request_.continuous_usage) piece["usage"] = usage_json(usage_);
    return reply.write(sse_event(dump_json(piece)));
  }

  const ServedModel& model_;
  const ChatRequest& request_;
  AnswerHead head_;
  std::vector<Choice> choices_;
  RequestLog log_;
  TokenUsage usage_;
};

}  // namespace

void ApiServer::chat(const HttpRequest& http, HttpReply& reply) {
  const auto refuse = [&](const ApiError& error) {
    ++num_failed_;
    reply.send(error_reply(error));
  };
  const auto type = http.headers.find("content-type");
  if (type == http.headers.end() || !ascii_lower(type->second).starts_with("application/json"))
    return refuse({400, "Bad Request", "Unsupported Media Type: Only 'application/json' is allowed",
                   nullptr});
  const Result<Json> body = parse_json(http.body, "body", {.allow_duplicate_keys = true});
  if (!body) return refuse({400, "Bad Request", body.error().message, nullptr});
  ChatRequest request;
  if (const auto error = parse_chat_request(*body, model_.dir.generation_config(), &request))
    return refuse(*error);
  const auto& names = options_.served_model_names;
  if (!request.model.empty() && std::ranges::find(names, request.model) == names.end())
    return refuse(
        {404, "NotFoundError", format("The model `{}` does not exist.", request.model), "model"});
  if (request.parse_tools && options_.tool_parser.empty())
    return refuse({400, "BadRequestError",
                   "\"auto\" tool choice requires --tool-call-parser to be set", "tool_choice"});

  const Result<std::string> prompt = build_prompt(model_, request);
  if (!prompt) return refuse(to_api_error(prompt.error()));
  const std::vector<int32_t> ids = model_.tokenizer.encode(*prompt);
  const int64_t max_model_len = model_.engine->max_model_len();
  const auto num_prompt = static_cast<int64_t>(ids.size());
  if (const auto error = check_length(request, num_prompt, max_model_len)) return refuse(*error);
  for (const auto& [id, bias] : request.sampling.logit_bias)
    if (id >= model_.engine->spec().vocab_size)
      return refuse({400, "BadRequestError",
                     format("token_id {} in logit_bias is outside the vocabulary of {}", id,
                            model_.engine->spec().vocab_size),
                     "logit_bias"});

  AnswerHead head{.id = choose_id(http, request),
                  .created = std::time(nullptr),
                  .model = names[0],
                  .reasoning_field = options_.reasoning_field};
  std::vector<Choice> choices;
  for (int i = 0; i < request.num_choices; ++i) {
    Request work;
    work.id = head.id;
    work.prompt = ids;
    work.sampling = request.sampling;
    if (work.sampling.seed) *work.sampling.seed += i;
    work.max_tokens = static_cast<int>(request.max_tokens.value_or(max_model_len - num_prompt));
    if (!request.ignore_eos) work.stop_token_ids = model_.stop_token_ids;
    work.stop_token_ids.insert(work.stop_token_ids.end(), request.stop_token_ids.begin(),
                               request.stop_token_ids.end());
    Result<std::unique_ptr<ReplyParser>> parser =
        make_reply_parser({.reasoning_parser = options_.reasoning_parser,
                           .tool_parser = request.parse_tools ? options_.tool_parser : "",
                           .tools = request.tools,
                           .prompt_tail = *prompt});
    if (!parser) return refuse(to_api_error(parser.error()));
    auto stream = std::make_unique<ReplyStream>(
        model_.tokenizer, std::move(*parser),
        ReplyStreamOptions{.stop = request.stop,
                           .include_stop = request.include_stop,
                           .min_tokens = request.sampling.min_tokens,
                           .skip_special_tokens = request.skip_special_tokens});
    stream->set_end_tokens(model_.stop_token_ids);
    Result<std::unique_ptr<RequestHandle>> handle = model_.engine->submit(std::move(work));
    if (!handle) return refuse(to_api_error(handle.error()));
    choices.push_back({std::move(*handle), std::move(stream)});
  }
  ChatAnswer answer(model_, request, std::move(head), std::move(choices),
                    static_cast<int>(num_prompt));
  const bool ok = request.stream ? answer.send_stream(reply) : answer.send_whole(reply);
  ++(ok ? num_finished_ : num_failed_);
}

}  // namespace nibble
