// nibble synth OUT --like SHAPE: a whole checkpoint of random weights, so that a model's speed and
// memory can be measured before its weights are at hand.
#include <chrono>
#include <cstdio>

#include "base/file.h"
#include "base/format.h"
#include "base/text.h"
#include "checkpoint/writer.h"
#include "cli/command.h"
#include "model/synthetic_shapes.h"
#include "model/synthetic_weights.h"

namespace nibble::cli {
namespace {

constexpr std::string_view kTokenizerFiles[] = {"tokenizer.json", "tokenizer_config.json",
                                                "chat_template.jinja", "special_tokens_map.json"};
// Beside the working directory of someone who has built this tree.
constexpr const char* kDemoModel = "models/nibble-demo-14m";

struct SynthFlags {
  std::string out;
  std::string like = "qwen3.6-40b";
  bool quantized = false;
  int layers = 0;
  int seed = 0;
  std::string tokenizer;
  size_t max_shard_bytes = 5'000'000'000;
  bool manifest = false;
  int num_threads = 0;
  bool json = false;

  template <class V>
  void visit(V& v) {
    v.positional("OUT", &out, "directory to write; must not exist");
    v.option("like", &like, "shape: " + join(synthetic_shapes(), ", "));
    v.option("quantized", &quantized,
             "4-bit as the bundled recipes: linear attention, embedding and head stay BF16");
    v.option("layers", &layers, "only the first so many, 0 for all");
    v.option("seed", &seed, "of the weights: the same seed gives the same bytes");
    v.option("tokenizer", &tokenizer,
             "directory to copy tokenizer files from; none: models/nibble-demo-14m where it is");
    v.option("max-shard-bytes", &max_shard_bytes, "largest output file");
    v.option("manifest", &manifest, "also write manifest.json, which reads everything again");
    v.option("num-threads", &num_threads, "threads, 0 for all");
    v.option("json", &json, "print JSON");
  }
};

// Files that are there; with an explicit directory tokenizer.json must be.
Status copy_tokenizer(const std::string& given, CheckpointWriter& writer, bool* found) {
  const fs::path folder = given.empty() ? fs::path(kDemoModel) : fs::path(given);
  for (const std::string_view name : kTokenizerFiles) {
    Result<std::string> bytes = read_file(folder / name);
    if (bytes) {
      *found = true;
      NB_TRY_STATUS(writer.add_file(name, std::move(*bytes)));
    } else if (!given.empty() && name == "tokenizer.json") {
      return bytes.error();
    }
  }
  return {};
}

Result<int> run_synth(const SynthFlags& flags) {
  const auto start = std::chrono::steady_clock::now();
  NB_TRY(const Json config,
         synthetic_config(flags.like, {.num_layers = flags.layers, .quantized = flags.quantized}));
  NB_TRY(const size_t expected, synthetic_bytes(config));
  NB_TRY(CheckpointWriter writer,
         CheckpointWriter::create(flags.out, {.max_shard_bytes = flags.max_shard_bytes,
                                              .expected_bytes = expected,
                                              .manifest = flags.manifest}));
  ThreadPool pool(flags.num_threads);
  bool has_tokenizer = false;
  Status written = copy_tokenizer(flags.tokenizer, writer, &has_tokenizer);
  if (written)
    written = write_synthetic_checkpoint(config, static_cast<uint64_t>(flags.seed), pool, writer);
  if (written) written = writer.finish();
  if (!written) {
    writer.discard();
    return written.error();
  }
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  const auto bytes = static_cast<double>(writer.total_tensor_bytes());
  if (flags.json) {
    std::puts(dump_json({{"path", flags.out},
                         {"like", flags.like},
                         {"num_layers", config["num_hidden_layers"]},
                         {"quantized", flags.quantized},
                         {"seed", flags.seed},
                         {"tensor_bytes", writer.total_tensor_bytes()},
                         {"has_tokenizer", has_tokenizer},
                         {"seconds", elapsed.count()}})
                  .c_str());
    return 0;
  }
  std::printf("%s: %s, %d layers, %s of random weights in %.1f s (%s/s)%s\n", flags.out.c_str(),
              flags.like.c_str(), config["num_hidden_layers"].get<int>(),
              format_bytes(bytes).c_str(), elapsed.count(),
              format_bytes(bytes / elapsed.count()).c_str(),
              has_tokenizer ? "" : "; no tokenizer: serve needs --tokenizer DIR here");
  return 0;
}

}  // namespace

int synth(Arguments arguments) {
  SynthFlags flags;
  OptionSet set("nibble synth", "write a checkpoint of random weights, for measurements");
  if (const Parsed parsed = parse(set, flags, arguments); !parsed.ok) return parsed.exit;
  const Result<int> done = run_synth(flags);
  return done ? *done : fail(done.error());
}

}  // namespace nibble::cli
