// Choices are visited in turn. next() waits for the choice whose turn it is: they advance together,
// one token a step, so no choice is far behind; poll() takes whichever has something.
#include "server/generation.h"

#include <algorithm>
#include <utility>

#include "base/format.h"

namespace nibble {
namespace {

constexpr size_t kMaxIdsOfChoices = size_t{1} << 24;

ApiError bad_request(const char* param, std::string message) {
  return {400, "BadRequestError", std::move(message), param};
}

std::optional<ApiError> check_length(const GenerationRequest& request, int64_t num_prompt,
                                     int64_t max_model_len) {
  if (num_prompt == 0) return bad_request("prompt", "The decoder prompt cannot be empty");
  const int64_t wanted = request.max_tokens.value_or(0);
  if (num_prompt + wanted > max_model_len)
    return bad_request(
        "input_tokens",
        format("This model's maximum context length is {} tokens. However, you requested {} output "
               "tokens and your prompt contains {} input tokens, for a total of {} tokens. Please "
               "reduce the length of the input prompt or the number of requested output tokens. "
               "(parameter=input_tokens, value={})",
               max_model_len, wanted, num_prompt, num_prompt + wanted, num_prompt));
  if (num_prompt == max_model_len)
    return bad_request("input_tokens",
                       format("The decoder prompt (length {}) plus the number of requested output "
                              "tokens (at least 1) is longer than the maximum model length of {}. "
                              "This model's maximum context length is {} tokens.",
                              num_prompt, max_model_len, max_model_len));
  return std::nullopt;
}

std::optional<ApiError> check_ids(const GenerationRequest& request, int32_t vocab_size) {
  for (const auto& [id, bias] : request.sampling.logit_bias)
    if (id >= vocab_size)
      return bad_request(
          "logit_bias",
          format("token_id {} in logit_bias is outside the vocabulary of {}", id, vocab_size));
  for (const int32_t id : request.sampling.allowed_token_ids)
    if (id >= vocab_size)
      return bad_request("allowed_token_ids",
                         format("allowed_token_ids contains out-of-vocab token id {}; the "
                                "vocabulary has {}",
                                id, vocab_size));
  for (const int32_t id : request.stop_token_ids)
    if (id >= vocab_size)
      return bad_request("stop_token_ids",
                         format("token id {} is outside the vocabulary of {}", id, vocab_size));
  return std::nullopt;
}

void truncate(const GenerationRequest& request, int64_t max_model_len, std::vector<int32_t>* ids) {
  if (!request.truncate_prompt_tokens) return;
  int64_t keep = *request.truncate_prompt_tokens;
  if (keep == -1) keep = std::max<int64_t>(max_model_len - request.max_tokens.value_or(1), 1);
  const auto size = static_cast<int64_t>(ids->size());
  if (size <= keep) return;
  if (request.truncate_left)
    ids->erase(ids->begin(), ids->begin() + (size - keep));
  else
    ids->resize(static_cast<size_t>(keep));
}

// Each word must not begin a line nor follow a space.
std::vector<std::vector<int32_t>> bad_word_ids(const Tokenizer& tokenizer,
                                               const std::vector<std::string>& words) {
  std::vector<std::vector<int32_t>> out;
  for (const std::string& word : words)
    for (const char* before : {"", " "})
      if (auto ids = tokenizer.encode(before + word); !ids.empty()) out.push_back(std::move(ids));
  return out;
}

}  // namespace

struct Generation::Choice {
  int index = 0;
  int num_prompt = 0;
  std::unique_ptr<RequestHandle> handle;
  std::unique_ptr<ReplyStream> stream;
  ChoicePiece piece;  // grows to what next() or poll() gives
  bool done = false;
  bool started = false;
  FinishedRequest record;  // what the metrics learn at its end
  Clock::time_point last_token;
};

Generation::Generation(ServerMetrics& metrics, std::vector<Prompt> prompts, int stream_interval)
    : metrics_(metrics), prompts_(std::move(prompts)), stream_interval_(stream_interval) {}

Generation::~Generation() {
  for (const auto& choice : choices_)
    if (!choice->done) finish(*choice, FinishReason::kAbort);
}

std::optional<ApiError> Generation::start(ServedModel& model, ServerMetrics& metrics,
                                          const GenerationRequest& request,
                                          std::vector<Prompt> prompts, GenerationSetup setup,
                                          std::unique_ptr<Generation>* out) {
  const int64_t max_model_len = model.engine->max_model_len();
  if (request.max_tokens && *request.max_tokens > max_model_len)
    return bad_request(request.max_tokens_name.c_str(),
                       format("{}={} cannot be greater than max_model_len={}. (parameter={})",
                              request.max_tokens_name, *request.max_tokens, max_model_len,
                              request.max_tokens_name));
  const auto vocab_size = static_cast<int32_t>(model.engine->spec().vocab_size);
  if (auto error = check_ids(request, vocab_size)) return error;
  if (request.sampling.thinking_token_budget >= 0 && setup.reasoning_parser.empty())
    return bad_request("thinking_token_budget",
                       "thinking_token_budget is set but no reasoning parser is configured; start "
                       "the server with --reasoning-parser");
  for (Prompt& prompt : prompts) {
    truncate(request, max_model_len, &prompt.ids);
    if (auto error = check_length(request, static_cast<int64_t>(prompt.ids.size()), max_model_len))
      return error;
  }

  // Every choice holds its prompt's ids, in the queue too.
  size_t num_ids = 0;
  for (const Prompt& prompt : prompts) num_ids += prompt.ids.size();
  if (request.num_choices > 1 && num_ids > kMaxIdsOfChoices / request.num_choices)
    return bad_request("n",
                       format("n={} choices of prompts of {} tokens are more than {} tokens "
                              "in all (parameter=n, value={})",
                              request.num_choices, num_ids, kMaxIdsOfChoices, request.num_choices));

  auto generation = std::unique_ptr<Generation>(
      new Generation(metrics, std::move(prompts), setup.stream_interval));
  const auto bad_words = bad_word_ids(model.tokenizer, request.bad_words);
  for (const Prompt& prompt : generation->prompts_) {
    const auto num_prompt = static_cast<int>(prompt.ids.size());
    generation->usage_.num_prompt_tokens += num_prompt;
    for (int i = 0; i < request.num_choices; ++i) {
      Request work;
      work.id = setup.id;
      work.prompt = prompt.ids;
      work.sampling = request.sampling;
      work.sampling.num_logprobs = std::min(request.num_logprobs, vocab_size);
      work.sampling.num_prompt_logprobs =
          std::min(request.sampling.num_prompt_logprobs, vocab_size);
      work.sampling.bad_words = bad_words;
      if (work.sampling.thinking_token_budget >= 0)
        work.sampling.end_of_thinking_id = model.tokenizer.token_id("</think>").value_or(-1);
      if (work.sampling.seed) *work.sampling.seed += i;
      // A prompt's echo alone still takes a step; its token is dropped by the dialect.
      work.max_tokens = static_cast<int>(
          std::max<int64_t>(request.max_tokens.value_or(max_model_len - num_prompt), 1));
      work.ignore_eos = request.ignore_eos;
      if (!request.ignore_eos) work.stop_token_ids = model.stop_token_ids;
      work.stop_token_ids.insert(work.stop_token_ids.end(), request.stop_token_ids.begin(),
                                 request.stop_token_ids.end());
      work.repetition = request.repetition;
      work.priority = request.priority;
      work.client = setup.client;
      work.cache_salt = request.cache_salt;
      if (setup.constraint) {
        Result<std::shared_ptr<TokenConstraint>> constraint = setup.constraint(prompt);
        if (!constraint) return to_api_error(constraint.error());
        work.constraint = std::move(*constraint);
      }
      Result<std::unique_ptr<ReplyParser>> parser =
          make_reply_parser({.reasoning_parser = setup.reasoning_parser,
                             .tool_parser = setup.tool_parser,
                             .tools = setup.tools,
                             .prompt_tail = prompt.text});
      if (!parser) return to_api_error(parser.error());
      auto choice = std::make_unique<Choice>();
      choice->index = static_cast<int>(generation->choices_.size());
      choice->num_prompt = num_prompt;
      choice->record = {.num_prompt_tokens = num_prompt,
                        .max_tokens = work.max_tokens,
                        .num_choices = request.num_choices};
      choice->stream = std::make_unique<ReplyStream>(
          model.tokenizer, std::move(*parser),
          ReplyStreamOptions{.stop = request.stop,
                             .include_stop = request.include_stop,
                             .min_tokens = request.sampling.min_tokens,
                             .skip_special_tokens = request.skip_special_tokens});
      choice->stream->set_end_tokens(model.stop_token_ids);
      Result<std::unique_ptr<RequestHandle>> handle = model.engine->submit(std::move(work));
      if (!handle) return to_api_error(handle.error());
      choice->handle = std::move(*handle);
      generation->choices_.push_back(std::move(choice));
    }
  }
  *out = std::move(generation);
  return std::nullopt;
}

bool Generation::next(ChoicePiece* piece) {
  const size_t num = choices_.size();
  for (size_t tried = 0; tried < num && choices_[turn_ % num]->done; ++tried) ++turn_;
  Choice& choice = *choices_[turn_ % num];
  if (choice.done) return false;
  ++turn_;
  while (!add(choice, choice.handle->next(), piece)) {
  }
  return true;
}

Generation::Poll Generation::poll(ChoicePiece* piece) {
  const size_t num = choices_.size();
  bool all_done = true;
  for (size_t tried = 0; tried < num; ++tried, ++turn_) {
    Choice& choice = *choices_[turn_ % num];
    TokenEvent event;
    while (!choice.done && choice.handle->try_next(&event)) {
      if (!add(choice, std::move(event), piece)) continue;
      ++turn_;
      return Poll::kPiece;
    }
    all_done = all_done && choice.done;
  }
  return all_done ? Poll::kEnd : Poll::kNothing;
}

bool Generation::on_event(const std::function<void()>& wake) {
  for (const auto& choice : choices_)
    if (!choice->handle->on_event(wake)) return false;
  return true;
}

bool Generation::add(Choice& choice, TokenEvent event, ChoicePiece* piece) {
  ChoicePiece& growing = choice.piece;
  const FinishReason engine_finish = event.finish;
  account(choice, event);
  for (ReplyEvent& reply : choice.stream->push(event)) growing.events.push_back(std::move(reply));
  growing.tokens.push_back(std::move(event));
  if (choice.stream->done()) {
    // A stop string ends the choice before the engine does.
    if (engine_finish == FinishReason::kNone) choice.handle->cancel();
    growing.finish = choice.stream->finish();
    growing.stop_reason = choice.stream->stop_reason();
    if (growing.finish == FinishReason::kRepetition) growing.stop_reason = "repetition_detected";
    finish(choice, growing.finish);
  } else if (static_cast<int>(growing.tokens.size()) < (choice.started ? stream_interval_ : 1)) {
    return false;
  }
  choice.started = true;
  growing.choice = choice.index;
  *piece = std::exchange(growing, {});
  return true;
}

void Generation::cancel() {
  for (const auto& choice : choices_) choice->handle->cancel();
}

void Generation::account(Choice& choice, const TokenEvent& event) {
  choice.record.queue_seconds = event.report.queue_seconds;  // of the last event
  if (event.token < 0) return;
  // The engine's own time, where it says so: reading late is not the engine's latency.
  const auto now = event.time == Clock::time_point() ? Clock::now() : event.time;
  const auto seconds = [](Clock::duration time) {
    return std::chrono::duration<double>(time).count();
  };
  ++usage_.num_completion_tokens;
  if (!first_token_) first_token_ = now;
  if (++choice.record.num_generated_tokens == 1) {
    usage_.num_cached_tokens += event.num_cached_tokens;
    choice.record.num_cached_tokens = event.num_cached_tokens;
    choice.record.first_token_seconds = seconds(now - start_);
    metrics_.first_token(choice.record.first_token_seconds);
  } else {
    metrics_.next_token(seconds(now - choice.last_token));
  }
  choice.last_token = now;
}

void Generation::finish(Choice& choice, FinishReason reason) {
  choice.done = true;
  choice.record.finish = reason;
  choice.record.total_seconds = std::chrono::duration<double>(Clock::now() - start_).count();
  metrics_.request_finished(choice.record);
}

double Generation::first_token_seconds() const {
  return std::chrono::duration<double>(first_token_.value_or(Clock::now()) - start_).count();
}
double Generation::decode_seconds() const {
  return std::chrono::duration<double>(Clock::now() - first_token_.value_or(Clock::now())).count();
}

}  // namespace nibble
