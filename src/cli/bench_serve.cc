// nibble bench serve: load on a running OpenAI-compatible server, with the flags and the result
// keys of vLLM's benchmark. Works against any server that streams chat completions.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <random>
#include <thread>

#include "base/file.h"
#include "base/format.h"
#include "base/json.h"
#include "base/text.h"
#include "cli/bench.h"
#include "eval/load.h"
#include "net/http_client.h"

namespace nibble::cli {
namespace {

using Clock = std::chrono::steady_clock;

struct BenchServeFlags {
  std::string base_url;
  std::string host = "127.0.0.1";
  int port = 8000;
  std::string endpoint = "/v1/chat/completions";
  std::string model;
  std::string api_key;
  int num_prompts = 100;
  int max_concurrency = 0;
  float request_rate = 0;
  int duration_s = 0;
  int random_input_len = 128;
  int random_output_len = 64;
  bool ignore_eos = false;
  float temperature = 0;
  int seed = 0;
  std::vector<std::string> goodput;
  bool save_result = false;
  std::string result_filename = "bench-serve.json";
  bool json = false;

  template <class V>
  void visit(V& v) {
    v.option("base-url", &base_url, "http://HOST:PORT instead of --host and --port");
    v.option("host", &host, "address of the server");
    v.option("port", &port, "port of the server");
    v.option("endpoint", &endpoint, "route that streams chat completions");
    v.option("model", &model, "model named in requests; none: the server's");
    v.option("api-key", &api_key, "key of the server (also OPENAI_API_KEY)");
    v.environment("api-key", "OPENAI_API_KEY");
    v.secret("api-key");
    v.option("num-prompts", &num_prompts, "requests to send");
    v.option("max-concurrency", &max_concurrency, "requests at once; 0: all, up to 1024");
    v.option("request-rate", &request_rate,
             "requests a second, at random (Poisson) times; 0: as fast as they end");
    v.option("duration", &duration_s, "seconds to go on sending; 0: until --num-prompts are done");
    v.option("random-input-len", &random_input_len, "words in a prompt");
    v.option("random-output-len", &random_output_len, "tokens of an answer at most");
    v.option("ignore-eos", &ignore_eos, "make every answer as long as asked");
    v.option("temperature", &temperature, "of sampling");
    v.option("seed", &seed, "of prompts and arrival times");
    v.option("goodput", &goodput,
             "goals as ttft:MS, tpot:MS or e2el:MS; request_goodput counts "
             "requests that meet all");
    v.option("save-result", &save_result, "write --result-filename");
    v.option("result-filename", &result_filename, "file for the result as JSON");
    v.option("json", &json, "print JSON instead of the table");
  }
};

Result<LoadGoals> parse_goals(const std::vector<std::string>& texts) {
  LoadGoals goals;
  for (const std::string& text : texts) {
    const size_t colon = std::min(text.find(':'), text.size());
    const std::string name = text.substr(0, colon);
    char* end = nullptr;
    const std::string number = text.substr(std::min(colon + 1, text.size()));
    const double ms = std::strtod(number.c_str(), &end);
    double* const goal = name == "ttft"   ? &goals.ttft_ms
                         : name == "tpot" ? &goals.tpot_ms
                         : name == "e2el" ? &goals.e2el_ms
                                          : nullptr;
    if (!goal || number.empty() || *end != '\0' || !(ms > 0))
      return make_error(ErrorCode::kInvalidArgument,
                        "--goodput {}: give ttft:MS, tpot:MS or e2el:MS", text);
    *goal = ms;
  }
  return goals;
}

// Common short words: about a token each; no two prompts share a prefix worth caching.
std::string random_prompt(int num_words, std::mt19937_64& random) {
  static constexpr std::string_view kWords[] = {
      "the",    "river", "stone", "asks",  "light", "of",     "a",
      "house",  "under", "seven", "trees", "and",   "wind",   "moves",
      "slowly", "over",  "green", "hills", "while", "people", "count"};
  std::string out = std::to_string(random() % 1'000'000);
  for (int i = 1; i < num_words; ++i) {
    out += ' ';
    out += kWords[random() % std::size(kWords)];
  }
  return out;
}

// Cuts a stream of server-sent events into their data.
class EventReader {
 public:
  template <class Take>
  void push(std::string_view bytes, const Take& take) {
    pending_ += bytes;
    size_t end;
    while ((end = pending_.find("\n\n")) != std::string::npos) {
      const std::string event = pending_.substr(0, end);
      pending_.erase(0, end + 2);
      if (event.starts_with("data: ")) take(std::string_view(event).substr(6));
    }
  }

