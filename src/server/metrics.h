// The series of /metrics, with vLLM's names, buckets and labels, so that existing dashboards work.
// Thread-safe. What the engine counts is passed in when the page is rendered.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "engine/request.h"

namespace nibble {

// Cumulative buckets, as Prometheus wants them. Not thread-safe by itself.
class Histogram {
 public:
  explicit Histogram(std::span<const double> bounds);
  void observe(double value);
  // Lines NAME_bucket{labels,le="..."}, NAME_sum, NAME_count; `labels` without braces.
  void render(std::string_view name, std::string_view labels, std::string* out) const;
  int64_t count() const { return count_; }

 private:
  std::vector<double> bounds_;
  std::vector<int64_t> counts_;  // one per bound, and one beyond
  double sum_ = 0;
  int64_t count_ = 0;
};

// One choice of a request, at its end.
struct FinishedRequest {
  int num_prompt_tokens = 0;
  int num_cached_tokens = 0;
  int num_generated_tokens = 0;
  int max_tokens = 0;
  int num_choices = 1;  // n of its request
  FinishReason finish = FinishReason::kNone;
  double queue_seconds = 0;        // arrival to first scheduled, when the engine says so
  double first_token_seconds = 0;  // since arrival
  double total_seconds = 0;        // since arrival
};

class ServerMetrics {
 public:
  // `model_name` is the label; buckets of token counts reach up to `max_model_len`.
  ServerMetrics(std::string model_name, int max_model_len);

  void first_token(double seconds_since_arrival);
  void next_token(double seconds_since_last);
  void request_finished(const FinishedRequest& request);
  // `route` is the path of the route table, or "none".
  void http_request(std::string_view route, std::string_view method, int status, double seconds,
                    size_t request_bytes);

  // Prometheus text. `config` are the labels of vllm:cache_config_info.
  std::string render(const EngineStats& stats,
                     std::span<const std::pair<std::string, std::string>> config) const;

 private:
  struct HttpSeries {
    std::map<std::string, int64_t> by_status;  // "2xx"
    int64_t request_bytes = 0;
    int64_t num_requests = 0;
    double seconds = 0;
  };

  const std::string labels_;  // model_name="...",engine="0"
  mutable std::mutex mutex_;  // guards the rest
  Histogram prompt_tokens_, generation_tokens_, max_generation_tokens_, params_max_tokens_,
      prefill_computed_tokens_, params_n_;
  Histogram time_to_first_token_, inter_token_latency_, time_per_output_token_;
  Histogram e2e_, queue_, inference_, prefill_, decode_;
  std::map<FinishReason, int64_t> finished_;
  std::map<std::pair<std::string, std::string>, HttpSeries> http_;  // (route, method)
};

// A label's value with backslash, quote and newline escaped.
std::string escape_label(std::string_view text);

}  // namespace nibble
