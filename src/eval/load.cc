// Percentiles interpolate linearly between ranks, as numpy's do.
#include "eval/load.h"

#include <algorithm>
#include <cmath>

#include "base/format.h"

namespace nibble {
namespace {

double percentile(const std::vector<double>& sorted, double percent) {
  if (sorted.empty()) return 0;
  const double rank = percent / 100 * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<size_t>(rank);
  const size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (sorted[high] - sorted[low]) * (rank - static_cast<double>(low));
}

void add_statistics(std::vector<double> seconds, const std::string& name, Json* report) {
  std::ranges::sort(seconds);
  double sum = 0, squares = 0;
  for (const double s : seconds) sum += s;
  const double count = std::max<double>(1, static_cast<double>(seconds.size()));
  const double mean = sum / count;
  for (const double s : seconds) squares += (s - mean) * (s - mean);
  (*report)["mean_" + name + "_ms"] = mean * 1e3;
  (*report)["median_" + name + "_ms"] = percentile(seconds, 50) * 1e3;
  (*report)["std_" + name + "_ms"] = std::sqrt(squares / count) * 1e3;
  (*report)["p99_" + name + "_ms"] = percentile(seconds, 99) * 1e3;
}

}  // namespace

Json load_report(const std::vector<LoadSample>& samples, double duration_s,
                 const LoadGoals& goals) {
  std::vector<double> ttft, tpot, itl, e2el;
  int64_t num_ok = 0, num_good = 0, num_input = 0, num_output = 0;
  for (const LoadSample& sample : samples) {
    if (!sample.ok) continue;
    ++num_ok;
    num_input += sample.num_prompt_tokens;
    num_output += sample.num_output_tokens;
    double per_token = 0;
    if (sample.num_output_tokens > 1) {
      per_token = (sample.latency_s - sample.ttft_s) / (sample.num_output_tokens - 1);
      tpot.push_back(per_token);
    }
    ttft.push_back(sample.ttft_s);
    e2el.push_back(sample.latency_s);
    itl.insert(itl.end(), sample.itl_s.begin(), sample.itl_s.end());
    const auto meets = [](double goal_ms, double seconds) {
      return goal_ms <= 0 || seconds * 1e3 <= goal_ms;
    };
    num_good += meets(goals.ttft_ms, sample.ttft_s) && meets(goals.tpot_ms, per_token) &&
                meets(goals.e2el_ms, sample.latency_s);
  }
  const auto rate = [&](int64_t count) {
    return duration_s > 0 ? static_cast<double>(count) / duration_s : 0;
  };
  const bool has_goals = goals.ttft_ms > 0 || goals.tpot_ms > 0 || goals.e2el_ms > 0;
  Json report = {{"duration", duration_s},
                 {"completed", num_ok},
                 {"failed", static_cast<int64_t>(samples.size()) - num_ok},
                 {"total_input_tokens", num_input},
                 {"total_output_tokens", num_output},
                 {"request_throughput", rate(num_ok)},
                 {"request_goodput", has_goals ? Json(rate(num_good)) : Json()},
                 {"output_throughput", rate(num_output)},
                 {"total_token_throughput", rate(num_input + num_output)}};
  add_statistics(std::move(ttft), "ttft", &report);
  add_statistics(std::move(tpot), "tpot", &report);
  add_statistics(std::move(itl), "itl", &report);
  add_statistics(std::move(e2el), "e2el", &report);
  return report;
}

std::string load_table(const Json& report) {
  std::string out = format("{:=^60}\n", " Serving Benchmark Result ");
  const auto row = [&](std::string_view label, const Json& value) {
    if (value.is_null()) return;
    out += value.is_number_float() ? format("{:<42}{:<.2f}\n", label, value.get<double>())
                                   : format("{:<42}{}\n", label, value.get<int64_t>());
  };
  row("Successful requests:", report["completed"]);
  row("Failed requests:", report["failed"]);
  row("Benchmark duration (s):", report["duration"]);
  row("Total input tokens:", report["total_input_tokens"]);
  row("Total generated tokens:", report["total_output_tokens"]);
  row("Request throughput (req/s):", report["request_throughput"]);
  row("Request goodput (req/s):", report["request_goodput"]);
  row("Output token throughput (tok/s):", report["output_throughput"]);
  row("Total Token throughput (tok/s):", report["total_token_throughput"]);
  struct Section {
    std::string_view title, label, key;
  };
  for (const Section& section : {Section{"Time to First Token", "TTFT", "ttft"},
                                 Section{"Time per Output Token (excl. 1st token)", "TPOT", "tpot"},
                                 Section{"Inter-token Latency", "ITL", "itl"},
                                 Section{"End-to-end Latency", "E2EL", "e2el"}}) {
    out += format("{:-^60}\n", section.title);
    for (const auto& [word, prefix] :
         {std::pair{"Mean", "mean"}, {"Median", "median"}, {"P99", "p99"}})
      row(format("{} {} (ms):", word, section.label),
          report[format("{}_{}_ms", prefix, section.key)]);
  }
  return out + std::string(60, '=') + "\n";
}

}  // namespace nibble
