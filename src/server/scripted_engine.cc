// Each request takes the first line whose `when` its prompt contains, else the next line without
// one. Tokens come as fast as they are read, or paced by `interval_ms`.
#include "server/scripted_engine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>

#include "base/format.h"

namespace nibble {
namespace {

struct Line {
  std::string when;
  std::vector<int32_t> tokens;
  std::string error;  // the request fails with this after the tokens
  std::chrono::microseconds interval{0};
};

struct Counters {
  std::atomic<int> running{0};
  std::atomic<int64_t> prompt_tokens{0};
  std::atomic<int64_t> generated_tokens{0};
};

class ScriptedHandle final : public RequestHandle {
 public:
  ScriptedHandle(Request request, const Line& line, Counters& counters)
      : request_(std::move(request)), line_(line), counters_(counters) {
    ++counters_.running;
    counters_.prompt_tokens += static_cast<int64_t>(request_.prompt.size());
  }
  ~ScriptedHandle() override { --counters_.running; }

  TokenEvent next() override {
    TokenEvent event;
    if (cancelled_) {
      event.finish = FinishReason::kAbort;
      return event;
    }
    if (line_.interval.count() > 0) std::this_thread::sleep_for(line_.interval);
    if (at_ >= line_.tokens.size()) {
      event.finish = line_.error.empty() ? FinishReason::kLength : FinishReason::kError;
      event.error = line_.error;
      return event;
    }
    event.token = line_.tokens[at_++];
    event.rank = 1;
    if (request_.sampling.num_logprobs >= 0) event.top_logprobs.push_back({event.token, 0.0f});
    ++counters_.generated_tokens;
    const auto& stops = request_.stop_token_ids;
    if (!request_.ignore_eos && std::ranges::find(stops, event.token) != stops.end()) {
      event.stop_token = event.token;
      event.finish = FinishReason::kStop;
    } else if (static_cast<int>(at_) >= request_.max_tokens) {
      event.finish = FinishReason::kLength;
    }
    return event;
  }
  void cancel() override { cancelled_ = true; }

 private:
  const Request request_;
  const Line& line_;
  Counters& counters_;
  size_t at_ = 0;
  std::atomic<bool> cancelled_{false};
};

class ScriptedEngine final : public Engine {
 public:
  ScriptedEngine(std::vector<Line> lines, const Tokenizer& tokenizer, ScriptedOptions options)
      : lines_(std::move(lines)), tokenizer_(tokenizer), options_(std::move(options)) {
    spec_.vocab_size = options_.vocab_size;
  }

  Result<std::unique_ptr<RequestHandle>> submit(Request request) override {
    const Line* line = choose(tokenizer_.decode(request.prompt));
    if (!line)
      return make_error(ErrorCode::kInvalidArgument, "no line of the script fits this prompt");
    return std::unique_ptr<RequestHandle>(
        std::make_unique<ScriptedHandle>(std::move(request), *line, counters_));
  }
  EngineStats stats() const override {
    EngineStats stats;
    stats.num_running = counters_.running;
    stats.prompt_tokens = counters_.prompt_tokens;
    stats.generated_tokens = counters_.generated_tokens;
    return stats;
  }
  const ModelSpec& spec() const override { return spec_; }
  int max_model_len() const override { return options_.max_model_len; }

 private:
  const Line* choose(const std::string& prompt) {
    for (const Line& line : lines_)
      if (!line.when.empty() && prompt.find(line.when) != std::string::npos) return &line;
    std::lock_guard lock(mutex_);
    for (size_t tried = 0; tried < lines_.size(); ++tried) {
      const Line& line = lines_[next_++ % lines_.size()];
      if (line.when.empty()) return &line;
    }
    return nullptr;
  }

  const std::vector<Line> lines_;
  const Tokenizer& tokenizer_;
  const ScriptedOptions options_;
  ModelSpec spec_;
  Counters counters_;
  std::mutex mutex_;  // guards next_
  size_t next_ = 0;
};

Result<Line> read_line(const Json& json, const std::string& where, const Tokenizer& tokenizer,
                       const ScriptedOptions& options) {
  const auto wrong = [&](std::string_view text) {
    return make_error(ErrorCode::kInvalidArgument, "{}: {}", where, text);
  };
  if (!json.is_object()) return wrong("expected an object");
  for (const auto& [key, value] : json.items())
    if (key != "when" && key != "text" && key != "tokens" && key != "error" &&
        key != "interval_ms" && key != "repeat" && key != "end")
      return wrong(
          format("unknown key \"{}\"; known are when, text, tokens, repeat, end, error, "
                 "interval_ms",
                 key));
  Line line;
  const auto text_member = [&](const char* name, std::string* out) -> Status {
    const auto it = json.find(name);
    if (it == json.end()) return {};
    if (!it->is_string()) return wrong(format("{} is no string", name));
    *out = it->get<std::string>();
    return {};
  };
  std::string text;
  NB_TRY_STATUS(text_member("when", &line.when));
  NB_TRY_STATUS(text_member("error", &line.error));
  NB_TRY_STATUS(text_member("text", &text));
  if (json.contains("text") == json.contains("tokens"))
    return wrong("needs text or tokens, one of them");
  const Json interval = json.value("interval_ms", Json(0));
  if (!interval.is_number() || interval.get<double>() < 0 || interval.get<double>() > 60'000)
    return wrong("interval_ms is 0 to 60000");
  line.interval = std::chrono::microseconds(static_cast<int64_t>(interval.get<double>() * 1000));
  const Json repeat = json.value("repeat", Json(1));
  if (!repeat.is_number_integer() || repeat.get<int64_t>() < 1 || repeat.get<int64_t>() > 1'000'000)
    return wrong("repeat is 1 to 1000000");
  std::vector<int32_t> once = tokenizer.encode(text);
  if (json.contains("tokens")) {
    if (!json["tokens"].is_array()) return wrong("tokens is no list");
    for (const Json& id : json["tokens"]) {
      if (!id.is_number_integer() || id.get<int64_t>() < 0 ||
          id.get<int64_t>() >= options.vocab_size)
        return wrong(format("{} is no token id below {}", dump_json(id), options.vocab_size));
      once.push_back(id.get<int32_t>());
    }
  }
  for (int64_t i = 0; i < repeat.get<int64_t>(); ++i)
    line.tokens.insert(line.tokens.end(), once.begin(), once.end());
  const bool end = json.value("end", Json(json.contains("text") && line.error.empty())) == true;
  if (end && !options.stop_token_ids.empty()) line.tokens.push_back(options.stop_token_ids[0]);
  return line;
}

}  // namespace

Result<std::unique_ptr<Engine>> make_scripted_engine(std::string_view script, std::string_view what,
                                                     const Tokenizer& tokenizer,
                                                     ScriptedOptions options) {
  std::vector<Line> lines;
  int number = 0;
  while (!script.empty()) {
    const size_t end = std::min(script.find('\n'), script.size());
    const std::string_view text = script.substr(0, end);
    script.remove_prefix(std::min(end + 1, script.size()));
    ++number;
    if (text.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = format("{}:{}", what, number);
    NB_TRY(const Json json, parse_json(text, where));
    NB_TRY(Line line, read_line(json, where, tokenizer, options));
    lines.push_back(std::move(line));
  }
  if (lines.empty()) return make_error(ErrorCode::kInvalidArgument, "{}: no lines", what);
  return std::unique_ptr<Engine>(
      std::make_unique<ScriptedEngine>(std::move(lines), tokenizer, std::move(options)));
}

}  // namespace nibble
