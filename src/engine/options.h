// Engine flags, with vLLM's names and meanings.
#pragma once

#include <cstddef>
#include <string>

#include "device/device.h"

namespace nibble {

struct EngineOptions {
  Backend backend = Backend::kAuto;
  int num_threads = 0;                  // 0: all
  std::string dtype = "float32";        // activations: float32, bfloat16, float16
  std::string kv_cache_dtype = "auto";  // auto (the activation dtype), float32, bfloat16, float16
  int max_model_len = 0;                // 0: the model's own limit, or what fits
  int max_num_seqs = 16;
  int max_num_batched_tokens = 512;  // prompt chunk and step budget
  int block_size = 16;
  size_t kv_cache_bytes = 0;  // 0: enough for max_num_seqs / 4 full-length sequences, at least 1
  int max_queue = 256;        // waiting requests
};

// The named dtypes, or an error that lists them. auto: float32 on a CPU.
Result<DType> parse_activation_dtype(const std::string& name);
// auto: `activation`.
Result<DType> parse_kv_cache_dtype(const std::string& name, DType activation);

}  // namespace nibble
