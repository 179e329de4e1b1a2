// One device allocation, placed by an arena in the order memory_plan.cc counts.
#include "engine/model_runner.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace nibble {
namespace {

// Counts, allocates with `allocate`, places.
template <class Place, class Allocate>
Status reserve(const Place& place, const Allocate& allocate, DeviceMemory* memory) {
  Arena counter;
  place(counter);
  NB_TRY(*memory, allocate(counter.used()));
  Arena arena(memory->data(), memory->size());
  place(arena);
  arena.seal();
  return {};
}

}  // namespace

Result<ModelRunner> ModelRunner::create(const Model& model, Device& device,
                                        const MemoryPlan& plan) {
  ModelRunner runner;
  runner.model_ = &model;
  runner.device_ = &device;
  runner.block_size_ = plan.caches.block_size;
  runner.num_state_slots_ = plan.caches.num_state_slots;
  runner.most_blocks_ = (plan.max_model_len + plan.caches.block_size - 1) / plan.caches.block_size;
  runner.host_tier_ = plan.host_tier;

  EngineBuffers buffers;
  NB_TRY_STATUS(reserve([&](Arena& arena) { buffers = place_engine(model.spec(), plan, arena); },
                        [&](size_t bytes) {
                          runner.placed_bytes_ = bytes;
                          return device.allocate(bytes, "the engine");
                        },
                        &runner.memory_));
  runner.caches_ = std::move(buffers.caches);
  runner.logits_ = buffers.logits;
  runner.greedy_ids_ = buffers.greedy_ids;
  runner.scratch_ = Arena(buffers.scratch, plan.activation_bytes);
  runner.device_batch_base_ = buffers.batch_base;
  runner.device_batch_ = buffers.batch;
  const auto place_on_host = [&](Arena& arena) {
    runner.batch_base_ = static_cast<std::byte*>(arena.allocate(0, "batch"));
    runner.batch_ = place_batch(plan.max_num_batched_tokens, plan.max_num_seqs, plan.max_model_len,
                                plan.caches.block_size, arena);
    runner.host_logits_ = arena.tensor(DType::kF32, runner.logits_.shape, "logits");
    runner.host_greedy_ids_ = arena.tensor(DType::kI32, runner.greedy_ids_.shape, "choices");
  };
  NB_TRY_STATUS(reserve(
      place_on_host, [&](size_t bytes) { return device.allocate_host(bytes, "the batch"); },
      &runner.host_memory_));

  runner.block_slots_ = block_slots(runner.caches_);
  runner.state_slots_ = state_slots(runner.caches_);
  NB_CHECK(runner.block_slots_.bytes_per_slot == plan.host_tier.block_bytes &&
               runner.state_slots_.bytes_per_slot == plan.host_tier.snapshot_bytes,
           "host slots were planned with other sizes");
  NB_TRY(runner.host_tier_memory_,
         device.allocate_host(plan.host_tier.num_bytes(), "--kv-offloading-size"));
  return runner;
}

std::span<std::byte> ModelRunner::host_slot(bool is_snapshot, int32_t slot) const {
  auto* base = static_cast<std::byte*>(host_tier_memory_.data());
  const size_t block = block_slots_.bytes_per_slot;
  const size_t state = state_slots_.bytes_per_slot;
  if (!is_snapshot) return {base + static_cast<size_t>(slot) * block, block};
  return {
      base + static_cast<size_t>(host_tier_.num_blocks) * block + static_cast<size_t>(slot) * state,
      state};
}

