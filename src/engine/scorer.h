// Teacher-forced logits of given token ids, for evaluation: no sampling, one sequence at a time.
#pragma once

#include <functional>
#include <memory>
#include <span>

#include "checkpoint/model_dir.h"
#include "engine/memory_plan.h"
#include "engine/options.h"
#include "model/model.h"

namespace nibble {

class Scorer {
 public:
  // Called with the first position of a chunk and its logits [num_tokens, vocab_size] F32: row i
  // scores the token after position first + i.
  using Sink = std::function<void(int32_t first_position, const Tensor& logits)>;

  // `dir` must outlive the scorer. `max_tokens` is the longest sequence it will take.
  static Result<Scorer> open(const ModelDir& dir, const EngineOptions& options, int32_t max_tokens);

  const ModelSpec& spec() const { return model_->spec(); }
  // Runs `ids` in chunks of at most 256. kInvalidArgument when longer than max_tokens.
  Status score(std::span<const int32_t> ids, const Sink& sink);

 private:
  Scorer() = default;
  static constexpr int32_t kChunk = 256;

  std::unique_ptr<Device> device_;
  std::unique_ptr<Model> model_;
  DeviceMemory memory_;
  DeviceMemory host_memory_;
  ModelCaches caches_;
  Arena scratch_;
  Tensor logits_;
  Tensor host_logits_;
  CacheShape shape_;
  BatchArrays batch_;  // at the same offsets in host and in device memory
  BatchArrays device_batch_;
};

}  // namespace nibble
