// Peak resident memory of quantization against its bound: the largest layer plus the largest
// shard's mapped pages. Writes a random checkpoint of NUM_LAYERS layers, so that the model is much
// larger than the bound. Usage: bench_quantize_memory [NUM_LAYERS [HIDDEN_SIZE]]
#include <cstdio>
#include <cstdlib>

#include "base/format.h"
#include "quant/pipeline.h"
#include "random_model.h"

namespace {

using namespace nibble;

constexpr const char* kRecipe = R"(quant_stage:
  quant_modifiers:
    QuantizationModifier:
      targets: [Linear]
      ignore: ["re:.*lm_head"]
      config_groups:
        group_0:
          targets: [Linear]
          weights: {num_bits: 4, type: int, symmetric: false, strategy: group, group_size: 128,
                    observer: memoryless_minmax}
)";

Status bench(int num_layers, int64_t hidden) {
  std::string pattern = (fs::temp_directory_path() / "nibble-bench-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr)
    return make_error(ErrorCode::kIo, "{}: cannot be made", pattern);
  const fs::path directory = pattern;
  const auto work = [&]() -> Status {
    NB_TRY(const size_t layer_bytes, write_model(directory / "in", num_layers, hidden));
    const size_t before = peak_resident_bytes();
    QuantizeOptions options;
    NB_TRY(options.recipe, parse_recipe(kRecipe, "benchmark recipe"));
    NB_TRY(const QuantizeReport report,
           quantize_checkpoint(directory / "in", directory / "out", options));
    const size_t peak = peak_resident_bytes();
    const size_t shard_bytes = layer_bytes + (size_t{1} << 20);
    const size_t bound = layer_bytes + shard_bytes;
    std::printf("model               %s in %d layers\n",
                format_bytes(static_cast<double>(report.source_bytes)).c_str(), num_layers);
    std::printf("bound               %s (largest layer + largest shard)\n",
                format_bytes(static_cast<double>(bound)).c_str());
    std::printf("peak before         %s\n", format_bytes(static_cast<double>(before)).c_str());
    std::printf("peak of the process %s, %.2f of the bound\n",
                format_bytes(static_cast<double>(peak)).c_str(),
                static_cast<double>(peak) / static_cast<double>(bound));
    std::printf("time                %.1f s, %s/s read\n", report.seconds,
                format_bytes(static_cast<double>(report.source_bytes) / report.seconds).c_str());
    return {};
  };
  const Status status = work();
  fs::remove_all(directory);
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  const int num_layers = argc > 1 ? std::atoi(argv[1]) : 12;
  const int hidden = argc > 2 ? std::atoi(argv[2]) : 2048;
  if (num_layers < 1 || hidden < 128 || hidden % 128 != 0) {
    std::fprintf(stderr,
                 "usage: bench_quantize_memory [NUM_LAYERS [HIDDEN_SIZE, a multiple of 128]]\n");
    return 2;
  }
  const nibble::Status status = bench(num_layers, hidden);
  if (status) return 0;
  std::fprintf(stderr, "%s\n", status.error().message.c_str());
  return 1;
}
