// The arithmetic of a load test: per-request times in, vLLM's benchmark figures out. Knows no
// sockets (cli/bench.cc has them), so that it can be tested on made-up times.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"

namespace nibble {

struct LoadSample {
  bool ok = false;
  std::string error;  // when not ok
  int num_prompt_tokens = 0;
  int num_output_tokens = 0;
  double ttft_s = 0;          // request sent to first token
  double latency_s = 0;       // request sent to last token
  std::vector<double> itl_s;  // between chunks
};

struct LoadGoals {  // milliseconds; 0: none. A request counts towards goodput when it meets all
  double ttft_ms = 0;
  double tpot_ms = 0;
  double e2el_ms = 0;
};

// vLLM's keys: duration, completed, total_input_tokens, total_output_tokens, request_throughput,
// output_throughput, total_token_throughput, request_goodput, {mean,median,std,p99}_{ttft,tpot,itl,
// e2el}_ms, failed. TPOT is (latency - ttft) / (tokens - 1), over requests with two tokens or more.
Json load_report(const std::vector<LoadSample>& samples, double duration_s, const LoadGoals& goals);

// The same as vLLM's table of text.
std::string load_table(const Json& report);

}  // namespace nibble
