// nibble quantize MODEL OUT: from a checkpoint and a recipe to a 4-bit checkpoint.
#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "base/format.h"
#include "base/log.h"
#include "cli/command.h"
#include "quant/calibration_set.h"
#include "quant/pipeline.h"

namespace nibble::cli {
namespace {

struct QuantizeFlags {
  std::string model;
  std::string out;
  std::string recipe = "recipes/w4a16-rtn.yaml";
  std::string calibration;
  CalibrationOptions samples;
  std::string mode = "best";
  std::string norm_roundtrip = "once";
  bool resume = false;
  size_t max_memory = size_t{8} << 30;
  int num_threads = 0;
  size_t max_shard_bytes = 20'000'000'000;
  bool json = false;

  template <class V>
  void visit(V& v) {
    v.positional("MODEL", &model, "checkpoint directory");
    v.positional("OUT", &out, "output directory; must not exist");
    v.option("recipe", &recipe, "recipe.yaml to follow");
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
    v.option("norm-roundtrip", &norm_roundtrip,
             "how zero-centred norms are stored: rounded once, or as upstream",
             {"once", "upstream"});
    v.option("resume", &resume, "go on with an interrupted run of the same command");
    v.option(
        "activation-memory", &max_memory,
        "bytes of calibration activations held in memory; beyond, they live in a file beside OUT");
    v.option("num-threads", &num_threads, "threads, 0 for all");
    v.option("max-shard-bytes", &max_shard_bytes, "largest output file");
    v.option("json", &json, "print the report as JSON on stdout");
  }
};

Result<CalibrationSet> load_samples(const QuantizeFlags& flags) {
  NB_TRY(const ModelDir dir, ModelDir::open(flags.model));
  NB_TRY(const std::string tokenizer_text, dir.side_file("tokenizer.json"));
  NB_TRY(const Tokenizer tokenizer, Tokenizer::load(tokenizer_text, "", "tokenizer.json"));
  NB_TRY(const std::string template_text, dir.chat_template());
  NB_TRY(const ChatTemplate chat_template,
         ChatTemplate::parse(template_text, "chat_template.jinja"));
  return load_calibration_set(flags.calibration, tokenizer, &chat_template, flags.samples);
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

}  // namespace

int quantize(Arguments arguments) {
  QuantizeFlags flags;
  OptionSet set("nibble quantize", "write a 4-bit checkpoint that vLLM and transformers read");
  if (const Parsed parsed = parse(set, flags, arguments); !parsed.ok) return parsed.exit;
  const Result<std::string> text = read_file(flags.recipe, size_t{1} << 20);
  if (!text) return fail(text.error());
  Result<Recipe> recipe = parse_recipe(*text, flags.recipe);
  if (!recipe) return fail(recipe.error());

  QuantizeOptions options;
  options.recipe = std::move(*recipe);
  options.num_threads = flags.num_threads;
  options.max_shard_bytes = flags.max_shard_bytes;
  options.resume = flags.resume;
  options.calibrated.spill.memory_limit = flags.max_memory;
  options.calibrated.mode =
      flags.mode == "best" ? CalibrationMode::kBest : CalibrationMode::kReference;
  options.calibrated.norm_rounding =
      flags.norm_roundtrip == "once" ? NormRounding::kOnce : NormRounding::kUpstream;
  if (options.recipe.needs_calibration() && !flags.calibration.empty()) {
    Result<CalibrationSet> set = load_samples(flags);
    if (!set) return fail(set.error());
    for (const std::string& line : set->skipped) log_warning("calibration: {}", line);
    options.calibration = std::move(set->samples);
  }
  const bool live = ::isatty(STDERR_FILENO) != 0;
  size_t last_tenth = 0;
  const auto start = std::chrono::steady_clock::now();
  int num_done = 0;
  options.calibrated.progress = [&](const LayerSummary& layer) {
    if (!layer.resumed) ++num_done;
    print_layer(layer, num_done, std::chrono::steady_clock::now() - start);
  };
  options.progress = [&](size_t done, size_t total, const std::string& module) {
    const size_t tenth = done * 10 / total;
    if (live) {
      std::fprintf(stderr, "\r\033[Kquantize %zu/%zu %s", done, total, module.c_str());
      if (done == total) std::fputs("\r\033[K", stderr);
    } else if (tenth != last_tenth) {
      std::fprintf(stderr, "quantize %zu%%\n", tenth * 10);
    }
    last_tenth = tenth;
  };
  const Result<QuantizeReport> report = quantize_checkpoint(flags.model, flags.out, options);
  if (!report) return fail(report.error());
  if (flags.json) {
    std::puts(dump_json(report->details).c_str());
    return 0;
  }
  std::printf("wrote %s\n", flags.out.c_str());
  std::printf("  %d modules quantized, %d kept in floating point\n", report->num_quantized,
              report->num_kept);
  std::printf("  %s -> %s in %.1f s\n",
              format_bytes(static_cast<double>(report->source_bytes)).c_str(),
              format_bytes(static_cast<double>(report->output_bytes)).c_str(), report->seconds);
  return 0;
}

}  // namespace nibble::cli
