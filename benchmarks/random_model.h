// What the benchmarks of quantization share: a random checkpoint, and the process's peak memory.
#pragma once

#include <sys/resource.h>

#include <algorithm>
#include <random>

#include "base/format.h"
#include "checkpoint/writer.h"

namespace nibble {

inline size_t peak_resident_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<size_t>(usage.ru_maxrss) << 10;
}

// A Llama-shaped BF16 checkpoint, one layer a shard; the bytes of one layer. `intermediate` 0:
// three times `hidden`.
inline Result<size_t> write_model(const fs::path& path, int num_layers, int64_t hidden,
                                  int64_t intermediate = 0) {
  constexpr int64_t kVocab = 1024;
  if (intermediate == 0) intermediate = 3 * hidden;
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

}  // namespace nibble
