// Runs one planned step on the device: fills the flat batch in host memory, uploads it in one copy,
// calls the model, brings the logits back. Makes the copies between cache tiers that the scheduler
// asks for. Holds all device memory of the engine and all host memory the device copies to and
// from; reserves it in one go and allocates nothing afterwards.
#pragma once

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
  // Enqueues the step. The batch must not be touched, so no second launch, until collect().
  void launch(std::span<const ScheduledSequence> step);
  // Waits for it.
  Tensor collect();

  // Writes every page of logits and scratch, so that host memory that is mapped lazily is there.
  void touch_buffers();
  // Of the device memory it holds, and of host memory the device copies to and from.
  size_t placed_bytes() const { return placed_bytes_; }
  size_t placed_host_bytes() const { return host_memory_.size() + host_tier_memory_.size(); }
  // The most scratch that a step has taken.
  size_t peak_scratch_bytes() const { return peak_scratch_bytes_; }

 private:
  ModelRunner() = default;

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
  BatchArrays batch_;  // at the same offsets in host and in device memory
  BatchArrays device_batch_;
  std::byte* batch_base_ = nullptr;
  std::byte* device_batch_base_ = nullptr;
  int32_t num_state_slots_ = 0;
  int32_t block_size_ = 0;
  int32_t num_logit_rows_ = 0;  // of the launched step
};

}  // namespace nibble
