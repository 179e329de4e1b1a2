// Quantizing a model's shape on a device: the first layers of a random checkpoint, extrapolated to
// all.
//   bench_quantize_shape [SHAPE [NUM_LAYERS [NUM_SAMPLES [SAMPLE_TOKENS [DEVICE [GPU_GIB
//   [ALGORITHM [FOLDER]]]]]]]]
// Calibration costs the same for every layer of a kind, so NUM_LAYERS should be a multiple of what
// the kinds repeat after (4); hashing, checking and writing cost the same for every byte.
#include <cstdio>
#include <cstdlib>

#include "base/format.h"
#include "model/synthetic_shapes.h"
#include "model/synthetic_weights.h"
#include "quant/pipeline.h"
#include "random_model.h"

namespace {

using namespace nibble;

struct Workload {
  std::string shape = "qwen3.6-40b";
  int num_layers = 4;
  int num_samples = 256;
  int sample_tokens = 2048;
  std::string device = "auto";
  double gpu_gib = 15.5;
  std::string algorithm = "awq";  // rtn, awq, gptq, awq+gptq
  fs::path folder = fs::temp_directory_path();
};

struct Sizes {
  int num_layers = 0;
  double bytes = 0;
};

Result<Sizes> sizes_of(const Json& config) {
  NB_TRY(const size_t bytes, synthetic_bytes(config));
  return Sizes{config["num_hidden_layers"].get<int>(), static_cast<double>(bytes)};
}

Status bench(const Workload& workload, const fs::path& folder) {
  NB_TRY(const Json config, synthetic_config(workload.shape, {.num_layers = workload.num_layers}));
  NB_TRY(const Json whole_config, synthetic_config(workload.shape, {}));
  NB_TRY(const Sizes slice, sizes_of(config));
  NB_TRY(const Sizes whole, sizes_of(whole_config));
  {
    ThreadPool pool;
    NB_TRY(CheckpointWriter writer,
           CheckpointWriter::create(folder / "in", {.max_shard_bytes = 1'000'000'000}));
    NB_TRY_STATUS(write_synthetic_checkpoint(config, 0, pool, writer));
    NB_TRY_STATUS(writer.finish());
  }
  QuantizeOptions options;
  RecipeParts parts;
  parts.algorithm = workload.algorithm;
  NB_TRY(options.recipe, parse_recipe(recipe_text(parts), "benchmark recipe"));
  NB_TRY(options.device, parse_backend(workload.device));
  options.calibrated.spill.memory_limit = size_t{96} << 30;
  options.calibrated.spill.device_limit = static_cast<size_t>(workload.gpu_gib * 0x1p30);
  std::mt19937 random(1);
  for (int sample = 0; sample < workload.num_samples; ++sample) {
    options.calibration.emplace_back(static_cast<size_t>(workload.sample_tokens));
    for (int32_t& id : options.calibration.back()) id = static_cast<int32_t>(random() % 100000);
  }
  std::printf("%s, %s, %d of %d layers, %d x %d tokens\n", workload.shape.c_str(),
              workload.algorithm.c_str(), slice.num_layers, whole.num_layers, workload.num_samples,
              workload.sample_tokens);
  std::printf(
      "layer  load s  record s  search s  round s  hand on s  the rest s  GPU memory so far\n");
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  double before = 0;  // the first layer began
  double after = 0;   // the last one ended
  options.calibrated.progress = [&](const LayerSummary& layer) {
    const double whole_layer = elapsed() - after;
    const double rest = whole_layer - layer.loading_seconds - layer.recording_seconds -
                        layer.search_seconds - layer.rounding_seconds - layer.forward_seconds;
    std::printf("%5d  %6.2f  %8.2f  %8.2f  %7.2f  %9.2f  %10.2f  %s\n", layer.layer,
                layer.loading_seconds, layer.recording_seconds, layer.search_seconds,
                layer.rounding_seconds, layer.forward_seconds, rest,
                format_bytes(static_cast<double>(layer.peak_device_bytes)).c_str());
    std::fflush(stdout);
    after = elapsed();
  };
  options.calibrated.started = [&] { before = after = elapsed(); };
  NB_TRY(const QuantizeReport report, quantize_checkpoint(folder / "in", folder / "out", options));
  const auto bytes = [](double count) { return format_bytes(count); };
  const double factor = whole.bytes / slice.bytes;
  const double layers = after - before;
  const double all_layers = layers / slice.num_layers * whole.num_layers;
  const double writing = report.seconds - after;
  std::printf("device %s\n", report.details["device"].get<std::string>().c_str());
  std::printf("hashes, checks, embedding  %6.1f s of %s -> %.0f s of %s at most\n", before,
              bytes(slice.bytes).c_str(), before * factor, bytes(whole.bytes).c_str());
  std::printf("calibration                %6.1f s, %.2f s a layer -> %.0f s\n", layers,
              layers / slice.num_layers, all_layers);
  std::printf("writing                    %6.1f s -> %.0f s at most\n", writing, writing * factor);
  std::printf("the whole model            %6.1f min at most\n",
              (all_layers + (before + writing) * factor) / 60);
  std::printf("host memory       %s at most\n",
              format_bytes(static_cast<double>(peak_resident_bytes())).c_str());
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  Workload workload;
  const auto number = [&](int i, int otherwise) {
    return argc > i ? std::atoi(argv[i]) : otherwise;
  };
  if (argc > 1) workload.shape = argv[1];
  workload.num_layers = number(2, workload.num_layers);
  workload.num_samples = number(3, workload.num_samples);
  workload.sample_tokens = number(4, workload.sample_tokens);
  if (argc > 5) workload.device = argv[5];
  if (argc > 6) workload.gpu_gib = std::atof(argv[6]);
  if (argc > 7) workload.algorithm = argv[7];
  if (argc > 8) workload.folder = argv[8];
  std::string pattern = (workload.folder / "nibble-bench-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) {
    std::fprintf(stderr, "bench: %s cannot be made\n", pattern.c_str());
    return 1;
  }
  const nibble::Status status = bench(workload, pattern);
  nibble::fs::remove_all(pattern);
  if (!status) std::fprintf(stderr, "bench: %s\n", status.error().message.c_str());
  return status ? 0 : 1;
}