 private:
  std::string pending_;
};

class Load {
 public:
  Load(const BenchServeFlags& flags, HttpUrl url, const std::string& key_header)
      : flags_(flags),
        url_(std::move(url)),
        headers_("Content-Type: application/json\r\n" + key_header) {}

  std::vector<LoadSample> run(double* duration_s) {
    int num_threads = flags_.max_concurrency > 0 ? flags_.max_concurrency : flags_.num_prompts;
    if (flags_.duration_s == 0) num_threads = std::min(num_threads, flags_.num_prompts);
    num_threads = std::clamp(num_threads, 1, 1024);
    start_ = Clock::now();
    std::vector<std::thread> threads;
    for (int i = 0; i < num_threads; ++i) threads.emplace_back([this, i] { work(i); });
    for (std::thread& thread : threads) thread.join();
    *duration_s = std::chrono::duration<double>(Clock::now() - start_).count();
    return std::move(samples_);
  }

 private:
  void work(int number) {
    HttpClient client(url_.host, url_.port, std::chrono::minutes(5));
    std::mt19937_64 random(static_cast<uint64_t>(flags_.seed) * 1'000'003 +
                           static_cast<uint64_t>(number));
    while (wait_for_turn()) {
      LoadSample sample = send(client, random_prompt(flags_.random_input_len, random));
      std::lock_guard lock(mutex_);
      samples_.push_back(std::move(sample));
    }
  }

  // Sleeps until the next request is due; false when there is none.
  bool wait_for_turn() {
    Clock::time_point due;
    {
      std::lock_guard lock(mutex_);
      if (flags_.duration_s > 0) {
        if (Clock::now() - start_ >= std::chrono::seconds(flags_.duration_s)) return false;
      } else if (num_started_ == flags_.num_prompts) {
        return false;
      }
      ++num_started_;
      due = start_ + std::chrono::duration_cast<Clock::duration>(
                         std::chrono::duration<double>(next_arrival_s_));
      if (flags_.request_rate > 0)
        next_arrival_s_ += std::exponential_distribution<double>(flags_.request_rate)(arrivals_);
    }
    std::this_thread::sleep_until(due);
    return true;
  }

