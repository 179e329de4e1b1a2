// Continuous batching: which sequences run in the next step, and how many tokens of each. There are
// no phases: a sequence has tokens that are computed and tokens that are known, and each step moves
// the first towards the second under one token budget. Sequences that decode go first, then prompts
// in chunks, then waiting sequences are admitted. When KV blocks run out the last running sequence
// is preempted: it keeps its tokens, gives back its blocks and resumes later, from what the prefix
// cache has kept.
//
// Pure state: meets no device, no clock, no thread. The same calls give the same steps.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/prefix_cache.h"
#include "engine/sequence.h"

namespace nibble {

// Who runs first, and who is preempted last.
enum class SchedulingPolicy {
  kFcfs,      // by arrival; between clients that wait, the one served least
  kPriority,  // smallest (Request::priority, arrival)
};

struct SchedulerOptions {
  int32_t num_blocks = 0;
  int32_t block_size = 16;
  int32_t max_num_seqs = 16;                 // running at once; also the number of state slots
  int32_t max_num_batched_tokens = 512;      // of one step; >= max_num_seqs
  int32_t long_prefill_token_threshold = 0;  // of one sequence in one step; 0: no limit
  SchedulingPolicy policy = SchedulingPolicy::kFcfs;

  bool prefix_caching = false;
  bool hybrid = false;  // resuming needs a state snapshot
  int32_t num_snapshots = 0;
  int32_t num_host_blocks = 0;  // the second tier
  int32_t num_host_snapshots = 0;
  bool persist = false;  // what reaches the host tier goes on to disk
};

struct ScheduledSequence {
  Sequence* sequence = nullptr;
  int32_t num_tokens = 0;     // tokens[num_computed .. num_computed + num_tokens) run in this step
  bool wants_logits = false;  // the last of them is the newest token: a token will be sampled
  bool wants_all_logits = false;  // of every row, for prompt logprobs
  int32_t num_logit_rows() const { return wants_all_logits ? num_tokens : wants_logits; }
};

// A host slot whose content is to be written to disk. It holds a reference until persisted().
struct PersistRequest {
  bool is_snapshot = false;
  int32_t host_slot = 0;
  BlockHash hash;
  int32_t num_blocks = 0;  // of the prefix that ends with it
};

struct SchedulerCounters {
  int64_t num_preemptions = 0;
  int64_t device_queries = 0;  // tokens looked up
  int64_t device_hits = 0;
  int64_t tier_queries = 0;
  int64_t tier_hits = 0;
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);

  void add(std::unique_ptr<Sequence> sequence);

  // Picks the next step and takes the slots it needs. Empty when nothing can run. At most
  // max_num_seqs rows of logits in all.
  const std::vector<ScheduledSequence>& plan();
  // Copies to make before the next step, in this order, then forgotten by clear_copies(). Also
  // after a plan that is empty, and after commit().
  std::span<const SlotCopy> copies() const { return copies_; }
  void clear_copies() { copies_.clear(); }
  // The planned step ran: marks its tokens as computed, names the blocks they filled, keeps states.
  void commit();
  // Frees the slots of a sequence, wherever it is, and returns it.
  std::unique_ptr<Sequence> remove(Sequence* sequence);

  // Every sequence, running ones first; valid until the next call of anything else.
  const std::vector<Sequence*>& sequences() const;

  // Filled by commit() and remove(); ready once the copies so far are made. The caller takes them
  // and calls persisted() for each, written or not.
  std::vector<PersistRequest>& persist_requests() { return persist_; }
  void persisted(const PersistRequest& request);
  PrefixCache& cache() { return cache_; }
  const PrefixCache& cache() const { return cache_; }

  int32_t num_running() const { return static_cast<int32_t>(running_.size()); }
  int32_t num_waiting() const { return static_cast<int32_t>(waiting_.size()); }
  int64_t num_preemptions() const { return counters_.num_preemptions; }
  const SchedulerCounters& counters() const { return counters_; }
  double kv_usage() const;
  const BlockPool& blocks() const { return cache_.blocks.pool(); }
  const BlockPool& state_slots() const { return state_slots_; }
  // Aborts when slots, names and sequences contradict each other. Slow; for tests.
  void check_invariants() const;

 private:
  struct Client {
    std::string name;
    int32_t num_sequences = 0;
    int64_t tokens_served = 0;
  };

  bool runs_before(const Sequence& a, const Sequence& b) const;
  size_t next_waiting() const;  // index
  int32_t chunk(const Sequence& sequence, int32_t budget, int32_t rows) const;
  void schedule(Sequence& sequence, int32_t num_tokens);
  bool admit(Sequence& sequence, int64_t* outstanding_blocks);
  void preempt_last(int32_t* budget, int32_t* rows);
  bool reserve_blocks(Sequence& sequence, int32_t num_tokens);
  int32_t num_blocks_for(int32_t num_tokens) const {
    return (num_tokens + options_.block_size - 1) / options_.block_size;
  }
  void release_slots(Sequence& sequence);
  void publish_blocks(Sequence& sequence);
  void keep_state(Sequence& sequence);
  void offload_block(int32_t block, const BlockHash& hash, int32_t num_blocks);
  void offload_snapshot(int32_t slot);
  void join_client(Sequence& sequence);

  SchedulerOptions options_;
  PrefixCache cache_;
  BlockPool state_slots_;
  BlockHasher hasher_;
  std::vector<std::unique_ptr<Sequence>> running_;  // by runs_before
  std::vector<std::unique_ptr<Sequence>> waiting_;  // in no order
  std::vector<ScheduledSequence> step_;
  std::vector<SlotCopy> copies_;
  std::vector<PersistRequest> persist_;
  std::vector<Client> clients_;
  mutable std::vector<Sequence*> all_;
  SchedulerCounters counters_;
};

}  // namespace nibble
