// nibble bench kernels: products, attention and the delta rule of a model, one by one.
#include <algorithm>
#include <cstdio>

#include "base/format.h"
#include "cli/bench.h"
#include "engine/kernel_timing.h"

namespace nibble::cli {
namespace {

struct BenchKernelsFlags : BenchModelFlags {
  std::string tokens = "1,16,512";
  std::string batch = "1,16";
  std::string context = "4096";
  std::string chunk = "512";

  template <class V>
  void visit(V& v) {
    BenchModelFlags::visit(v);
    v.option("tokens", &tokens, "rows of products; several with commas");
    v.option("batch", &batch, "sequences of one token for attention and the delta rule");
    v.option("context", &context, "cached tokens of each");
    v.option("chunk", &chunk, "tokens of one prompt for attention and the delta rule");
  }
};

// The larger of both shares: what bounds the operation.
Json row_json(const KernelTiming& timing, const DeviceRates& rates) {
  const double bytes = static_cast<double>(timing.cost.bytes()) / timing.seconds;
  const double flops = static_cast<double>(timing.cost.flops()) / timing.seconds;
  const double of_reads = bytes / rates.read_bytes_per_second;
  const double of_peak = flops / rates.matrix_flops_per_second;
  return {{"operation", timing.operation},
          {"what", timing.what},
          {"sequences", timing.num_seqs},
          {"tokens", timing.num_tokens},
          {"context", timing.context},
          {"us", timing.seconds * 1e6},
          {"bytes_per_second", bytes},
          {"flops_per_second", flops},
          {"share_of_bandwidth", of_reads},
          {"share_of_peak", of_peak},
          {"share_of_roofline", std::max(of_reads, of_peak)}};
}

Result<int> run_bench_kernels(const BenchKernelsFlags& flags) {
  KernelTimingOptions options{.block_size = flags.engine.block_size, .repeats = flags.repeats};
  NB_TRY(options.tokens, parse_counts("tokens", flags.tokens));
  NB_TRY(options.batches, parse_counts("batch", flags.batch));
  NB_TRY(options.contexts, parse_counts("context", flags.context));
  NB_TRY(options.chunks, parse_counts("chunk", flags.chunk));
  for (const auto* counts : {&options.tokens, &options.batches, &options.contexts, &options.chunks})
    for (const int32_t count : *counts)
      if (count < 1)
        return make_error(ErrorCode::kInvalidArgument,
                          "--tokens, --batch, --context and --chunk: expected 1 or more, found {}",
                          count);
  NB_TRY(const BenchModel bench, open_bench_model(flags));
  NB_TRY(options.kv_dtype,
         parse_kv_cache_dtype(flags.engine.kv_cache_dtype, bench.model->activation_dtype()));
  NB_TRY(const std::vector<KernelTiming> timings,
         time_kernels(*bench.model, *bench.device, options));
  Json report = bench.json(flags);
  report["rows"] = Json::array();
  for (const KernelTiming& timing : timings)
    report["rows"].push_back(row_json(timing, bench.rates));
  if (flags.json) {
    std::puts(dump_json(report).c_str());
    return 0;
  }
  std::printf("%s%-16s %-32s %5s %6s %8s %10s %9s %9s %9s\n", bench.heading(flags).c_str(),
              "operation", "", "seqs", "tokens", "context", "us", "GB/s", "TFLOP/s", "roofline");
  for (const Json& row : report["rows"])
    std::printf("%-16s %-32s %5d %6d %8d %10.1f %9.1f %9.2f %8.1f%%\n",
                row["operation"].get<std::string>().c_str(), row["what"].get<std::string>().c_str(),
                row["sequences"].get<int>(), row["tokens"].get<int>(), row["context"].get<int>(),
                row["us"].get<double>(), row["bytes_per_second"].get<double>() / 1e9,
                row["flops_per_second"].get<double>() / 1e12,
                100 * row["share_of_roofline"].get<double>());
  return 0;
}

}  // namespace

int bench_kernels(Arguments arguments) {
  BenchKernelsFlags flags;
  OptionSet set("nibble bench kernels",
                "operations of a model one by one, over the nearer of the measured bandwidth and "
                "peak");
  if (const Parsed parsed = parse(set, flags, arguments); !parsed.ok) return parsed.exit;
  const Result<int> done = run_bench_kernels(flags);
  return done ? *done : fail(done.error());
}

}  // namespace nibble::cli
