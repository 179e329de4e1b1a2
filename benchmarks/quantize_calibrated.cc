// Seconds per billion parameters and peak memory of AWQ + GPTQ, and what the search costs in
// forward passes over the calibration set. Usage: bench_quantize_calibrated [NUM_TOKENS
// [HIDDEN_SIZE]]
#include <cstdio>
#include <cstdlib>

#include "base/format.h"
#include "quant/pipeline.h"
#include "random_model.h"

namespace {

using namespace nibble;

constexpr int kNumLayers = 2;

Status bench(int num_tokens, int64_t hidden, const std::string& algorithm) {
  std::string pattern = (fs::temp_directory_path() / "nibble-bench-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr)
    return make_error(ErrorCode::kIo, "{}: cannot be made", pattern);
  const fs::path directory = pattern;
  const auto work = [&]() -> Status {
    NB_TRY_STATUS(write_model(directory / "in", kNumLayers, hidden));
    RecipeParts parts;
    parts.algorithm = algorithm;
    QuantizeOptions options;
    NB_TRY(options.recipe, parse_recipe(recipe_text(parts), "benchmark recipe"));
    std::mt19937 random(1);
    for (int left = num_tokens; left > 0; left -= 512) {
      options.calibration.emplace_back(static_cast<size_t>(std::min(left, 512)));
      for (int32_t& id : options.calibration.back()) id = static_cast<int32_t>(random() % 1024);
    }
    std::printf("%-9s layer  forward s  search s  search/forward  rounding s\n", algorithm.c_str());
    options.calibrated.progress = [&](const LayerSummary& layer) {
      std::printf("%9s %5d  %9.2f  %8.2f  %14.1f  %10.2f\n", "", layer.layer, layer.forward_seconds,
                  layer.search_seconds, layer.search_seconds / layer.forward_seconds,
                  layer.rounding_seconds);
    };
    NB_TRY(const QuantizeReport report,
           quantize_checkpoint(directory / "in", directory / "out", options));
    const double billions = static_cast<double>(report.source_bytes) / 2 / 1e9;
    std::printf("%9s %.3f billion parameters, %d tokens: %.0f s per billion, peak %s\n", "",
                billions, num_tokens, report.seconds / billions,
                format_bytes(static_cast<double>(peak_resident_bytes())).c_str());
    return {};
  };
  const Status status = work();
  fs::remove_all(directory);
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  const int num_tokens = argc > 1 ? std::atoi(argv[1]) : 8192;
  const int hidden = argc > 2 ? std::atoi(argv[2]) : 512;
  if (num_tokens < 1 || hidden < 128 || hidden % 128 != 0) {
    std::fputs("usage: bench_quantize_calibrated [NUM_TOKENS [HIDDEN_SIZE, a multiple of 128]]\n",
               stderr);
    return 2;
  }
  for (const char* algorithm : {"awq", "awq+gptq"})
    if (const Status status = bench(num_tokens, hidden, algorithm); !status) {
      std::fprintf(stderr, "bench: %s\n", status.error().message.c_str());
      return 1;
    }
  return 0;
}
