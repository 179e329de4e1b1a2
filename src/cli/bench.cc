// The table of benchmarks, and how they open a model.
#include "cli/bench.h"

#include <chrono>
#include <cstdio>

#include "base/format.h"
#include "base/text.h"
#include "model/architectures.h"
#include "model/synthetic_shapes.h"

namespace nibble::cli {
namespace {

constexpr Command kBenchmarks[] = {
    {"serve", "a running server under load", bench_serve},
    {"decode", "one token for each sequence of a batch, against the memory's bandwidth",
     bench_decode},
    {"prefill", "a chunk of a prompt, against the peak of matrix products", bench_prefill},
    {"kernels", "operations one by one, against both", bench_kernels},
};

}  // namespace

int bench(Arguments arguments) {
  if (!arguments.empty()) {
    for (const Command& command : kBenchmarks)
      if (command.name == arguments[0]) return command.run(arguments.subspan(1));
    if (arguments[0] == "--help-markdown" || arguments[0] == "--help-flags") {  // of each
      for (const Command& command : kBenchmarks) {
        if (&command != kBenchmarks && arguments[0] == "--help-markdown") std::puts("");
        command.run(arguments);
      }
      return 0;
    }
    if (arguments[0] == "--help" || arguments[0] == "-h") {
      std::puts("usage: nibble bench WHAT [flags]\n");
      for (const Command& command : kBenchmarks)
        std::printf("  %-10s %s\n", command.name.data(), command.summary.data());
      std::puts("\nnibble bench WHAT --help says more.");
      return 0;
    }
  }
  std::vector<std::string_view> names;
  for (const Command& command : kBenchmarks) names.push_back(command.name);
  return fail(make_error(ErrorCode::kInvalidArgument, "nibble bench{}: say what to measure: {}",
                         arguments.empty() ? "" : " " + arguments[0], join(names, ", ")));
}

Result<BenchModel> open_bench_model(const BenchModelFlags& flags) {
  if (flags.model.empty() == flags.like.empty())
    return make_error(ErrorCode::kInvalidArgument, "give --model DIR or --like SHAPE (one of {})",
                      join(synthetic_shapes(), ", "));
  BenchModel bench;
  if (!flags.model.empty()) {
    NB_TRY(ModelDir dir, ModelDir::open(flags.model));
    bench.dir = std::make_unique<ModelDir>(std::move(dir));
  }
  NB_TRY(bench.device, open_device(flags.engine));
  Device& device = *bench.device;
  NB_TRY(const DType dtype, parse_activation_dtype(flags.engine.dtype, device.natural_dtype()));
  NB_TRY(bench.rates, measure_rates(device, dtype));
  bench.target = memory_target(device, device.memory());
  const auto start = std::chrono::steady_clock::now();
  if (bench.dir) {
    NB_TRY(Model model,
           Model::load(*bench.dir, device, dtype, dense_storage(flags.engine, device)));
    bench.model = std::make_unique<Model>(std::move(model));
  } else {
    NB_TRY(const Json config, synthetic_config(flags.like, {.num_layers = flags.layers,
                                                            .quantized = flags.quantized}));
    NB_TRY(const ModelSpec spec, parse_model_config(config));
    NB_TRY(const std::optional<QuantizationConfig> quantization, parse_quantization_config(config));
    bench.pool = std::make_unique<ThreadPool>(flags.engine.num_threads);
    // Where weights are copied to the device, one buffer of a kind serves all of them.
    const bool shared = !device.memory().is_host;
    NB_TRY(SyntheticWeights weights,
           SyntheticWeights::make(spec, quantization, static_cast<uint64_t>(flags.seed), shared,
                                  *bench.pool));
    bench.weights = std::make_unique<SyntheticWeights>(std::move(weights));
    NB_TRY(Model model,
           Model::load(*bench.weights, spec, device, dtype, dense_storage(flags.engine, device)));
    bench.model = std::make_unique<Model>(std::move(model));
    if (shared) bench.weights.reset();
  }
  device.synchronize();
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  bench.load_seconds = taken.count();
  return bench;
}

std::string BenchModel::heading(const BenchModelFlags& flags) const {
  return format(
      "{}: reads {:.1f} GB/s, matrix products {:.2f} TFLOP/s (measured)\n"
      "{}: {} layers, weights {}, activations {}, ready in {:.1f} s\n",
      device->description(), rates.read_bytes_per_second / 1e9,
      rates.matrix_flops_per_second / 1e12, dir ? flags.model : "like " + flags.like,
      model->spec().layers.size(), format_bytes(model->weight_bytes().total()),
      dtype_name(model->activation_dtype()), load_seconds);
}

Json BenchModel::json(const BenchModelFlags& flags) const {
  return {{"device", device->description()},
          {"read_bytes_per_second", rates.read_bytes_per_second},
          {"matrix_flops_per_second", rates.matrix_flops_per_second},
          {"model", dir ? flags.model : "like " + flags.like},
          {"num_layers", model->spec().layers.size()},
          {"weight_bytes", model->weight_bytes().total()},
          {"dtype", dtype_name(model->activation_dtype())},
          {"kv_cache_dtype", flags.engine.kv_cache_dtype},
          {"load_seconds", load_seconds},
          {"repeats", flags.repeats}};
}

Result<std::vector<int32_t>> parse_counts(std::string_view flag, const std::string& text) {
  std::vector<int32_t> counts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const Result<int64_t> count = parse_count(text.substr(begin, end - begin));
    if (!count || *count < 0 || *count > (1 << 30))
      return make_error(ErrorCode::kInvalidArgument,
                        "--{} {}: expected whole numbers with commas between, such as 1,16", flag,
                        text);
    counts.push_back(static_cast<int32_t>(*count));
    begin = end + 1;
  }
  return counts;
}

}  // namespace nibble::cli
