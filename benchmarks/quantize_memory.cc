// Peak resident memory of quantization against its bound: the largest layer plus the largest
// shard's mapped pages. Writes a random checkpoint of NUM_LAYERS layers, so that the model is much
// larger than the bound. Usage: bench_quantize_memory [NUM_LAYERS [HIDDEN_SIZE]]
#include <sys/resource.h>

#include <cstdio>
#include <cstdlib>
#include <random>

#include "base/format.h"
#include "checkpoint/writer.h"
#include "quant/pipeline.h"

namespace {

using namespace nibble;

size_t peak_resident_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<size_t>(usage.ru_maxrss) << 10;
}

// A Llama-shaped BF16 checkpoint, one layer a shard; the bytes of one layer.
Result<size_t> write_model(const fs::path& path, int num_layers, int64_t hidden) {
  constexpr int64_t kVocab = 1024;
  const int64_t intermediate = 3 * hidden;
  const size_t layer_bytes =
      static_cast<size_t>(4 * hidden * hidden + 3 * hidden * intermediate) * 2;
  NB_TRY(CheckpointWriter writer,
         CheckpointWriter::create(path, {.max_shard_bytes = layer_bytes + (size_t{1} << 20)}));
  std::vector<uint16_t> values(static_cast<size_t>(hidden * std::max(intermediate, kVocab)));
  std::mt19937 random(1);
  for (uint16_t& value : values)  // +-(2^-7 .. 2^-5)
    value = static_cast<uint16_t>(0x3C00 | (random() & 0x80FF));
  const auto add = [&](const std::string& name, Shape shape) {
    return writer.add(name, {values.data(), DType::kBF16, shape});
  };
  NB_TRY_STATUS(add("model.embed_tokens.weight", {kVocab, hidden}));
  for (int layer = 0; layer < num_layers; ++layer) {
    const std::string prefix = format("model.layers.{}.", layer);
    for (const char* name : {"q_proj", "k_proj", "v_proj", "o_proj"})
      NB_TRY_STATUS(add(prefix + "self_attn." + name + ".weight", {hidden, hidden}));
    for (const char* name : {"gate_proj", "up_proj"})
      NB_TRY_STATUS(add(prefix + "mlp." + name + ".weight", {intermediate, hidden}));
    NB_TRY_STATUS(add(prefix + "mlp.down_proj.weight", {hidden, intermediate}));
    for (const char* name : {"input_layernorm", "post_attention_layernorm"})
      NB_TRY_STATUS(add(prefix + name + ".weight", {hidden}));
  }
  NB_TRY_STATUS(add("model.norm.weight", {hidden}));
  NB_TRY_STATUS(add("lm_head.weight", {kVocab, hidden}));
  const Json config = {{"architectures", {"LlamaForCausalLM"}},
                       {"model_type", "llama"},
                       {"hidden_size", hidden},
                       {"intermediate_size", intermediate},
                       {"num_hidden_layers", num_layers},
                       {"num_attention_heads", hidden / 128},
                       {"num_key_value_heads", hidden / 128},
                       {"head_dim", 128},
                       {"vocab_size", kVocab},
                       {"max_position_embeddings", 4096},
                       {"rms_norm_eps", 1e-6},
                       {"rope_theta", 10000.0},
                       {"tie_word_embeddings", false},
                       {"hidden_act", "silu"}};
  NB_TRY_STATUS(writer.add_file("config.json", dump_json_pretty(config)));
  NB_TRY_STATUS(writer.finish());
  return layer_bytes;
}

constexpr const char* kRecipe = R"(quant_stage:
  quant_modifiers:
    QuantizationModifier:
      targets: [Linear]
      ignore: ["re:.*lm_head"]
      config_groups:
        group_0:
          targets: [Linear]
          weights: {num_bits: 4, type: int, symmetric: false, strategy: group, group_size: 128,
                    observer: memoryless_minmax}
)";

Status bench(int num_layers, int64_t hidden) {
  std::string pattern = (fs::temp_directory_path() / "nibble-bench-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr)
    return make_error(ErrorCode::kIo, "{}: cannot be made", pattern);
  const fs::path directory = pattern;
  const auto work = [&]() -> Status {
    NB_TRY(const size_t layer_bytes, write_model(directory / "in", num_layers, hidden));
    const size_t before = peak_resident_bytes();
    QuantizeOptions options;
    NB_TRY(options.recipe, parse_recipe(kRecipe, "benchmark recipe"));
    NB_TRY(const QuantizeReport report,
           quantize_checkpoint(directory / "in", directory / "out", options));
    const size_t peak = peak_resident_bytes();
    const size_t shard_bytes = layer_bytes + (size_t{1} << 20);
    const size_t bound = layer_bytes + shard_bytes;
    std::printf("model               %s in %d layers\n",
                format_bytes(static_cast<double>(report.source_bytes)).c_str(), num_layers);
    std::printf("bound               %s (largest layer + largest shard)\n",
                format_bytes(static_cast<double>(bound)).c_str());
    std::printf("peak before         %s\n", format_bytes(static_cast<double>(before)).c_str());
    std::printf("peak of the process %s, %.2f of the bound\n",
                format_bytes(static_cast<double>(peak)).c_str(),
                static_cast<double>(peak) / static_cast<double>(bound));
    std::printf("time                %.1f s, %s/s read\n", report.seconds,
                format_bytes(static_cast<double>(report.source_bytes) / report.seconds).c_str());
    return {};
  };
  const Status status = work();
  fs::remove_all(directory);
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  const int num_layers = argc > 1 ? std::atoi(argv[1]) : 12;
  const int hidden = argc > 2 ? std::atoi(argv[2]) : 2048;
  if (num_layers < 1 || hidden < 128 || hidden % 128 != 0) {
    std::fprintf(stderr,
                 "usage: bench_quantize_memory [NUM_LAYERS [HIDDEN_SIZE, a multiple of 128]]\n");
    return 2;
  }
  const nibble::Status status = bench(num_layers, hidden);
  if (status) return 0;
  std::fprintf(stderr, "%s\n", status.error().message.c_str());
  return 1;
}
