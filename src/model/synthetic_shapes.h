// Models by name whose config.json is known, without their weights: what synthetic checkpoints and
// benchmarks are made like.
#pragma once

#include <span>
#include <string_view>

#include "base/json.h"
#include "base/result.h"

namespace nibble {

// "qwen3.6-40b", "qwen3.6-27b", "qwen3.6-35b-a3b", "llama-8b", "demo".
std::span<const std::string_view> synthetic_shapes();

struct SyntheticConfig {
  int num_layers = 0;      // 0: all of them; fewer keep the order of layer kinds
  bool quantized = false;  // with the quantization_config of the bundled W4A16 recipes
};

// config.json of a text-only checkpoint of that shape. kInvalidArgument names the nearest known
// name. The published shapes: model cards and config.json of Qwen3.5/3.6 27B and 35B-A3B and Llama
// 3.1 8B; the 40B is the 27B with half as many layers again.
Result<Json> synthetic_config(std::string_view like, const SyntheticConfig& options);

}  // namespace nibble
