// nibble bench prefill: one chunk of a prompt as serving runs it, and where its time goes.
#include <cstdio>

#include "base/format.h"
#include "cli/bench.h"
#include "engine/step_timing.h"

namespace nibble::cli {
namespace {

struct BenchPrefillFlags : BenchModelFlags {
  std::string chunk = "8192";
  std::string context = "0";

  template <class V>
  void visit(V& v) {
    BenchModelFlags::visit(v);
    v.option("chunk", &chunk, "tokens in a step; several with commas");
    v.option("context", &context, "tokens of the prompt before it; several with commas");
  }
};

Json row_json(const StepTiming& timing, const DeviceRates& rates) {
  const double rate = static_cast<double>(timing.cost.flops()) / timing.seconds;
  double sum = 0;
  for (const double seconds : *timing.class_seconds) sum += seconds;
  Json shares = Json::object();
  for (size_t i = 0; i < TimingOps::kClassNames.size(); ++i)
    shares[std::string(TimingOps::kClassNames[i])] = (*timing.class_seconds)[i] / sum;
  return {{"chunk", timing.shape.num_tokens},
          {"context", timing.shape.context},
          {"ms_per_step", timing.seconds * 1e3},
          {"tokens_per_second", timing.shape.num_tokens / timing.seconds},
          {"flops", timing.cost.flops()},
          {"flops_per_second", rate},
          {"share_of_peak", rate / rates.matrix_flops_per_second},
          {"separate_ms", sum * 1e3},
          {"time_shares", std::move(shares)}};
}

Result<int> run_bench_prefill(const BenchPrefillFlags& flags) {
  NB_TRY(const std::vector<int32_t> chunks, parse_counts("chunk", flags.chunk));
  NB_TRY(const std::vector<int32_t> contexts, parse_counts("context", flags.context));
  NB_TRY(const BenchModel bench, open_bench_model(flags));
  Json report = bench.json(flags);
  report["rows"] = Json::array();
  if (!flags.json)
    std::printf("%s%7s %8s %10s %9s %9s %9s   time of operations run one by one\n",
                bench.heading(flags).c_str(), "chunk", "context", "ms/step", "tok/s", "TFLOP/s",
                "of peak");
  bool any = false;
  for (const int32_t context : contexts)
    for (const int32_t chunk : chunks) {
      const Result<StepTiming> timing =
          time_step(*bench.model, *bench.device, bench.target, flags.engine,
                    {.num_seqs = 1, .context = context, .num_tokens = chunk},
                    {.repeats = flags.repeats, .by_class = true});
      if (!timing && timing.error().code != ErrorCode::kOutOfMemory) return timing.error();
      any |= timing.has_value();
      if (!timing) {
        if (flags.json) {
          report["rows"].push_back(
              {{"chunk", chunk}, {"context", context}, {"error", timing.error().message}});
        } else {
          std::printf("%7d %8d %s\n", chunk, context, timing.error().message.c_str());
        }
        continue;
      }
      const Json row = row_json(*timing, bench.rates);
      if (flags.json) {
        report["rows"].push_back(row);
        continue;
      }
      std::string shares;
      for (const auto& [name, share] : row["time_shares"].items())
        if (share.get<double>() > 0)
          shares += format(" {} {:.1f}%", name, 100 * share.get<double>());
      std::printf("%7d %8d %10.2f %9.1f %9.2f %8.1f%%  %s\n", chunk, context, timing->seconds * 1e3,
                  chunk / timing->seconds, row["flops_per_second"].get<double>() / 1e12,
                  100 * row["share_of_peak"].get<double>(), shares.c_str());
      std::fflush(stdout);
    }
  if (flags.json) std::puts(dump_json(report).c_str());
  return any ? 0 : exit_code(ErrorCode::kOutOfMemory);
}

}  // namespace

int bench_prefill(Arguments arguments) {
  BenchPrefillFlags flags;
  flags.repeats = 5;
  OptionSet set("nibble bench prefill",
                "prompt steps of the engine over the operations they need and the measured peak");
  if (const Parsed parsed = parse(set, flags, arguments); !parsed.ok) return parsed.exit;
  const Result<int> done = run_bench_prefill(flags);
  return done ? *done : fail(done.error());
}

}  // namespace nibble::cli
