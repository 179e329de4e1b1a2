// nibble bench decode: decode steps as serving runs them, without requests.
#include <algorithm>
#include <cstdio>

#include "base/format.h"
#include "cli/bench.h"
#include "engine/step_timing.h"

namespace nibble::cli {
namespace {

struct BenchDecodeFlags : BenchModelFlags {
  std::string batch = "1,16";
  std::string context = "4096";
  bool logits = false;

  template <class V>
  void visit(V& v) {
    BenchModelFlags::visit(v);
    v.option("batch", &batch, "sequences in a step; several with commas");
    v.option("context", &context, "cached tokens of each; several with commas");
    v.option("logits", &logits, "bring whole logits to the host, as sampling with penalties does");
  }
};

Json row_json(const StepTiming& timing, const DeviceRates& rates) {
  const StepCost& cost = timing.cost;
  const double rate = static_cast<double>(cost.bytes()) / timing.seconds;
  return {{"batch", timing.shape.num_seqs},
          {"context", timing.shape.context},
          {"ms_per_step", timing.seconds * 1e3},
          {"tokens_per_second", timing.shape.num_seqs / timing.seconds},
          {"weight_bytes", cost.linear_weight_bytes},
          {"kv_bytes", cost.kv_bytes},
          {"state_bytes", cost.state_bytes},
          {"needed_bytes", cost.bytes()},
          {"bytes_per_second", rate},
          {"share_of_bandwidth", rate / rates.read_bytes_per_second},
          {"recorded", timing.recorded}};
}

Result<int> run_bench_decode(BenchDecodeFlags& flags) {
  NB_TRY(const std::vector<int32_t> batches, parse_counts("batch", flags.batch));
  NB_TRY(const std::vector<int32_t> contexts, parse_counts("context", flags.context));
  flags.engine.max_num_seqs = *std::ranges::max_element(batches);
  NB_TRY(const BenchModel bench, open_bench_model(flags));
  Json report = bench.json(flags);
  report["rows"] = Json::array();
  if (!flags.json)
    std::printf("%s%7s %8s %9s %9s   %29s %10s %9s\n", bench.heading(flags).c_str(), "batch",
                "context", "ms/step", "tok/s", "needed GB: weights+KV+state", "GB/s", "of reads");
  bool any = false;
  for (const int32_t context : contexts)
    for (const int32_t batch : batches) {
      const Result<StepTiming> timing =
          time_step(*bench.model, *bench.device, bench.target, flags.engine,
                    {.num_seqs = batch, .context = context, .num_tokens = 1},
                    {.repeats = flags.repeats, .whole_logits = flags.logits});
      if (!timing && timing.error().code != ErrorCode::kOutOfMemory) return timing.error();
      any |= timing.has_value();
      if (flags.json) {
        report["rows"].push_back(
            timing
                ? row_json(*timing, bench.rates)
                : Json{{"batch", batch}, {"context", context}, {"error", timing.error().message}});
        continue;
      }
      if (!timing) {
        std::printf("%7d %8d %s\n", batch, context, timing.error().message.c_str());
        continue;
      }
      const StepCost& cost = timing->cost;
      const auto gb = [](int64_t bytes) { return static_cast<double>(bytes) / 1e9; };
      const double rate = gb(cost.bytes()) / timing->seconds;
      std::printf("%7d %8d %9.3f %9.1f   %8.3f = %5.2f+%5.2f+%5.2f %10.1f %8.1f%%%s\n", batch,
                  context, timing->seconds * 1e3, batch / timing->seconds, gb(cost.bytes()),
                  gb(cost.linear_weight_bytes), gb(cost.kv_bytes), gb(cost.state_bytes), rate,
                  100e9 * rate / bench.rates.read_bytes_per_second,
                  timing->recorded ? "" : "  launch by launch");
      std::fflush(stdout);
    }
  if (flags.json) std::puts(dump_json(report).c_str());
  return any ? 0 : exit_code(ErrorCode::kOutOfMemory);
}

}  // namespace

int bench_decode(Arguments arguments) {
  BenchDecodeFlags flags;
  OptionSet set("nibble bench decode",
                "decode steps of the engine over the bytes they need and the measured bandwidth; "
                "contexts hold random keys and values");
  if (const Parsed parsed = parse(set, flags, arguments); !parsed.ok) return parsed.exit;
  const Result<int> done = run_bench_decode(flags);
  return done ? *done : fail(done.error());
}

}  // namespace nibble::cli
