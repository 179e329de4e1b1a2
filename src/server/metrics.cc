// Buckets and names are vLLM's.
#include "server/metrics.h"

#include <algorithm>
#include <array>

#include "base/format.h"

namespace nibble {
namespace {

constexpr std::array kFirstToken = {.001, .005, .01, .02, .04, .06, .08, .1,  .25,  .5,   .75,
                                    1.,   2.5,  5.,  7.5, 10., 20., 40., 80., 160., 640., 2560.};
constexpr std::array kInterToken = {.01, .025, .05, .075, .1,  .15, .2,  .3,  .4, .5,
                                    .75, 1.,   2.5, 5.,   7.5, 10., 20., 40., 80.};
constexpr std::array kRequestTime = {.3,  .5,  .8,  1.,  1.5,  2.,   2.5,  5.,   10.,   15.,  20.,
                                     30., 40., 50., 60., 120., 240., 480., 960., 1920., 7680.};
constexpr std::array kChoices = {1., 2., 5., 10., 20.};

// 1, 2, 5, 10, 20, 50, ... up to `limit`.
std::vector<double> token_buckets(int limit) {
  std::vector<double> out;
  for (double decade = 1;; decade *= 10)
    for (const double step : {1.0, 2.0, 5.0}) {
      if (decade * step > limit) return out;
      out.push_back(decade * step);
    }
}

void head(std::string_view name, std::string_view type, std::string_view help, std::string* out) {
  *out += format("# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
}

const char* reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kRepetition: return "repetition";
    case FinishReason::kError: return "error";
    case FinishReason::kNone:
    case FinishReason::kAbort:
    case FinishReason::kTimeout: break;
  }
  return "abort";
}

}  // namespace

std::string escape_label(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n')
      out += "\\n";
    else
      out += c;
  }
  return out;
}

Histogram::Histogram(std::span<const double> bounds)
    : bounds_(bounds.begin(), bounds.end()), counts_(bounds.size() + 1) {}

void Histogram::observe(double value) {
  const auto bucket = std::ranges::lower_bound(bounds_, value) - bounds_.begin();
  ++counts_[static_cast<size_t>(bucket)];
  sum_ += value;
  ++count_;
}

void Histogram::render(std::string_view name, std::string_view labels, std::string* out) const {
  int64_t below = 0;
  for (size_t i = 0; i < bounds_.size(); ++i) {
    below += counts_[i];
    // Prometheus clients write 1.0, not 1.
    std::string bound = format("{}", bounds_[i]);
    if (bound.find_first_of(".e") == std::string::npos) bound += ".0";
    *out += format("{}_bucket{{{},le=\"{}\"}} {}\n", name, labels, bound, below);
  }
  *out += format("{}_bucket{{{},le=\"+Inf\"}} {}\n", name, labels, count_);
  *out += format("{}_sum{{{}}} {}\n{}_count{{{}}} {}\n", name, labels, sum_, name, labels, count_);
}

ServerMetrics::ServerMetrics(std::string model_name, int max_model_len)
    : labels_(format("model_name=\"{}\",engine=\"0\"", escape_label(model_name))),
      prompt_tokens_(token_buckets(max_model_len)),
      generation_tokens_(token_buckets(max_model_len)),
      max_generation_tokens_(token_buckets(max_model_len)),
      params_max_tokens_(token_buckets(max_model_len)),
      prefill_computed_tokens_(token_buckets(max_model_len)),
      params_n_(kChoices),
      time_to_first_token_(kFirstToken),
      inter_token_latency_(kInterToken),
      time_per_output_token_(kInterToken),
      e2e_(kRequestTime),
      queue_(kRequestTime),
      inference_(kRequestTime),
      prefill_(kRequestTime),
      decode_(kRequestTime) {}

void ServerMetrics::first_token(double seconds_since_arrival) {
  std::lock_guard lock(mutex_);
  time_to_first_token_.observe(seconds_since_arrival);
}

void ServerMetrics::next_token(double seconds_since_last) {
  std::lock_guard lock(mutex_);
  inter_token_latency_.observe(seconds_since_last);
}

void ServerMetrics::request_finished(const FinishedRequest& request) {
  std::lock_guard lock(mutex_);
  ++finished_[request.finish];
  prompt_tokens_.observe(request.num_prompt_tokens);
  generation_tokens_.observe(request.num_generated_tokens);
  max_generation_tokens_.observe(request.num_generated_tokens);
  params_max_tokens_.observe(request.max_tokens);
  params_n_.observe(request.num_choices);
  prefill_computed_tokens_.observe(request.num_prompt_tokens - request.num_cached_tokens);
  e2e_.observe(request.total_seconds);
  if (request.num_generated_tokens == 0) return;
  queue_.observe(request.queue_seconds);
  inference_.observe(request.total_seconds - request.queue_seconds);
  prefill_.observe(request.first_token_seconds - request.queue_seconds);
  const double decode = request.total_seconds - request.first_token_seconds;
  decode_.observe(decode);
  if (request.num_generated_tokens > 1)
    time_per_output_token_.observe(decode / (request.num_generated_tokens - 1));
}

