// Time to first token of a long prompt on the demo model: never seen, seen before, and seen before
// a restart with --cache-dir. Prints both ratios; the bounds of the design are 20x and 10x.
//   bench_engine_prefix_cache [MODEL_DIR [NUM_TOKENS]]

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "base/log.h"
#include "checkpoint/model_dir.h"
#include "engine/engine.h"

namespace nibble {
namespace {

constexpr int kRounds = 3;

Request request(int num_tokens) {
  Request request;
  for (int i = 0; i < num_tokens; ++i) request.prompt.push_back((i * 31 + i / 7) % 4000);
  request.max_tokens = 1;
  request.sampling.temperature = 0;
  return request;
}

struct First {
  double seconds = 0;
  int32_t token = -1;
  int num_cached = 0;
};
First first_token(Engine& engine, Request request) {
  const auto start = std::chrono::steady_clock::now();
  const auto handle = engine.submit(std::move(request)).value();
  const TokenEvent event = handle->next();
  return {std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(),
          event.token, event.num_cached_tokens};
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

int run(const char* model, int num_tokens) {
  set_log_level(LogLevel::kWarning);
  const ModelDir dir = ModelDir::open(model).value();
  char cache_dir[] = "/tmp/nibble-cache-XXXXXX";
  if (::mkdtemp(cache_dir) == nullptr) return 1;
  EngineOptions options;
  options.max_model_len = num_tokens + 64;
  options.max_num_seqs = 4;
  options.cache_dir = cache_dir;
  std::vector<double> warm, restarted;
  bool same = true;
  First cold;
  {
    const auto engine = Engine::start(dir, options).value();
    cold = first_token(*engine, request(num_tokens));
    for (int round = 0; round < kRounds; ++round) {
      const First again = first_token(*engine, request(num_tokens));
      same = same && again.token == cold.token && again.num_cached > 0;
      warm.push_back(again.seconds);
    }
  }  // writes what is still queued
  for (int round = 0; round < kRounds; ++round) {
    const auto engine = Engine::start(dir, options).value();
    const First first = first_token(*engine, request(num_tokens));
    same = same && first.token == cold.token && first.num_cached > 0;
    restarted.push_back(first.seconds);
  }
  std::error_code ignored;
  fs::remove_all(cache_dir, ignored);
  const double base = cold.seconds;
  std::printf("%d-token prompt, time to first token; medians of %d but the first\n", num_tokens,
              kRounds);
  std::printf("  never seen                   %9.2f ms\n", base * 1e3);
  std::printf("  seen before                  %9.2f ms   %6.1fx sooner (bound 20x)\n",
              median(warm) * 1e3, base / median(warm));
  std::printf("  seen before a restart        %9.2f ms   %6.1fx sooner (bound 10x)\n",
              median(restarted) * 1e3, base / median(restarted));
  std::printf("  same first token each time   %s\n", same ? "yes" : "NO");
  return same ? 0 : 1;
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) {
  return nibble::run(argc > 1 ? argv[1] : "models/nibble-demo-14m",
                     argc > 2 ? std::atoi(argv[2]) : 8192);
}
