// Runs one planned step on the device: fills the flat batch in host memory, uploads it in one copy,
// calls the model or replays a recorded step, brings logits or greedy choices back. Makes the
// copies between cache tiers that the scheduler asks for. Holds all device memory of the engine and
// all host memory the device copies to and from; reserves it in one go and allocates nothing
// afterwards.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "engine/memory_plan.h"
#include "engine/scheduler.h"
#include "model/cache_slots.h"
#include "model/model.h"

namespace nibble {

class ModelRunner {
 public:
  // `model` and `device` must outlive this object.
  static Result<ModelRunner> create(const Model& model, Device& device, const MemoryPlan& plan);

  // Enqueues the copies, in order. What they write in host memory is there after synchronize().
  void copy(std::span<const SlotCopy> copies);
  void synchronize() { device_->synchronize(); }
  // A host slot's bytes. For the thread that holds a reference to the slot.
  std::span<std::byte> host_slot(bool is_snapshot, int32_t slot) const;

  // Logits [sum of num_logit_rows, vocab_size] in host memory, in the order of `step`; valid until
  // the next launch, and may be overwritten.
  Tensor run(std::span<const ScheduledSequence> step) {
    launch(step);
    return collect();
  }
  // Records steps of one token per sequence for batches of these sizes (rising, at most
  // max_num_seqs), so that launch() replays them: a smaller batch is padded with sequences of no
  // tokens. Does nothing on a device that cannot record. Before readiness: takes device memory.
  void record(std::span<const int> sizes);
  int num_recordings() const { return static_cast<int>(recordings_.size()); }

  // Enqueues the step. With `greedy` only the largest logit of each row is wanted. The batch must
  // not be touched, so no second launch, until one of the two below.
  void launch(std::span<const ScheduledSequence> step, bool greedy = false);
  // Waits for it. Logits as run() returns them.
  Tensor collect();
  // Waits for a greedy step: each row's choice, -1 where no logit is a number.
  std::span<const int32_t> collect_greedy();

  // Writes every page of logits and scratch, so that host memory that is mapped lazily is there.
  void touch_buffers();
  // Of the device memory it holds, and of host memory the device copies to and from.
  size_t placed_bytes() const { return placed_bytes_; }
  size_t placed_host_bytes() const { return host_memory_.size() + host_tier_memory_.size(); }
  // The most scratch that a step has taken.
  size_t peak_scratch_bytes() const { return peak_scratch_bytes_; }

 private:
  ModelRunner() = default;
  struct Recorded {
    int32_t num_seqs = 0;
    std::unique_ptr<Recording> step;
  };
  // The recorded step for this one, or null.
  Recording* recorded_for(std::span<const ScheduledSequence> step, int32_t num_tokens,
                          int32_t* num_seqs) const;
  // Fills and uploads; rows past `step` are sequences of no tokens, up to num_seqs of them.
  void upload(std::span<const ScheduledSequence> step, int32_t num_tokens, int32_t num_seqs,
              int32_t max_blocks);
  void enqueue(int32_t num_tokens, int32_t num_seqs, int32_t max_blocks, bool greedy);

  const Model* model_ = nullptr;
  Device* device_ = nullptr;
  DeviceMemory memory_;
  DeviceMemory host_memory_;       // batch and logits
  DeviceMemory host_tier_memory_;  // blocks, then snapshots
  size_t placed_bytes_ = 0;
  size_t peak_scratch_bytes_ = 0;
  ModelCaches caches_;
  CacheSlots block_slots_;
  CacheSlots state_slots_;
  HostTierShape host_tier_;
  Arena scratch_;
  Tensor logits_;
  Tensor host_logits_;
  Tensor greedy_ids_;
  Tensor host_greedy_ids_;
  std::vector<Recorded> recordings_;  // by rising size
  BatchArrays batch_;                 // at the same offsets in host and in device memory
  BatchArrays device_batch_;
  std::byte* batch_base_ = nullptr;
  std::byte* device_batch_base_ = nullptr;
  int32_t num_state_slots_ = 0;
  int32_t block_size_ = 0;
  int32_t most_blocks_ = 0;     // of a sequence: the width of a recorded step's block table
  int32_t num_logit_rows_ = 0;  // of the launched step
};

}  // namespace nibble
