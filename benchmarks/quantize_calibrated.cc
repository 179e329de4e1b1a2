// Seconds per billion parameters and peak memory of AWQ, and of AWQ + GPTQ; what the search costs
// in forward passes over the calibration set; and what `nibble quantize --dry-run` estimates for
// both.
//   bench_quantize_calibrated [NUM_TOKENS [HIDDEN_SIZE [INTERMEDIATE_SIZE [ALGORITHM [N_GRID]]]]]
// Memory depends on the shapes, hardly on the candidates: the layers of a 40B model (attention as
// large, hidden 5120) are `512 5120 17408 awq 2`.
#include <cstdio>
#include <cstdlib>

#include "base/format.h"
#include "quant/estimate.h"
#include "quant/pipeline.h"
#include "random_model.h"

namespace {

using namespace nibble;

constexpr int kNumLayers = 2;

struct Workload {
  int num_tokens = 8192;
  int64_t hidden = 512;
  int64_t intermediate = 0;
  int num_candidates = 20;
};

Status bench(const Workload& workload, const std::string& algorithm) {
  std::string pattern = (fs::temp_directory_path() / "nibble-bench-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr)
    return make_error(ErrorCode::kIo, "{}: cannot be made", pattern);
  const fs::path directory = pattern;
  const auto work = [&]() -> Status {
    NB_TRY_STATUS(
        write_model(directory / "in", kNumLayers, workload.hidden, workload.intermediate));
    RecipeParts parts;
    parts.algorithm = algorithm;
    QuantizeOptions options;
    NB_TRY(options.recipe, parse_recipe(recipe_text(parts), "benchmark recipe"));
    options.recipe.awq->num_candidates = workload.num_candidates;
    std::mt19937 random(1);
    for (int left = workload.num_tokens; left > 0; left -= 512) {
      options.calibration.emplace_back(static_cast<size_t>(std::min(left, 512)));
      for (int32_t& id : options.calibration.back()) id = static_cast<int32_t>(random() % 1024);
    }
    NB_TRY(const QuantizeEstimate estimate, estimate_quantization(directory / "in", options));
    const size_t before = peak_resident_bytes();
    std::printf("%-9s layer  forward s  search s  search/forward  rounding s\n", algorithm.c_str());
    options.calibrated.progress = [&](const LayerSummary& layer) {
      std::printf("%9s %5d  %9.2f  %8.2f  %14.1f  %10.2f\n", "", layer.layer, layer.forward_seconds,
                  layer.search_seconds, layer.search_seconds / layer.forward_seconds,
                  layer.rounding_seconds);
      std::fflush(stdout);
    };
    NB_TRY(const QuantizeReport report,
           quantize_checkpoint(directory / "in", directory / "out", options));
    const double billions = static_cast<double>(report.source_bytes) / 2 / 1e9;
    const auto bytes = [](size_t count) { return format_bytes(static_cast<double>(count)); };
    std::printf(
        "%9s %.3f billion parameters, %d tokens, %d candidates: %.0f s per billion (estimated "
        "%.0f)\n",
        "", billions, workload.num_tokens, workload.num_candidates, report.seconds / billions,
        estimate.seconds / billions);
    std::printf("%9s peak of the process %s, %s before, estimated %s\n", "",
                bytes(peak_resident_bytes()).c_str(), bytes(before).c_str(),
                bytes(estimate.memory_bytes).c_str());
    return {};
  };
  const Status status = work();
  fs::remove_all(directory);
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  const auto number = [&](int i, int otherwise) {
    return argc > i ? std::atoi(argv[i]) : otherwise;
  };
  Workload workload;
  workload.num_tokens = number(1, workload.num_tokens);
  workload.hidden = number(2, static_cast<int>(workload.hidden));
  workload.intermediate = number(3, static_cast<int>(workload.hidden) * 3);
  workload.num_candidates = number(5, workload.num_candidates);
  const std::string only = argc > 4 ? argv[4] : "";
  if (workload.num_tokens < 1 || workload.hidden < 128 || workload.hidden % 128 != 0 ||
      workload.intermediate < 128 || workload.intermediate % 128 != 0 ||
      workload.num_candidates < 2 || (!only.empty() && only != "awq" && only != "awq+gptq")) {
    std::fputs(
        "usage: bench_quantize_calibrated [NUM_TOKENS [HIDDEN_SIZE [INTERMEDIATE_SIZE "
        "[awq|awq+gptq "
        "[N_GRID]]]]]\nsizes are multiples of 128\n",
        stderr);
    return 2;
  }
  for (const char* algorithm : {"awq", "awq+gptq"}) {
    if (!only.empty() && only != algorithm) continue;
    if (const Status status = bench(workload, algorithm); !status) {
      std::fprintf(stderr, "bench: %s\n", status.error().message.c_str());
      return 1;
    }
  }
  return 0;
}