void ModelRunner::copy(std::span<const SlotCopy> copies) {
  const auto on_device = [](const CacheSlots::Part& part, int32_t slot) {
    return part.base + static_cast<size_t>(slot) * part.bytes;
  };
  // Snapshots are the rows behind the live states.
  const auto snapshot = [&](int32_t slot) { return num_state_slots_ + slot; };
  const auto within = [&](const CacheSlots& slots, int32_t from, int32_t to) {
    for (const CacheSlots::Part& part : slots.parts)
      device_->copy(on_device(part, to), on_device(part, from), part.bytes);
  };
  const auto to_host = [&](const CacheSlots& slots, int32_t from, std::span<std::byte> to) {
    for (const CacheSlots::Part& part : slots.parts) {
      device_->download(to.data(), on_device(part, from), part.bytes);
      to = to.subspan(part.bytes);
    }
  };
  const auto from_host = [&](const CacheSlots& slots, std::span<std::byte> from, int32_t to) {
    for (const CacheSlots::Part& part : slots.parts) {
      device_->upload(on_device(part, to), from.data(), part.bytes);
      from = from.subspan(part.bytes);
    }
  };
  for (const auto& [kind, from, to] : copies) {
    switch (kind) {
      case SlotCopy::Kind::kStateToSnapshot: within(state_slots_, from, snapshot(to)); break;
      case SlotCopy::Kind::kSnapshotToState: within(state_slots_, snapshot(from), to); break;
      case SlotCopy::Kind::kBlockToHost: to_host(block_slots_, from, host_slot(false, to)); break;
      case SlotCopy::Kind::kHostToBlock: from_host(block_slots_, host_slot(false, from), to); break;
      case SlotCopy::Kind::kSnapshotToHost:
        to_host(state_slots_, snapshot(from), host_slot(true, to));
        break;
      case SlotCopy::Kind::kHostToState: from_host(state_slots_, host_slot(true, from), to); break;
    }
  }
}

void ModelRunner::touch_buffers() {
  if (!device_->memory().is_host) return;  // a GPU has no pages to fault in
  std::memset(logits_.data, 0, logits_.num_bytes());
  Arena whole = scratch_;  // the same bytes; leaves the peak of scratch_ alone
  std::memset(whole.allocate(whole.capacity(), "touch"), 0, whole.capacity());
}

void ModelRunner::record(std::span<const int> sizes) {
  if (!device_->can_record()) return;
  int64_t most_tokens = std::numeric_limits<int64_t>::max();
  for (const LayerWeights& layer : model_->weights().layers)
    if (const MoeWeights& moe = layer.moe; !moe.gate_proj.empty())
      most_tokens = std::min(most_tokens, device_->ops().recordable_moe_tokens(
                                              moe.gate_proj, moe.up_proj, moe.down_proj));
  for (const int size : sizes) {
    if (size > most_tokens) break;  // sizes rise
    num_logit_rows_ = 0;
    upload({}, size, size, most_blocks_);
    const auto step = [&] { enqueue(size, size, most_blocks_, true); };
    num_logit_rows_ = size;
    step();
    device_->synchronize();
    recordings_.push_back({size, device_->record(step)});
  }
  num_logit_rows_ = 0;
}

Recording* ModelRunner::recorded_for(std::span<const ScheduledSequence> step, int32_t num_tokens,
                                     int32_t* num_seqs) const {
  if (watching_ != nullptr) return nullptr;
  if (num_tokens != static_cast<int32_t>(step.size())) return nullptr;
  for (const ScheduledSequence& scheduled : step)
    if (scheduled.num_tokens != 1 || scheduled.num_logit_rows() != 1) return nullptr;
  for (const Recorded& recorded : recordings_) {
    if (recorded.num_seqs < num_tokens) continue;
    *num_seqs = recorded.num_seqs;
    return recorded.step.get();
  }
  return nullptr;
}

