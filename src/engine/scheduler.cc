// The scheduling policy in one place.
#include "engine/scheduler.h"

#include <algorithm>

namespace nibble {

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options), blocks_(options.num_blocks), state_slots_(options.max_num_seqs) {
  step_.reserve(static_cast<size_t>(options.max_num_seqs));
  running_.reserve(static_cast<size_t>(options.max_num_seqs));
}

void Scheduler::add(std::unique_ptr<Sequence> sequence) {
  waiting_.push_back(std::move(sequence));
}

const std::vector<ScheduledSequence>& Scheduler::plan() {
  step_.clear();
  int32_t budget = options_.max_num_batched_tokens;
  const int64_t preemptions_before = num_preemptions_;

  // Running sequences, oldest first. Preempting shortens running_ from its young end, so an index
  // stays valid as long as it is checked again.
  for (size_t i = 0; i < running_.size() && budget > 0; ++i) {
    Sequence& sequence = *running_[i];
    const int32_t num_tokens = std::min(sequence.num_pending(), budget);
    bool reserved = reserve_blocks(sequence, num_tokens);
    while (!reserved && running_.size() > i + 1) {
      preempt_youngest();
      reserved = reserve_blocks(sequence, num_tokens);
    }
    if (!reserved) {
      // Only possible for the youngest: it waits until others have finished.
      preempt_youngest();
      break;
    }
    step_.push_back({&sequence, num_tokens, num_tokens == sequence.num_pending()});
    budget -= num_tokens;
  }

  // No admission in a step that preempted: the newcomer would take the blocks just freed and be
  // thrown out again in the next step.
  if (num_preemptions_ != preemptions_before) return step_;
  while (!waiting_.empty() && budget > 0 && num_running() < options_.max_num_seqs) {
    Sequence& sequence = *waiting_.front();
    const int32_t num_tokens = std::min(sequence.num_pending(), budget);
    if (!reserve_blocks(sequence, num_tokens)) {
      release_slots(sequence);
      break;
    }
    sequence.state_slot = state_slots_.take();
    NB_CHECK(sequence.state_slot >= 0, "no state slot for %d running sequences", num_running());
    step_.push_back({&sequence, num_tokens, num_tokens == sequence.num_pending()});
    budget -= num_tokens;
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
  return step_;
}

void Scheduler::commit() {
  for (const ScheduledSequence& scheduled : step_)
    scheduled.sequence->num_computed += scheduled.num_tokens;
  step_.clear();
}

std::unique_ptr<Sequence> Scheduler::remove(Sequence* sequence) {
  std::unique_ptr<Sequence> owned;
  const auto is_it = [&](const std::unique_ptr<Sequence>& other) {
    return other.get() == sequence;
  };
  if (auto it = std::ranges::find_if(running_, is_it); it != running_.end()) {
    owned = std::move(*it);
    running_.erase(it);
  } else if (auto waiting = std::ranges::find_if(waiting_, is_it); waiting != waiting_.end()) {
    owned = std::move(*waiting);
    waiting_.erase(waiting);
  }
  NB_CHECK(owned != nullptr, "removing a sequence the scheduler does not hold");
  release_slots(*owned);
  return owned;
}

std::vector<Sequence*> Scheduler::sequences() const {
  std::vector<Sequence*> all;
  for (const auto& sequence : running_) all.push_back(sequence.get());
  for (const auto& sequence : waiting_) all.push_back(sequence.get());
  return all;
}

double Scheduler::kv_usage() const {
  return blocks_.size() == 0 ? 0.0 : 1.0 - static_cast<double>(blocks_.num_free()) / blocks_.size();
}

bool Scheduler::reserve_blocks(Sequence& sequence, int32_t num_tokens) {
  const int32_t wanted =
      (sequence.num_computed + num_tokens + options_.block_size - 1) / options_.block_size;
  while (static_cast<int32_t>(sequence.blocks.size()) < wanted) {
    const int32_t block = blocks_.take();
    if (block < 0) return false;
    sequence.blocks.push_back(block);
  }
  return true;
}

void Scheduler::release_slots(Sequence& sequence) {
  for (const int32_t block : sequence.blocks) blocks_.release(block);
  sequence.blocks.clear();
  if (sequence.state_slot >= 0) state_slots_.release(sequence.state_slot);
  sequence.state_slot = -1;
}

void Scheduler::preempt_youngest() {
  std::unique_ptr<Sequence> sequence = std::move(running_.back());
  running_.pop_back();
  release_slots(*sequence);
  sequence->num_computed = 0;
  ++num_preemptions_;
  waiting_.push_front(std::move(sequence));
}

}  // namespace nibble
