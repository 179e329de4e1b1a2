// Facts are gathered into one table first; a comparison is the difference of two such tables.
#include "eval/card.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/format.h"
#include "base/hash.h"
#include "base/text.h"
#include "checkpoint/model_dir.h"
#include "model/architectures.h"
#include "model/model.h"

namespace nibble {
namespace {

using Facts = std::vector<std::pair<std::string, std::string>>;

struct Quant {
  ModelDir dir;
  ModelSpec spec;
  Json report;
  Facts facts;  // what a recipe decides, in the order of the card's table
  size_t tensor_bytes = 0;
};

std::string describe(const QuantizationGroup& group) {
  const QuantFormat& format_ = group.format;
  return format("int{} {}, {}, targets {}", format_.num_bits,
                format_.symmetric ? "symmetric" : "asymmetric",
                format_.group_size > 0 ? format("groups of {}", format_.group_size)
                                       : std::string("one scale a row"),
                join(group.targets, ", "));
}

Result<Quant> read_quant(const fs::path& path) {
  NB_TRY(ModelDir dir, ModelDir::open(path));
  if (!dir.quantization())
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: not quantized; a card describes what nibble quantize wrote",
                      path.string());
  NB_TRY(ModelSpec spec, parse_model_config(dir.config()));
  NB_TRY(const std::string text, read_file(path / "quantization_report.json"));
  NB_TRY(Json report, parse_json(text, "quantization_report.json"));
  const auto field = [&](const char* name) {
    const auto it = report.find(name);
    if (it == report.end()) return std::string("none");
    return it->is_string() ? it->get<std::string>() : dump_json(*it);
  };
  Facts facts = {{"algorithm", field("algorithm")},
                 {"mode", field("mode")},
                 {"calibration samples", field("calibration_samples")},
                 {"calibration set", field("calibration_sha256")}};
  const QuantizationConfig& quantization = *dir.quantization();
  std::string groups;
  std::string observers;
  for (const QuantizationGroup& group : quantization.groups) {
    groups += (groups.empty() ? "" : "; ") + describe(group);
    observers += (observers.empty() ? "" : ", ") + group.observer;
  }
  facts.emplace_back("weights", groups);
  facts.emplace_back("observer", observers);
  facts.emplace_back("kept in floating point", format("{} modules", quantization.ignore.size()));
  facts.emplace_back("ignored names",
                     sha256_hex(format("{}", join(quantization.ignore, ","))).substr(0, 12));
  facts.emplace_back("source", field("source_sha256") == "none"
                                   ? field("source")
                                   : sha256_hex(field("source_sha256")).substr(0, 12));
  facts.emplace_back("nibble", field("nibble_version"));
  size_t bytes = 0;
  for (const SafetensorsFile& shard : dir.shards())
    for (const TensorInfo& info : shard.tensors()) bytes += info.num_bytes;
  return Quant{std::move(dir), std::move(spec), std::move(report), std::move(facts), bytes};
}

std::string recipe_table(const Quant& quant, const Quant* old, std::vector<std::string>& warnings) {
  std::string table =
      old ? "| | this version | prior version |\n| --- | --- | --- |\n" : "| | |\n| --- | --- |\n";
  std::vector<std::string> different;
  for (size_t i = 0; i < quant.facts.size(); ++i) {
    const auto& [name, value] = quant.facts[i];
    table += format("| {} | {} |", name, value);
    if (old) {
      const std::string& before = old->facts[i].second;
      table += before == value ? " same |" : format(" **{}** |", before);
      if (before != value) different.push_back(name);
    }
    table += "\n";
  }
  if (!old) return table;
  if (different.size() == 1) {
    table += format("\nA single change: {}.\n", different[0]);
  } else if (different.empty()) {
    table += "\nNothing differs in how the two were made.\n";
  } else {
    table += format("\n{} things differ: {}. Their effects cannot be told apart.\n",
                    different.size(), join(different, ", "));
    warnings.push_back(
        format("more than one thing differs from the prior version: {}", join(different, ", ")));
  }
  return table;
}

std::string memory_ladder(const Quant& quant) {
  std::string table =
      "| context | weights | KV cache and state | together |\n| --- | --- | --- | --- |\n";
  for (int64_t context = 4096;; context *= 2) {
    const int64_t tokens = std::min<int64_t>(context, quant.spec.max_position_embeddings);
    const CacheShape shape{.num_blocks = static_cast<int>((tokens + 15) / 16),
                           .block_size = 16,
                           .num_state_slots = 1,
                           .kv_dtype = DType::kBF16};
    Arena counter;
    place_caches(quant.spec, shape, DType::kBF16, counter);
    const size_t caches = counter.used();
    table += format("| {} | {} | {} | {} |\n", tokens, format_bytes(quant.tensor_bytes),
                    format_bytes(caches), format_bytes(quant.tensor_bytes + caches));
    if (tokens < context || tokens == quant.spec.max_position_embeddings) break;
  }
  return table;
}

std::string sampling_line(const Json& generation) {
  std::string line;
  for (const char* name : {"temperature", "top_p", "top_k", "min_p", "repetition_penalty"})
    if (generation.contains(name))
      line += format("{}{} {}", line.empty() ? "" : ", ", name, dump_json(generation[name]));
  return line.empty() ? "The parent's generation_config.json recommends none."
                      : "As the parent recommends: " + line + ".";
}

}  // namespace

Result<ModelCard> make_model_card(const fs::path& path, const CardOptions& options) {
  NB_TRY(const Quant quant, read_quant(path));
  std::optional<Quant> old;
  if (!options.compare_with.empty()) {
    NB_TRY(old, read_quant(options.compare_with));
  }
  ModelCard card;
  const std::string name = fs::weakly_canonical(path).filename().string();
  const std::string parent =
      options.base_model.empty() ? quant.report.value("source", "the parent") : options.base_model;
  std::string& text = card.text;
  text = format(
      "---\nbase_model: {}\nlibrary_name: transformers\ntags: [compressed-tensors, w4a16]\n---\n",
      parent);
  text += format(
      "# {}\n\n{} quantized by nibble: {} of tensors, from {}. The format is compressed-tensors "
      "pack-quantized, which vLLM and transformers read.\n",
      name, parent, format_bytes(quant.tensor_bytes),
      format_bytes(quant.report.value("source_bytes", 0.0)));
  text += "\n## How it was made\n\n" + recipe_table(quant, old ? &*old : nullptr, card.warnings);
  text +=
      "\nThe whole recipe is in recipe.yaml, the error of every module in "
      "quantization_report.json.\n";
  text += "\n## What it lost\n\n";
  if (options.fidelity.is_object()) {
    const auto figure = [&](const char* key) { return options.fidelity.value(key, 0.0); };
    text += format(
        "Against the parent over {:.0f} positions of held-out conversations (`nibble "
        "fidelity`):\n\n"
        "| mean KL (nats) | p99 KL | same best token |\n| --- | --- | --- |\n"
        "| {:.5f} | {:.4f} | {:.2f} % |\n",
        figure("num_tokens"), figure("mean_kl"), figure("p99_kl"), 100 * figure("top1_agreement"));
  } else {
    text += "Not measured. `nibble fidelity PARENT DIR --prompts FILE --json` measures it.\n";
  }
  text +=
      format("\n## Serving\n\n    nibble serve {} --port 8000\n    vllm serve {}\n", name, name);
  text += "\nMemory for one sequence, 16-bit KV cache, without the activations of a step:\n\n" +
          memory_ladder(quant);
  text += "\n## Sampling\n\n" + sampling_line(quant.dir.generation_config()) + "\n";
  return card;
}

}  // namespace nibble
