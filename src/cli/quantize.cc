// nibble quantize MODEL OUT: from a checkpoint and a recipe to a 4-bit checkpoint.
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "base/format.h"
#include "base/log.h"
#include "cli/command.h"
#include "quant/calibration_set.h"
#include "quant/estimate.h"
#include "quant/pipeline.h"

namespace nibble::cli {
namespace {

struct QuantizeFlags {
  std::string model;
  std::string out;
  std::string recipe;
  std::string algorithm;
  std::string observer;
  std::vector<std::string> ignore;
  int num_bits = 0;
  int group_size = 0;
  bool symmetric = false;
  bool dry_run = false;
  std::string calibration;
  std::string device = "auto";
  size_t gpu_memory = 0;
  CalibrationOptions samples;
  std::string mode = "best";
  std::vector<std::string> without;
  std::string norm_roundtrip = "once";
  bool all_experts = true;
  bool resume = false;  // the same command goes on by itself; scripts may say so
  size_t max_memory = size_t{8} << 30;
  int num_threads = 0;
  size_t max_shard_bytes = 20'000'000'000;
  bool json = false;

  template <class V>
  void visit(V& v) {
    v.positional("MODEL", &model, "checkpoint directory");
    v.positional("OUT", &out, "output directory; must not exist");
    v.option("recipe", &recipe,
             "recipe.yaml to follow; recipes/w4a16-rtn.yaml unless its parts are given");
    v.option("algorithm", &algorithm, "instead of a recipe", {"rtn", "awq", "gptq", "awq+gptq"});
    v.option("observer", &observer, "instead of a recipe: mse, memoryless_minmax, imatrix_mse");
    v.option("num-bits", &num_bits, "instead of a recipe: 4 or 8");
    v.option("group-size", &group_size, "instead of a recipe: 32, 64, 128, or -1 for a whole row");
    v.option("symmetric", &symmetric, "instead of a recipe: no zero points");
    v.option("ignore", &ignore, "instead of a recipe: names or re:PATTERNs kept in floating point");
    v.option("dry-run", &dry_run, "say what it would take, and do nothing");
    v.option("calibration", &calibration, "conversations for AWQ and GPTQ: JSON, JSONL or text");
    v.option("num-calibration-samples", &samples.num_samples, "conversations to use");
    v.option("max-seq-length", &samples.max_seq_length, "tokens per conversation");
    v.option("shuffle", &samples.shuffle, "pick conversations at random instead of in file order");
    v.option("seed", &samples.seed, "of the shuffle");
    v.option("skip-bad-samples", &samples.skip_bad_samples,
             "go on when a conversation cannot be rendered");
    v.option("mode", &mode,
             "best: search with the recipe's observer and let each layer see the error of those "
             "before it; reference: as llm-compressor",
             {"best", "reference"});
    v.option("without", &without,
             "parts of --mode best left out, to see what each is worth: observer-search, "
             "error-propagation, dead-channels, norm-loss, gated-norm, shortlist, refinement");
    v.option("norm-roundtrip", &norm_roundtrip,
             "how zero-centred norms are stored: rounded once, or as upstream",
             {"once", "upstream"});
    v.option("calibrate-all-experts", &all_experts,
             "every expert of a mixture sees every token; --no-... only those routed to it");
    v.option("resume", &resume,
             "go on with an interrupted run: the same command does so, with or without this");
    v.option(
        "activation-memory", &max_memory,
        "bytes of calibration activations held in memory; beyond, they live in a file beside OUT");
    v.option("device", &device,
             "what calibration computes on: auto is the GPU if one is usable, else the CPU",
             {"auto", "cpu", "cuda", "reference"});
    v.option("gpu-memory", &gpu_memory,
             "bytes of GPU memory to use at most, 0 for 90% of what is free");
    v.option("num-threads", &num_threads, "threads, 0 for all");
    v.option("max-shard-bytes", &max_shard_bytes, "largest output file");
    v.option("json", &json,
             "a log for machines on stdout: a JSON object a line, with the times that the report "
             "leaves out; with --dry-run, the estimate");
  }
};

// A recipe is a file, or is spelled in flags; both at once would contradict each other.
Result<Recipe> chosen_recipe(const QuantizeFlags& flags) {
  const bool spelled = !flags.algorithm.empty() || !flags.observer.empty() ||
                       !flags.ignore.empty() || flags.num_bits != 0 || flags.group_size != 0 ||
                       flags.symmetric;
  if (spelled && !flags.recipe.empty())
    return make_error(
        ErrorCode::kInvalidArgument,
        "--recipe {} together with --algorithm, --observer, --num-bits, --group-size, "
        "--symmetric or --ignore; give a recipe or its parts, not both",
        flags.recipe);
  if (spelled) {
    RecipeParts parts;
    if (!flags.algorithm.empty()) parts.algorithm = flags.algorithm;
    if (!flags.observer.empty()) parts.observer = flags.observer;
    if (!flags.ignore.empty()) parts.ignore = flags.ignore;
    if (flags.num_bits != 0) parts.num_bits = flags.num_bits;
    if (flags.group_size != 0) parts.group_size = flags.group_size;
    parts.symmetric = flags.symmetric;
    return parse_recipe(recipe_text(parts), "the recipe of these flags");
  }
  const std::string path = flags.recipe.empty() ? "recipes/w4a16-rtn.yaml" : flags.recipe;
  NB_TRY(const std::string text, read_file(path, size_t{1} << 20));
  return parse_recipe(text, path);
}

void print_estimate(const QuantizeEstimate& estimate, bool json) {
  if (json) {
    std::puts(dump_json({{"event", "estimate"},
                         {"num_quantized", estimate.num_quantized},
                         {"num_kept", estimate.num_kept},
                         {"source_bytes", estimate.source_bytes},
                         {"output_bytes", estimate.output_bytes},
                         {"memory_bytes", estimate.memory_bytes},
                         {"disk_bytes", estimate.disk_bytes},
                         {"seconds", estimate.seconds}})
                  .c_str());
    return;
  }
  std::printf("would quantize %d modules and keep %d in floating point\n", estimate.num_quantized,
              estimate.num_kept);
  std::printf("  output       %s of tensors, from %s\n",
              format_bytes(estimate.output_bytes).c_str(),
              format_bytes(estimate.source_bytes).c_str());
  std::printf("  memory       about %s\n", format_bytes(estimate.memory_bytes).c_str());
  if (estimate.disk_bytes > 0)
    std::printf("  beside OUT   about %s while it runs\n",
                format_bytes(estimate.disk_bytes).c_str());
  std::printf("  time         about %.0f s (this machine: %.0f GFLOP/s)\n", estimate.seconds,
              estimate.flops_per_second / 1e9);
}

// An event of the --json log; flushed, because a run may take hours and be watched.
void log_event(const char* event, Json fields) {
  fields["event"] = event;
  std::puts(dump_json(fields).c_str());
  std::fflush(stdout);
}

Json layer_event(const LayerSummary& layer, double elapsed_seconds) {
  return {{"layer", layer.layer},
          {"num_layers", layer.num_layers},
          {"resumed", layer.resumed},
          {"smoothing_check", layer.smoothing_check},
          {"loading_seconds", layer.loading_seconds},
          {"recording_seconds", layer.recording_seconds},
          {"search_seconds", layer.search_seconds},
          {"rounding_seconds", layer.rounding_seconds},
          {"forward_seconds", layer.forward_seconds},
          {"peak_device_bytes", layer.peak_device_bytes},
          {"elapsed_seconds", elapsed_seconds},
          {"mappings", *layer.mappings}};
}

// One line per layer: losses of its mappings before and after the search, and the time to go.
void print_layer(const LayerSummary& layer, int num_done, std::chrono::duration<double> elapsed) {
  std::string line = format("layer {}/{}", layer.layer + 1, layer.num_layers);
  for (const Json& mapping : *layer.mappings) {
    const auto smooth = mapping["smooth"].get<std::string>();
    line += format("  {} {:.3g} -> {:.3g}", smooth.substr(smooth.rfind('.') + 1),
                   mapping["initial_loss"].get<double>(), mapping["loss"].get<double>());
  }
  if (!layer.mappings->empty()) line += format("  smoothing moved {:.2g}", layer.smoothing_check);
  if (layer.resumed) {
    line += "  (resumed)";
  } else if (const int left = layer.num_layers - layer.layer - 1; left > 0) {
    line += format("  {:.0f} s to go", elapsed.count() / num_done * left);
  }
  std::fprintf(stderr, "%s\n", line.c_str());
}

// Nothing is lost when a calibrated run is stopped: its journal is durable at any moment.
void say_how_to_go_on() {
  struct sigaction on_stop {};
  on_stop.sa_handler = [](int) {
    constexpr std::string_view kText =
        "\nnibble: interrupted; the same command goes on behind the last finished layer\n";
    (void)!::write(STDERR_FILENO, kText.data(), kText.size());
    ::_exit(exit_code(ErrorCode::kCancelled));
  };
  for (const int signal : {SIGINT, SIGTERM}) {
    struct sigaction before {};
    ::sigaction(signal, nullptr, &before);
    if (before.sa_handler != SIG_IGN) ::sigaction(signal, &on_stop, nullptr);  // else: nohup
  }
}

}  // namespace

int quantize(Arguments arguments) {
  QuantizeFlags flags;
  OptionSet set("nibble quantize", "write a 4-bit checkpoint that vLLM and transformers read");
  if (const Parsed parsed = parse(set, flags, arguments); !parsed.ok) return parsed.exit;
  Result<Recipe> recipe = chosen_recipe(flags);
  if (!recipe) return fail(recipe.error());

  QuantizeOptions options;
  options.recipe = std::move(*recipe);
  options.num_threads = flags.num_threads;
  options.max_shard_bytes = flags.max_shard_bytes;
  options.calibrated.all_experts = flags.all_experts;
  options.calibrated.spill.memory_limit = flags.max_memory;
  options.calibrated.spill.device_limit = flags.gpu_memory;
  Result<Backend> backend = parse_backend(flags.device);
  if (!backend) return fail(backend.error());
  options.device = *backend;
  options.calibrated.mode =
      flags.mode == "best" ? CalibrationMode::best() : CalibrationMode::reference();
  for (const std::string& part : flags.without)
    if (const Status known = options.calibrated.mode.leave_out(part); !known)
      return fail(known.error());
  options.calibrated.norm_rounding =
      flags.norm_roundtrip == "once" ? NormRounding::kOnce : NormRounding::kUpstream;
  if (options.recipe.needs_calibration() && !flags.calibration.empty()) {
    const Result<ModelDir> dir = ModelDir::open(flags.model);
    if (!dir) return fail(dir.error());
    Result<CalibrationSet> set = load_conversations(*dir, flags.calibration, flags.samples);
    if (!set) return fail(set.error());
    for (const std::string& line : set->skipped) log_warning("calibration: {}", line);
    options.calibration = std::move(set->samples);
    options.calibration_notes = {{"file", fs::path(flags.calibration).filename().string()},
                                 {"num_tokens", set->num_tokens},
                                 {"max_seq_length", flags.samples.max_seq_length},
                                 {"shuffle", flags.samples.shuffle},
                                 {"seed", flags.samples.seed},
                                 {"skipped", set->skipped}};
  }
  if (flags.dry_run) {
    const Result<QuantizeEstimate> estimate = estimate_quantization(flags.model, options);
    if (!estimate) return fail(estimate.error());
    print_estimate(*estimate, flags.json);
    return 0;
  }
  const bool live = ::isatty(STDERR_FILENO) != 0;
  size_t last_tenth = 0;
  const auto start = std::chrono::steady_clock::now();
  int num_done = 0;
  options.calibrated.progress = [&](const LayerSummary& layer) {
    if (!layer.resumed) ++num_done;
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    print_layer(layer, num_done, elapsed);
    if (flags.json) log_event("layer", layer_event(layer, elapsed.count()));
  };
  auto writing = start;  // when the last stage began
  options.progress = [&](size_t done, size_t total, const std::string& module) {
    const size_t tenth = done * 10 / total;
    if (done == 1) writing = std::chrono::steady_clock::now();
    if (live) {
      const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - writing;
      std::fprintf(stderr, "\r\033[Kquantize %zu/%zu, %.0f s to go: %s", done, total,
                   elapsed.count() / static_cast<double>(done) * static_cast<double>(total - done),
                   module.c_str());
      if (done == total) std::fputs("\r\033[K", stderr);
    } else if (tenth != last_tenth) {
      std::fprintf(stderr, "quantize %zu%%\n", tenth * 10);
    }
    last_tenth = tenth;
  };
  if (options.recipe.needs_calibration()) say_how_to_go_on();
  const Result<QuantizeReport> report = quantize_checkpoint(flags.model, flags.out, options);
  if (!report) return fail(report.error());
  if (flags.json) {
    log_event("done", {{"out", flags.out},
                       {"seconds", report->seconds},
                       {"num_quantized", report->num_quantized},
                       {"num_kept", report->num_kept},
                       {"warnings", report->warnings},
                       {"report", report->details}});
    return 0;
  }
  std::printf("wrote %s\n", flags.out.c_str());
  std::printf("  %d modules quantized, %d kept in floating point\n", report->num_quantized,
              report->num_kept);
  std::printf("  %s -> %s in %.1f s, read back: every tensor in place\n",
              format_bytes(report->source_bytes).c_str(),
              format_bytes(report->output_bytes).c_str(), report->seconds);
  return 0;
}

}  // namespace nibble::cli
