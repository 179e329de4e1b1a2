// Every byte the engine will hold, computed before any is reserved: the same arena walk that counts
// here places at start (engine/model_runner.cc), so the two cannot disagree.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "base/result.h"
#include "engine/options.h"
#include "model/model.h"

namespace nibble {

struct MemoryPlan {
  int32_t max_model_len = 0;  // tokens of the longest sequence
  CacheShape caches;
  int32_t max_num_seqs = 0;
  int32_t max_num_batched_tokens = 0;
  DType activation_dtype = DType::kF32;

  size_t kv_bytes = 0;          // KV blocks of all layers
  size_t state_bytes = 0;       // recurrent and conv states of all slots
  size_t activation_bytes = 0;  // scratch of the largest step
  size_t logits_bytes = 0;
  size_t batch_bytes = 0;  // ids, positions, block tables
  size_t total_bytes() const {
    return kv_bytes + state_bytes + activation_bytes + logits_bytes + batch_bytes;
  }
};

// Chooses what the options leave open and counts. `available_bytes` is what may be reserved. When
// max_model_len is open, it is the largest context that fits; when the flags ask for more than
// fits: kOutOfMemory with the numbers and the nearest flags that fit.
Result<MemoryPlan> plan_memory(const Model& model, const EngineOptions& options,
                               size_t available_bytes);

}  // namespace nibble
