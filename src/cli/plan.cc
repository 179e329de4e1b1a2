// nibble plan MODEL: what fits where, from config.json alone. Exit code 0: fits, 3: does not.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <optional>

#include "base/file.h"
#include "base/format.h"
#include "checkpoint/model_dir.h"
#include "cli/command.h"
#include "cli/plan_report.h"
#include "device/planning_device.h"
#include "model/architectures.h"
#include "model/sharding.h"

namespace nibble::cli {
namespace {

struct PlanFlags {
  std::string model;
  std::string gpus = "detected";
  std::string gpu;
  std::vector<std::string> ladder;
  bool roofline = false;
  bool json = false;
  std::string svg;
  std::string emit;
  EngineOptions engine;

  template <class V>
  void visit(V& v) {
    v.positional("MODEL", &model, "checkpoint directory, or a config.json");
    v.option("gpus", &gpus, "cards to plan for: 2xV100-32GB, H200, 2x32GiB, or detected");
    v.option("gpu", &gpu, "the same as --gpus");
    v.option("ladder", &ladder, "rows CONTEXT[@UTILIZATION[/SEQUENCES]] instead of the usual ones");
    v.option("roofline", &roofline, "upper bounds of speed instead of memory");
    v.option("json", &json, "print JSON");
    v.option("svg", &svg, "also write the picture of the memory to this file");
    v.option("emit", &emit, "print only a command line or a service file that serves the plan",
             {"serve", "systemd", "compose"});
    engine.visit(v);
  }
};

struct Planned {
  std::optional<CardSet> cards;  // empty: this machine's device
  std::unique_ptr<Device> device;
  std::unique_ptr<Model> model;  // shapes of one rank
  MemoryTarget target;
  int64_t model_limit = 0;
};

Result<DType> activation_for(const std::string& name, const Device& device,
                             const std::optional<CardSet>& cards) {
  if (!cards || name != "auto") {
    NB_TRY(const DType dtype, parse_activation_dtype(name, device.natural_dtype()));
    if (cards && dtype == DType::kBF16 && cards->card.sm > 0 && cards->card.sm < 80)
      return make_error(ErrorCode::kInvalidArgument,
                        "--dtype bfloat16: {} (compute capability {}.{}) has none; use float16",
                        cards->card.name, cards->card.sm / 10, cards->card.sm % 10);
    return dtype;
  }
  return cards->card.sm > 0 && cards->card.sm < 80 ? DType::kF16 : DType::kBF16;
}

Result<Planned> prepare(PlanFlags& flags) {
  Planned planned;
  if (!flags.gpu.empty()) flags.gpus = flags.gpu;
  NB_TRY(const Json config, read_model_config(flags.model));
  NB_TRY(const ModelSpec spec, parse_model_config(config));
  NB_TRY(const std::optional<QuantizationConfig> quantization, parse_quantization_config(config));
  planned.model_limit = spec.max_position_embeddings;
  if (flags.gpus != "detected") {
    NB_TRY(planned.cards, parse_cards(flags.gpus));
    if (flags.engine.tensor_parallel_size == 1)
      flags.engine.tensor_parallel_size = planned.cards->count;
    if (flags.engine.tensor_parallel_size > planned.cards->count)
      return make_error(ErrorCode::kInvalidArgument,
                        "World size ({}) is larger than the number of available GPUs ({}).",
                        flags.engine.tensor_parallel_size, planned.cards->count);
    planned.cards->count = flags.engine.tensor_parallel_size;
    planned.device =
        std::make_unique<PlanningDevice>(planned.cards->card.name,
                                         DeviceMemoryInfo{.total = planned.cards->card.memory_bytes,
                                                          .free = planned.cards->card.memory_bytes},
                                         planned.cards->card.sm);
  } else {
    NB_TRY(planned.device, open_device(flags.engine));
  }
  NB_TRY(const DType activation,
         activation_for(flags.engine.dtype, *planned.device, planned.cards));
  NB_TRY(const ModelSpec rank, shard(spec, flags.engine.tensor_parallel_size));
  NB_TRY(Model model, Model::shapes(rank, quantization, *planned.device, activation,
                                    dense_storage(flags.engine, *planned.device)));
  planned.model = std::make_unique<Model>(std::move(model));
  if (planned.cards) {
    planned.target = memory_target(*planned.cards, *planned.model);
  } else {
    planned.target = memory_target(*planned.device, planned.device->memory());
    planned.target.num_devices = flags.engine.tensor_parallel_size;
  }
  return planned;
}

struct Rung {
  int64_t context;
  double utilization;
  int max_num_seqs;
};

template <class T>
bool parse_number(std::string_view text, T* value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc() && end == text.data() + text.size();
}

// "200000@0.85/4".
Result<Rung> parse_rung(const std::string& text, const EngineOptions& options) {
  Rung rung{0, options.gpu_memory_utilization, options.max_num_seqs};
  const size_t at = std::min(text.find('@'), text.size());
  const size_t slash = std::min(text.find('/'), text.size());
  bool good = at <= slash || at == text.size();
  good = good && parse_number(std::string_view(text).substr(0, std::min(at, slash)), &rung.context);
  if (at < text.size())
    good = good &&
           parse_number(std::string_view(text).substr(at + 1, slash - at - 1), &rung.utilization);
  if (slash < text.size())
    good = good && parse_number(std::string_view(text).substr(slash + 1), &rung.max_num_seqs);
  if (!good || rung.context < 1)
    return make_error(ErrorCode::kInvalidArgument,
                      "--ladder {}: expected CONTEXT[@UTILIZATION[/SEQUENCES]], such as "
                      "200000@0.85/4",
                      text);
  return rung;
}

Result<std::vector<LadderRow>> climb(const PlanFlags& flags, const Planned& planned) {
  std::vector<Rung> rungs;
  for (const std::string& text : flags.ladder) {
    NB_TRY(const Rung rung, parse_rung(text, flags.engine));
    rungs.push_back(rung);
  }
  if (flags.ladder.empty()) {
    for (const int64_t context :
         {4096, 16384, 32768, 65536, 131072, 200000, 240000, 262144, 524288, 1048576})
      if (context < planned.model_limit)
        rungs.push_back({context, flags.engine.gpu_memory_utilization, flags.engine.max_num_seqs});
    rungs.push_back(
        {planned.model_limit, flags.engine.gpu_memory_utilization, flags.engine.max_num_seqs});
  }
  std::vector<LadderRow> rows;
  for (const Rung& rung : rungs) {
    EngineOptions options = flags.engine;
    options.max_model_len = static_cast<int>(std::min<int64_t>(rung.context, INT32_MAX));
    options.gpu_memory_utilization = static_cast<float>(rung.utilization);
    options.max_num_seqs = rung.max_num_seqs;
    LadderRow row{.context = rung.context,
                  .max_num_seqs = rung.max_num_seqs,
                  .utilization = rung.utilization};
    NB_TRY(row.plan, count_memory(*planned.model, options, planned.target));
    const int64_t blocks = (rung.context + options.block_size - 1) / options.block_size;
    row.kv_bytes_per_sequence =
        static_cast<size_t>(blocks * options.block_size) * row.plan.kv_bytes_per_token;
    // What one such sequence needs, and nothing more.
    options.gpu_memory_utilization = 1;
    options.num_state_snapshots = std::max(0, flags.engine.num_state_snapshots);
    options.kv_cache_bytes = 0;
    options.num_gpu_blocks_override = static_cast<int>(blocks);
    NB_TRY(const MemoryPlan least, count_memory(*planned.model, options, planned.target));
    const size_t base =
        planned.target.is_host ? planned.target.free_bytes : planned.target.total_bytes;
    row.needed_utilization =
        std::ceil(static_cast<double>(least.total_bytes()) / static_cast<double>(base) * 100) / 100;
    rows.push_back(std::move(row));
  }
  return rows;
}

Result<int> print_roofline(const PlanFlags& flags, const Planned& planned) {
  if (!planned.cards)
    return make_error(ErrorCode::kInvalidArgument,
                      "--roofline: needs a card by name; give --gpus, such as --gpus 2xV100-32GB");
  NB_TRY(const DType kv,
         parse_kv_cache_dtype(flags.engine.kv_cache_dtype, planned.model->activation_dtype()));
  std::vector<int32_t> contexts;
  std::vector<int32_t> lengths;
  for (const int32_t context : {1024, 8192, 32768, 131072, 200000})
    if (context <= planned.model_limit) lengths.push_back(context);
  contexts.push_back(0);
  contexts.insert(contexts.end(), lengths.begin(), lengths.end());
  const int32_t batches[] = {1, 4, 16, 64};
  NB_TRY(std::vector<RooflinePoint> points,
         decode_roofline(*planned.model, *planned.cards, kv, batches, contexts));
  NB_TRY(const std::vector<RooflinePoint> prefill,
         prefill_roofline(*planned.model, *planned.cards, kv,
                          batched_tokens(flags.engine, planned.target.is_host), lengths));
  points.insert(points.end(), prefill.begin(), prefill.end());
  const std::string text = flags.json ? dump_json(roofline_json(*planned.cards, points)) + "\n"
                                      : roofline_text(*planned.cards, points);
  std::fputs(text.c_str(), stdout);
  return 0;
}

// The smallest larger number of the same cards that holds the plan, as a change of its own.
void add_more_gpus(const PlanFlags& flags, const Planned& planned,
                   std::vector<PlanChange>* changes) {
  if (!planned.cards) return;
  for (int count = 2; count <= 8; count *= 2) {
    if (count <= planned.cards->count) continue;
    PlanFlags more = flags;
    more.gpu.clear();
    more.gpus = format("{}x{}", count, planned.cards->card.name);
    more.engine.tensor_parallel_size = 1;
    const Result<Planned> wider = prepare(more);
    if (!wider) continue;
    const Result<MemoryPlan> plan = count_memory(*wider->model, more.engine, wider->target);
    if (!plan || !plan->fits()) continue;
    changes->insert(changes->begin(),
                    {"--gpus " + more.gpus, "more GPUs", 0, true, plan->fitting_model_len});
    return;
  }
}

Result<int> run_plan(PlanFlags& flags) {
  NB_TRY(Planned planned, prepare(flags));
  if (flags.roofline) return print_roofline(flags, planned);
  PlanReport report;
  report.model = flags.model;
  report.model_limit = planned.model_limit;
  report.target = planned.target;
  report.options = flags.engine;
  NB_TRY(report.plan, count_memory(*planned.model, flags.engine, planned.target));
  report.changes = cheapest_changes(*planned.model, flags.engine, planned.target, report.plan);
  if (!report.plan.fits()) add_more_gpus(flags, planned, &report.changes);
  if (report.changes.size() > 3) report.changes.resize(3);
  NB_TRY(report.ladder, climb(flags, planned));
  if (!flags.svg.empty()) NB_TRY_STATUS(write_file_durably(flags.svg, plan_svg(report)));
  std::string text;
  if (!flags.emit.empty()) {
    // A service that cannot start is no answer.
    text = report.plan.fits() ? emit(report, flags.emit) : verdict_line(report) + "\n";
  } else {
    text = flags.json ? dump_json(plan_json(report)) + "\n" : plan_text(report);
  }
  std::fputs(text.c_str(), !flags.emit.empty() && !report.plan.fits() ? stderr : stdout);
  return report.plan.fits() ? 0 : exit_code(ErrorCode::kOutOfMemory);
}

}  // namespace

int plan(Arguments arguments) {
  PlanFlags flags;
  OptionSet set("nibble plan", "what fits on which GPUs, from config.json alone");
  if (const Parsed parsed = parse(set, flags, arguments); !parsed.ok) return parsed.exit;
  const Result<int> done = run_plan(flags);
  return done ? *done : fail(done.error());
}

}  // namespace nibble::cli
