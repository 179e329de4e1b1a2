// Runs one planned step on the device: fills the flat batch, calls the model, returns logits. Holds
// all device memory of the engine; reserves it in one go and allocates nothing afterwards.
#pragma once

#include <span>
#include <vector>

#include "engine/memory_plan.h"
#include "engine/scheduler.h"
#include "model/model.h"

namespace nibble {

class ModelRunner {
 public:
  // `model` and `device` must outlive this object.
  static Result<ModelRunner> create(const Model& model, Device& device, const MemoryPlan& plan);

  // Logits [number of sequences with wants_logits, vocab_size], in the order of `step`; valid until
  // the next call, and may be overwritten.
  Tensor run(std::span<const ScheduledSequence> step);

  // Writes every page of logits and scratch, so that host memory that is mapped lazily is there.
  void touch_buffers();
  // Of the device memory it holds.
  size_t placed_bytes() const { return placed_bytes_; }
  // The most scratch that a step has taken.
  size_t peak_scratch_bytes() const { return peak_scratch_bytes_; }

 private:
  ModelRunner() = default;

  const Model* model_ = nullptr;
  Device* device_ = nullptr;
  DeviceMemory memory_;
  size_t placed_bytes_ = 0;
  size_t peak_scratch_bytes_ = 0;
  ModelCaches caches_;
  Arena scratch_;
  Tensor logits_;
  int32_t max_blocks_ = 0;  // per sequence
  int32_t block_size_ = 0;

  // The batch of a step, sized for the largest one.
  std::vector<int32_t> token_ids_, positions_, query_start_, context_len_, block_table_,
      state_slot_, logit_rows_;
  std::vector<uint8_t> state_is_fresh_;
};

}  // namespace nibble
