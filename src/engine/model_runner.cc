// One allocation, placed by an arena in the order memory_plan.cc counts.
#include "engine/model_runner.h"

#include <algorithm>
#include <cstring>

namespace nibble {

Result<ModelRunner> ModelRunner::create(const Model& model, Device& device,
                                        const MemoryPlan& plan) {
  ModelRunner runner;
  runner.model_ = &model;
  runner.device_ = &device;
  Arena counter;
  place_engine(model.spec(), plan, counter);
  NB_TRY(runner.memory_, device.allocate(counter.used(), "the engine"));
  Arena arena(runner.memory_.data(), runner.memory_.size());
  EngineBuffers buffers = place_engine(model.spec(), plan, arena);
  arena.seal();
  runner.placed_bytes_ = arena.used();
  runner.caches_ = std::move(buffers.caches);
  runner.logits_ = buffers.logits;
  runner.scratch_ = Arena(buffers.scratch, plan.activation_bytes);

  const auto tokens = static_cast<size_t>(plan.max_num_batched_tokens);
  const auto seqs = static_cast<size_t>(plan.max_num_seqs);
  runner.block_size_ = plan.caches.block_size;
  runner.max_blocks_ = (plan.max_model_len + runner.block_size_ - 1) / runner.block_size_;
  runner.token_ids_.resize(tokens);
  runner.positions_.resize(3 * tokens);
  runner.query_start_.resize(seqs + 1);
  runner.context_len_.resize(seqs);
  runner.state_slot_.resize(seqs);
  runner.state_is_fresh_.resize(seqs);
  runner.logit_rows_.resize(seqs);
  runner.block_table_.resize(seqs * static_cast<size_t>(runner.max_blocks_));
  return runner;
}

void ModelRunner::touch_buffers() {
  if (!device_->memory().is_host) return;  // a GPU has no pages to fault in
  std::memset(logits_.data, 0, logits_.num_bytes());
  Arena whole = scratch_;  // the same bytes; leaves the peak of scratch_ alone
  std::memset(whole.allocate(whole.capacity(), "touch"), 0, whole.capacity());
}

Tensor ModelRunner::run(std::span<const ScheduledSequence> step) {
  int32_t num_tokens = 0;
  for (const ScheduledSequence& scheduled : step) num_tokens += scheduled.num_tokens;

  int32_t row = 0;
  int32_t num_logit_rows = 0;
  for (size_t s = 0; s < step.size(); ++s) {
    const Sequence& sequence = *step[s].sequence;
    query_start_[s] = row;
    context_len_[s] = sequence.num_computed;
    state_slot_[s] = sequence.state_slot;
    state_is_fresh_[s] = sequence.num_computed == 0;
    std::ranges::copy(sequence.blocks,
                      block_table_.begin() + static_cast<ptrdiff_t>(s) * max_blocks_);
    for (int32_t i = 0; i < step[s].num_tokens; ++i, ++row) {
      const int32_t position = sequence.num_computed + i;
      token_ids_[static_cast<size_t>(row)] = sequence.tokens[static_cast<size_t>(position)];
      for (int32_t axis = 0; axis < 3; ++axis)
        positions_[static_cast<size_t>(axis * num_tokens + row)] = position;
    }
    if (step[s].wants_logits) logit_rows_[static_cast<size_t>(num_logit_rows++)] = row - 1;
  }
  query_start_[step.size()] = row;

  Step forward;
  forward.ops = &device_->ops();
  forward.batch = {.num_tokens = num_tokens,
                   .num_seqs = static_cast<int32_t>(step.size()),
                   .query_start = query_start_.data(),
                   .context_len = context_len_.data(),
                   .block_table = block_table_.data(),
                   .max_blocks = max_blocks_,
                   .block_size = block_size_,
                   .state_slot = state_slot_.data(),
                   .state_is_fresh = state_is_fresh_.data()};
  forward.token_ids = token_ids_.data();
  forward.positions = positions_.data();
  forward.logit_rows = logit_rows_.data();
  forward.num_logit_rows = num_logit_rows;
  forward.caches = &caches_;
  forward.scratch = &scratch_;
  const Tensor logits = logits_.rows(0, num_logit_rows);
  model_->forward(forward, logits);
  peak_scratch_bytes_ = scratch_.peak();
  return logits;
}

}  // namespace nibble