  LoadSample send(HttpClient& client, std::string prompt) const {
    Json body = {{"messages", {{{"role", "user"}, {"content", std::move(prompt)}}}},
                 {"max_tokens", flags_.random_output_len},
                 {"temperature", flags_.temperature},
                 {"stream", true},
                 {"stream_options", {{"include_usage", true}}}};
    if (!flags_.model.empty()) body["model"] = flags_.model;
    if (flags_.ignore_eos) body["ignore_eos"] = true;
    LoadSample sample;
    EventReader events;
    bool done = false;
    int num_chunks = 0;
    const auto start = Clock::now();
    auto last = start;
    const auto take = [&](std::string_view data) {
      if (data == "[DONE]") {
        done = true;
        return;
      }
      const Result<Json> event = parse_json(data, "event");
      if (!event) {
        sample.error = event.error().message;
        return;
      }
      if (event->contains("error")) sample.error = dump_json((*event)["error"]);
      if (const Json usage = event->value("usage", Json()); usage.is_object()) {
        sample.num_prompt_tokens = usage.value("prompt_tokens", 0);
        sample.num_output_tokens = usage.value("completion_tokens", 0);
      }
      if (!carries_text(*event)) return;
      const auto now = Clock::now();
      const double since = std::chrono::duration<double>(now - last).count();
      if (num_chunks++ == 0) {
        sample.ttft_s = since;
      } else {
        sample.itl_s.push_back(since);
      }
      last = now;
    };
    const Result<HttpAnswer> answer = client.request("POST", url_.path + flags_.endpoint, headers_,
                                                     dump_json(body), [&](std::string_view bytes) {
                                                       events.push(bytes, take);
                                                       return true;
                                                     });
    sample.latency_s = std::chrono::duration<double>(last - start).count();
    if (!answer) {
      sample.error = answer.error().message;
    } else if (answer->status != 200) {
      sample.error = format("HTTP {}: {}", answer->status, answer->body.substr(0, 200));
    } else if (!done && sample.error.empty()) {
      sample.error = "the stream ended without [DONE]";
    }
    sample.ok = sample.error.empty();
    return sample;
  }

  static bool carries_text(const Json& event) {
    const Json choices = event.value("choices", Json::array());
    if (!choices.is_array() || choices.empty() || !choices[0].is_object()) return false;
    const Json delta = choices[0].value("delta", Json::object());
    const auto has = [&](const char* key) {
      const auto it = delta.find(key);
      return it != delta.end() && !it->is_null() && !(it->is_string() && it->empty()) &&
             *it != Json("");
    };
    return has("content") || has("reasoning") || has("reasoning_content") || has("tool_calls");
  }

  const BenchServeFlags& flags_;
  const HttpUrl url_;
  std::string headers_;
  Clock::time_point start_;
  std::mutex mutex_;
  int num_started_ = 0;
  double next_arrival_s_ = 0;
  std::mt19937_64 arrivals_{42};
  std::vector<LoadSample> samples_;
};

Result<int> run_bench_serve(const BenchServeFlags& flags) {
  HttpUrl url{flags.host, flags.port, ""};
  if (!flags.base_url.empty()) {
    NB_TRY(url, parse_http_url(flags.base_url));
  }
  if (flags.num_prompts < 1 || flags.random_input_len < 1 || flags.random_output_len < 1)
    return make_error(
        ErrorCode::kInvalidArgument,
        "--num-prompts, --random-input-len and --random-output-len: must be 1 or more");
  NB_TRY(const LoadGoals goals, parse_goals(flags.goodput));
  NB_TRY(const std::string key_header, bearer_header(flags.api_key));
  double duration_s = 0;
  const std::vector<LoadSample> samples = Load(flags, url, key_header).run(&duration_s);
  Json report = load_report(samples, duration_s, goals);
  report["num_prompts"] = samples.size();
  report["max_concurrency"] = flags.max_concurrency > 0 ? Json(flags.max_concurrency) : Json();
  report["request_rate"] = flags.request_rate > 0 ? Json(flags.request_rate) : Json("inf");
  if (flags.save_result)
    NB_TRY_STATUS(write_file_durably(flags.result_filename, dump_json(report) + "\n"));
  std::fputs(flags.json ? (dump_json(report) + "\n").c_str() : load_table(report).c_str(), stdout);
  for (const LoadSample& sample : samples)
    if (!sample.ok) {
      std::fprintf(stderr, "nibble: first failure: %s\n", sample.error.c_str());
      break;
    }
  return report["failed"] == 0 ? 0 : 1;
}

}  // namespace

int bench_serve(Arguments arguments) {
  BenchServeFlags flags;
  OptionSet set("nibble bench serve", "measure a running server under load");
  if (const Parsed parsed = parse(set, flags, arguments); !parsed.ok) return parsed.exit;
  const Result<int> code = run_bench_serve(flags);
  return code ? *code : fail(code.error());
}

}  // namespace nibble::cli
