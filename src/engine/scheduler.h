// Continuous batching: which sequences run in the next step, and how many tokens of each. Running
// sequences first, then waiting ones in order of arrival, prompts in chunks, under one token
// budget. When KV blocks run out the youngest running sequence is preempted and recomputed later.
// Pure state: meets no device, no clock, no thread.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "engine/block_pool.h"
#include "engine/sequence.h"

namespace nibble {

struct SchedulerOptions {
  int32_t num_blocks = 0;
  int32_t block_size = 16;
  int32_t max_num_seqs = 16;             // running at once; also the number of state slots
  int32_t max_num_batched_tokens = 512;  // of one step
};

struct ScheduledSequence {
  Sequence* sequence = nullptr;
  int32_t num_tokens = 0;     // tokens[num_computed .. num_computed + num_tokens) run in this step
  bool wants_logits = false;  // the last of them is the newest token: a token will be sampled
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);

  void add(std::unique_ptr<Sequence> sequence);

  // Picks the next step and takes the slots it needs. Empty when nothing can run.
  const std::vector<ScheduledSequence>& plan();
  // The planned step ran: marks its tokens as computed.
  void commit();
  // Frees the slots of a sequence, wherever it is, and returns it.
  std::unique_ptr<Sequence> remove(Sequence* sequence);

  // Every sequence, running ones first.
  std::vector<Sequence*> sequences() const;

  int32_t num_running() const { return static_cast<int32_t>(running_.size()); }
  int32_t num_waiting() const { return static_cast<int32_t>(waiting_.size()); }
  int64_t num_preemptions() const { return num_preemptions_; }
  double kv_usage() const;
  const BlockPool& blocks() const { return blocks_; }
  const BlockPool& state_slots() const { return state_slots_; }

 private:
  bool reserve_blocks(Sequence& sequence, int32_t num_tokens);
  void release_slots(Sequence& sequence);
  void preempt_youngest();

  SchedulerOptions options_;
  BlockPool blocks_;
  BlockPool state_slots_;
  std::vector<std::unique_ptr<Sequence>> running_;  // by arrival
  std::deque<std::unique_ptr<Sequence>> waiting_;   // by arrival
  std::vector<ScheduledSequence> step_;
  int64_t num_preemptions_ = 0;
};

}  // namespace nibble