void ModelRunner::upload(std::span<const ScheduledSequence> step, int32_t num_tokens,
                         int32_t num_seqs, int32_t max_blocks) {
  int32_t row = 0;
  num_logit_rows_ = 0;
  for (size_t s = 0; s < step.size(); ++s) {
    const Sequence& sequence = *step[s].sequence;
    batch_.query_start[s] = row;
    batch_.context_len[s] = sequence.num_computed;
    batch_.state_slot[s] = sequence.state_slot;
    batch_.state_is_fresh[s] = sequence.num_computed == 0;
    std::ranges::copy(sequence.blocks, batch_.block_table + s * static_cast<size_t>(max_blocks));
    for (int32_t i = 0; i < step[s].num_tokens; ++i, ++row) {
      const int32_t position = sequence.num_computed + i;
      batch_.token_ids[row] = sequence.tokens[static_cast<size_t>(position)];
      for (int32_t axis = 0; axis < 3; ++axis) batch_.positions[axis * num_tokens + row] = position;
    }
    for (int32_t i = step[s].num_logit_rows(); i > 0; --i)
      batch_.logit_rows[num_logit_rows_++] = row - i;
  }
  batch_.query_start[step.size()] = row;
  // Padding: rows of token 0 that belong to no sequence.
  for (int32_t s = static_cast<int32_t>(step.size()); s < num_seqs; ++s) {
    batch_.query_start[s + 1] = row;
    batch_.context_len[s] = 0;
    batch_.state_slot[s] = 0;
    batch_.state_is_fresh[s] = 0;
  }
  for (int32_t t = row; t < num_tokens; ++t) {
    batch_.token_ids[t] = 0;
    for (int32_t axis = 0; axis < 3; ++axis) batch_.positions[axis * num_tokens + t] = 0;
    batch_.logit_rows[t] = t;
  }
  const auto* end = reinterpret_cast<const std::byte*>(
      batch_.block_table + step.size() * static_cast<size_t>(max_blocks));
  device_->upload(device_batch_base_, batch_base_, static_cast<size_t>(end - batch_base_));
}

void ModelRunner::enqueue(int32_t num_tokens, int32_t num_seqs, int32_t max_blocks, bool greedy) {
  Step forward;
  forward.ops = watching_ != nullptr ? watching_ : &device_->ops();
  forward.batch = {.num_tokens = num_tokens,
                   .num_seqs = num_seqs,
                   .query_start = device_batch_.query_start,
                   .context_len = device_batch_.context_len,
                   .block_table = device_batch_.block_table,
                   .max_blocks = max_blocks,
                   .block_size = block_size_,
                   .state_slot = device_batch_.state_slot,
                   .state_is_fresh = device_batch_.state_is_fresh};
  forward.token_ids = device_batch_.token_ids;
  forward.positions = device_batch_.positions;
  forward.logit_rows = device_batch_.logit_rows;
  forward.num_logit_rows = num_logit_rows_;
  forward.caches = &caches_;
  forward.scratch = &scratch_;
  const Tensor logits = logits_.rows(0, num_logit_rows_);
  model_->forward(forward, logits);
  if (greedy) forward.ops->argmax(logits, greedy_ids_.rows(0, num_logit_rows_));
  peak_scratch_bytes_ = scratch_.peak();
}

void ModelRunner::launch(std::span<const ScheduledSequence> step, bool greedy) {
  int32_t num_tokens = 0;
  size_t max_blocks = 1;  // of the sequences of this step
  for (const ScheduledSequence& scheduled : step) {
    num_tokens += scheduled.num_tokens;
    max_blocks = std::max(max_blocks, scheduled.sequence->blocks.size());
  }
  int32_t num_seqs = 0;
  if (Recording* recorded = recorded_for(step, num_tokens, &num_seqs)) {
    upload(step, num_seqs, num_seqs, most_blocks_);
    recorded->replay();
    return;
  }
  const auto all = static_cast<int32_t>(step.size());
  upload(step, num_tokens, all, static_cast<int32_t>(max_blocks));
  enqueue(num_tokens, all, static_cast<int32_t>(max_blocks), greedy);
}

std::span<const int32_t> ModelRunner::collect_greedy() {
  const Tensor ids = host_greedy_ids_.rows(0, num_logit_rows_);
  if (num_logit_rows_ > 0) device_->download(ids.data, greedy_ids_.data, ids.num_bytes());
  device_->synchronize();
  return {ids.as<const int32_t>(), static_cast<size_t>(num_logit_rows_)};
}

Tensor ModelRunner::collect() {
  const Tensor logits = host_logits_.rows(0, num_logit_rows_);
  if (num_logit_rows_ > 0) device_->download(logits.data, logits_.data, logits.num_bytes());
  device_->synchronize();
  return logits;
}

}  // namespace nibble