void ServerMetrics::http_request(std::string_view route, std::string_view method, int status,
                                 double seconds, size_t request_bytes) {
  std::lock_guard lock(mutex_);
  HttpSeries& series = http_[{std::string(route), std::string(method)}];
  ++series.by_status[format("{}xx", status / 100)];
  series.request_bytes += static_cast<int64_t>(request_bytes);
  ++series.num_requests;
  series.seconds += seconds;
}

std::string ServerMetrics::render(
    const EngineStats& stats, std::span<const std::pair<std::string, std::string>> config) const {
  std::string out;
  const auto add = [&](std::string_view name, std::string_view type, std::string_view help,
                       double value, std::string_view more = "") {
    if (!help.empty()) head(name, type, help, &out);
    out += format("{}{{{}{}}} {}\n", name, labels_, more, value);
  };
  const auto total = [&](std::string_view name, std::string_view help, int64_t value) {
    add(name, "counter", help, static_cast<double>(value));
  };
  add("vllm:num_requests_running", "gauge", "Requests in the batch.", stats.num_running);
  add("vllm:num_requests_waiting", "gauge", "Requests waiting.", stats.num_waiting);
  add("vllm:num_requests_waiting_by_reason", "gauge", "Requests waiting, by reason.",
      stats.num_waiting_capacity, ",reason=\"capacity\"");
  add("vllm:num_requests_waiting_by_reason", "", "", stats.num_waiting_deferred,
      ",reason=\"deferred\"");
  add("vllm:kv_cache_usage_perc", "gauge", "KV cache in use, 0 to 1.", stats.kv_usage);
  add("vllm:engine_sleep_state", "gauge", "1 for the state the engine is in.", 1,
      ",sleep_state=\"awake\"");
  add("vllm:engine_sleep_state", "", "", 0, ",sleep_state=\"weights_offloaded\"");
  add("vllm:engine_sleep_state", "", "", 0, ",sleep_state=\"discard_all\"");
  total("nibble:allocations_after_ready_total", "Device allocations while serving; must stay 0.",
        stats.num_allocations_after_ready);
  total("vllm:num_preemptions_total", "Sequences set back to make room.", stats.num_preemptions);
  total("vllm:prompt_tokens_total", "Prompt tokens taken in.", stats.prompt_tokens);
  total("vllm:generation_tokens_total", "Tokens generated.", stats.generated_tokens);
  total("vllm:prompt_tokens_cached_total", "Prompt tokens found in a cache.",
        stats.prompt_tokens_cached());
  head("vllm:prompt_tokens_by_source_total", "counter", "Prompt tokens, by where they came from.",
       &out);
  const std::pair<const char*, int64_t> sources[] = {
      {"local_compute", stats.prompt_tokens_computed},
      {"local_cache_hit", stats.prompt_tokens_from_device},
      {"external_kv_transfer", stats.prompt_tokens_from_tiers}};
  for (const auto& [source, tokens] : sources)
    add("vllm:prompt_tokens_by_source_total", "", "", static_cast<double>(tokens),
        format(",source=\"{}\"", source));
  total("vllm:prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.",
        stats.prefix_cache_queries);
  total("vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache.",
        stats.prefix_cache_hits);
  total("vllm:external_prefix_cache_queries_total", "Prompt tokens looked up in host and disk.",
        stats.external_prefix_cache_queries);
  total("vllm:external_prefix_cache_hits_total", "Prompt tokens found in host and disk.",
        stats.external_prefix_cache_hits);
  total("vllm:mm_cache_queries_total", "Images looked up: there are none.", 0);
  total("vllm:mm_cache_hits_total", "Images found.", 0);
  total("nibble:disk_cache_reads_total", "Slots read from --cache-dir.", stats.num_disk_reads);
  total("nibble:disk_cache_writes_total", "Slots written to --cache-dir.", stats.num_disk_writes);
  total("nibble:disk_cache_rejects_total", "Files of --cache-dir that were not usable.",
        stats.num_disk_rejects);
  head("vllm:iteration_tokens_total", "histogram", "Tokens of an engine step.", &out);
  int64_t steps = 0;
  for (size_t i = 0; i < kStepTokenBounds.size(); ++i) {
    steps += stats.step_tokens[i];
    out += format("vllm:iteration_tokens_total_bucket{{{},le=\"{}.0\"}} {}\n", labels_,
                  kStepTokenBounds[i], steps);
  }
  steps += stats.step_tokens.back();
  out += format(
      "vllm:iteration_tokens_total_bucket{{{0},le=\"+Inf\"}} {1}\n"
      "vllm:iteration_tokens_total_sum{{{0}}} {2}\nvllm:iteration_tokens_total_count{{{0}}} {1}\n",
      labels_, steps, stats.step_tokens_sum);

  std::lock_guard lock(mutex_);
  head("vllm:request_success_total", "counter", "Requests that ended, by reason.", &out);
  for (const char* reason : {"stop", "length", "abort", "error", "repetition"}) {
    int64_t count = 0;
    for (const auto& [finish, number] : finished_)
      if (std::string_view(reason_name(finish)) == reason) count += number;
    out += format("vllm:request_success_total{{{},finished_reason=\"{}\"}} {}\n", labels_, reason,
                  count);
  }
  const auto histogram = [&](std::string_view name, std::string_view help, const Histogram& what) {
    head(name, "histogram", help, &out);
    what.render(name, labels_, &out);
  };
  histogram("vllm:request_prompt_tokens", "Prompt tokens of a request.", prompt_tokens_);
  histogram("vllm:request_generation_tokens", "Tokens generated for a request.",
            generation_tokens_);
  histogram("vllm:request_max_num_generation_tokens", "Most tokens generated for one choice.",
            max_generation_tokens_);
  histogram("vllm:request_params_max_tokens", "max_tokens of a request.", params_max_tokens_);
  histogram("vllm:request_params_n", "n of a request.", params_n_);
  histogram("vllm:request_prefill_kv_computed_tokens", "Prompt tokens not found in the cache.",
            prefill_computed_tokens_);
  histogram("vllm:time_to_first_token_seconds", "From arrival to the first token.",
            time_to_first_token_);
  histogram("vllm:inter_token_latency_seconds", "Between two tokens of a request.",
            inter_token_latency_);
  histogram("vllm:request_time_per_output_token_seconds", "Decode time over tokens, of a request.",
            time_per_output_token_);
  histogram("vllm:e2e_request_latency_seconds", "From arrival to the end.", e2e_);
  histogram("vllm:request_queue_time_seconds", "From arrival to the first step.", queue_);
  histogram("vllm:request_inference_time_seconds", "From the first step to the end.", inference_);
  histogram("vllm:request_prefill_time_seconds", "From the first step to the first token.",
            prefill_);
  histogram("vllm:request_decode_time_seconds", "From the first token to the end.", decode_);

  head("vllm:cache_config_info", "gauge", "Settings of the cache, as labels.", &out);
  std::string labels = format(
      ",block_size=\"{}\",cache_dtype=\"{}\",num_gpu_blocks=\"{}\",num_cpu_blocks=\"{}\","
      "enable_prefix_caching=\"{}\"",
      stats.cache.block_size, escape_label(stats.cache.dtype), stats.cache.num_blocks,
      stats.cache.num_host_blocks, stats.cache.prefix_caching ? "True" : "False");
  for (const auto& [name, value] : config)
    labels += format(",{}=\"{}\"", name, escape_label(value));
  out += format("vllm:cache_config_info{{engine=\"0\"{}}} 1\n", labels);

  head("http_requests_total", "counter", "Answers, by route, method and status.", &out);
  for (const auto& [key, series] : http_)
    for (const auto& [status, count] : series.by_status)
      out += format("http_requests_total{{handler=\"{}\",method=\"{}\",status=\"{}\"}} {}\n",
                    escape_label(key.first), escape_label(key.second), status, count);
  head("http_request_duration_seconds", "summary", "Time of answers, by route and method.", &out);
  for (const auto& [key, series] : http_)
    out += format(
        "http_request_duration_seconds_sum{{handler=\"{0}\",method=\"{1}\"}} {2}\n"
        "http_request_duration_seconds_count{{handler=\"{0}\",method=\"{1}\"}} {3}\n",
        escape_label(key.first), escape_label(key.second), series.seconds, series.num_requests);
  head("http_request_size_bytes", "summary", "Size of request bodies, by route.", &out);
  for (const auto& [key, series] : http_)
    out += format(
        "http_request_size_bytes_sum{{handler=\"{0}\",method=\"{1}\"}} {2}\n"
        "http_request_size_bytes_count{{handler=\"{0}\",method=\"{1}\"}} {3}\n",
        escape_label(key.first), escape_label(key.second), series.request_bytes,
        series.num_requests);
  return out;
}

}  // namespace nibble
