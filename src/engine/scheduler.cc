// The scheduling policy in one place.
#include "engine/scheduler.h"

#include <algorithm>
#include <limits>
#include <tuple>

#include "engine/snapshot_policy.h"

namespace nibble {

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options),
      cache_({.num_blocks = options.num_blocks,
              .num_snapshots = options.num_snapshots,
              .num_host_blocks = options.num_host_blocks,
              .num_host_snapshots = options.num_host_snapshots,
              .hybrid = options.hybrid}),
      state_slots_(options.max_num_seqs) {
  const auto seqs = static_cast<size_t>(options.max_num_seqs);
  const auto blocks = static_cast<size_t>(options.num_blocks);
  step_.reserve(seqs);
  running_.reserve(seqs + 1);
  waiting_.reserve(seqs + 1024);
  all_.reserve(2 * seqs + 1024);
  copies_.reserve(2 * blocks + 4 * seqs);
  persist_.reserve(blocks + seqs);
}

void Scheduler::add(std::unique_ptr<Sequence> sequence) {
  join_client(*sequence);
  waiting_.push_back(std::move(sequence));
}

const std::vector<ScheduledSequence>& Scheduler::plan() {
  for (const ScheduledSequence& scheduled : step_) scheduled.sequence->step_index = -1;
  step_.clear();
  int32_t budget = options_.max_num_batched_tokens;
  int32_t rows = options_.max_num_seqs;  // of logits
  const int64_t preemptions_before = counters_.num_preemptions;

  // Running sequences: those with one token to go first, so that a long prompt delays nobody.
  // Preempting shortens running_ from its end, so an index stays valid as long as it is checked
  // again; it may take back the tokens of a sequence that was given some.
  for (const bool decoding : {true, false}) {
    for (size_t i = 0; i < running_.size() && budget > 0; ++i) {
      Sequence& sequence = *running_[i];
      if ((sequence.num_pending() == 1) != decoding) continue;
      const int32_t others = num_running() - static_cast<int32_t>(step_.size()) - 1;
      const int32_t num_tokens = chunk(sequence, budget, rows - others);
      if (num_tokens == 0) continue;
      bool reserved = reserve_blocks(sequence, num_tokens);
      while (!reserved && running_.size() > i + 1) {
        preempt_last(&budget, &rows);
        reserved = reserve_blocks(sequence, num_tokens);
      }
      if (!reserved) {
        // Only possible for the last: it waits until others have finished.
        preempt_last(&budget, &rows);
        break;
      }
      schedule(sequence, num_tokens);
      budget -= num_tokens;
      rows -= std::max(1, step_.back().num_logit_rows());
    }
  }

  // No admission in a step that preempted: the newcomer would take the blocks just freed and be
  // thrown out again in the next step.
  if (counters_.num_preemptions != preemptions_before || waiting_.empty()) return step_;
  // Blocks that running sequences will still take for the tokens they have: not for newcomers.
  int64_t outstanding = 0;
  for (const auto& sequence : running_)
    outstanding += num_blocks_for(static_cast<int32_t>(sequence->tokens.size())) -
                   static_cast<int64_t>(sequence->blocks.size());
  while (!waiting_.empty() && budget > 0 && rows > 0 && num_running() < options_.max_num_seqs) {
    const size_t index = next_waiting();
    Sequence& sequence = *waiting_[index];
    if (!admit(sequence, &outstanding)) break;
    const int32_t num_tokens = chunk(sequence, budget, rows);
    NB_CHECK(num_tokens > 0 && reserve_blocks(sequence, num_tokens),
             "admitted %d tokens without room", num_tokens);
    std::unique_ptr<Sequence> owned = std::move(waiting_[index]);
    waiting_[index] = std::move(waiting_.back());
    waiting_.pop_back();
    const auto place = std::ranges::find_if(
        running_, [&](const auto& other) { return runs_before(*owned, *other); });
    running_.insert(place, std::move(owned));
    schedule(sequence, num_tokens);
    budget -= num_tokens;
    rows -= std::max(1, step_.back().num_logit_rows());
  }
  return step_;
}

// Tokens of `sequence` for this step.
int32_t Scheduler::chunk(const Sequence& sequence, int32_t budget, int32_t rows) const {
  int32_t num_tokens = std::min(sequence.num_pending(), budget);
  if (options_.long_prefill_token_threshold > 0)
    num_tokens = std::min(num_tokens, options_.long_prefill_token_threshold);
  if (sequence.wants_prompt_logprobs()) num_tokens = std::min(num_tokens, std::max(rows, 1));
  if (options_.prefix_caching && options_.hybrid) {
    const int32_t end = sequence.num_computed + num_tokens;
    num_tokens = next_cut(sequence, options_.block_size, end) - sequence.num_computed;
  }
  return num_tokens;
}

void Scheduler::schedule(Sequence& sequence, int32_t num_tokens) {
  sequence.step_index = static_cast<int32_t>(step_.size());
  step_.push_back({&sequence, num_tokens, num_tokens == sequence.num_pending(),
                   sequence.wants_prompt_logprobs()});
}

// Takes what the sequence needs to start, from the cache where it can; false, and nothing taken,
// when there is no room for all of its tokens.
//
//   blocks   | on the device | in host memory | still to compute  |
//            shared          | loaded         ^ num_computed      ^ tokens.size()
bool Scheduler::admit(Sequence& sequence, int64_t* outstanding) {
  const auto num_tokens = static_cast<int32_t>(sequence.tokens.size());
  PrefixMatch match;
  const bool reads_cache = options_.prefix_caching && !sequence.wants_prompt_logprobs();
  if (reads_cache) {
    // At least one token must run, for its logits.
    const size_t most = static_cast<size_t>((num_tokens - 1) / options_.block_size);
    match = cache_.match(
        std::span<const BlockHash>(sequence.hashes).first(std::min(most, sequence.hashes.size())));
  }
  SlotCache& blocks = cache_.blocks;
  const int32_t needed = num_blocks_for(num_tokens) - match.num_device_blocks;
  // Sharing takes blocks that were free, so this can only get worse: the cheap check first.
  const auto has_room = [&] { return blocks.pool().num_free() - *outstanding >= needed; };
  if (!running_.empty() && !has_room()) return false;
  for (int32_t i = 0; i < match.num_device_blocks; ++i) {
    const int32_t block = blocks.find(sequence.hashes[static_cast<size_t>(i)]);
    blocks.share(block);
    sequence.blocks.push_back(block);
  }
  if (!running_.empty() && !has_room()) {
    release_slots(sequence);
    return false;
  }
  sequence.state_slot = state_slots_.take();
  NB_CHECK(sequence.state_slot >= 0, "no state slot for %d running sequences", num_running());

  for (int32_t i = match.num_device_blocks; i < match.num_blocks; ++i) {
    const BlockHash& hash = sequence.hashes[static_cast<size_t>(i)];
    const int32_t host = cache_.host_blocks.find(hash);
    const int32_t block = blocks.take();
    NB_CHECK(host >= 0 && block >= 0, "block %d of a match is gone", i);
    copies_.push_back({SlotCopy::Kind::kHostToBlock, host, block});
    cache_.host_blocks.touch(host);
    blocks.publish(block, hash);
    sequence.blocks.push_back(block);
  }
  if (match.snapshot >= 0) {
    copies_.push_back({SlotCopy::Kind::kSnapshotToState, match.snapshot, sequence.state_slot});
    cache_.snapshots.touch(match.snapshot);
  } else if (match.host_snapshot >= 0) {
    copies_.push_back({SlotCopy::Kind::kHostToState, match.host_snapshot, sequence.state_slot});
    cache_.host_snapshots.touch(match.host_snapshot);
  }
  sequence.num_published = match.num_blocks;
  sequence.num_computed = match.num_blocks * options_.block_size;
  sequence.last_snapshot = sequence.num_computed;
  sequence.branch =
      match.num_kept_blocks > match.num_blocks ? match.num_kept_blocks * options_.block_size : 0;
  *outstanding += num_blocks_for(num_tokens) - static_cast<int64_t>(sequence.blocks.size());

  if (!sequence.admitted) {
    sequence.admitted = true;
    const int32_t on_device = match.num_device_blocks * options_.block_size;
    sequence.num_from_device = on_device;
    sequence.num_from_tiers = sequence.num_computed - on_device;
    if (reads_cache) {
      counters_.device_queries += num_tokens;
      counters_.device_hits += on_device;
      if (options_.num_host_blocks > 0) counters_.tier_queries += num_tokens - on_device;
      counters_.tier_hits += sequence.num_from_tiers;
    }
    clients_[static_cast<size_t>(sequence.client)].tokens_served += sequence.num_pending();
  }
  return true;
}

void Scheduler::commit() {
  for (const ScheduledSequence& scheduled : step_) {
    Sequence& sequence = *scheduled.sequence;
    sequence.step_index = -1;
    sequence.num_computed += scheduled.num_tokens;
    if (scheduled.wants_logits) ++clients_[static_cast<size_t>(sequence.client)].tokens_served;
    if (!options_.prefix_caching) continue;
    publish_blocks(sequence);
    if (options_.hybrid && options_.num_snapshots > 0) keep_state(sequence);
  }
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
    *waiting = std::move(waiting_.back());
    waiting_.pop_back();
  }
  NB_CHECK(owned != nullptr, "removing a sequence the scheduler does not hold");
  NB_CHECK(owned->step_index < 0, "removing a sequence of a step that has not been committed");
  release_slots(*owned);
  --clients_[static_cast<size_t>(owned->client)].num_sequences;
  return owned;
}

const std::vector<Sequence*>& Scheduler::sequences() const {
  all_.clear();
  for (const auto& sequence : running_) all_.push_back(sequence.get());
  for (const auto& sequence : waiting_) all_.push_back(sequence.get());
  return all_;
}

double Scheduler::kv_usage() const {
  const BlockPool& pool = blocks();
  return pool.size() == 0 ? 0.0 : 1.0 - static_cast<double>(pool.num_free()) / pool.size();
}

void Scheduler::persisted(const PersistRequest& request) {
  (request.is_snapshot ? cache_.host_snapshots : cache_.host_blocks).release(request.host_slot);
}

// --- order ------------------------------------------------------------------------------------

bool Scheduler::runs_before(const Sequence& a, const Sequence& b) const {
  if (options_.policy == SchedulingPolicy::kPriority)
    return std::tie(a.request.priority, a.arrival) < std::tie(b.request.priority, b.arrival);
  return a.arrival < b.arrival;
}

// Preempted sequences come first: they were admitted once. Then, by priority, or of the client
// that was served least the oldest.
size_t Scheduler::next_waiting() const {
  const auto comes_before = [&](const Sequence& a, const Sequence& b) {
    if (options_.policy == SchedulingPolicy::kFcfs) {
      if (a.admitted != b.admitted) return a.admitted;
      const int64_t served_a = clients_[static_cast<size_t>(a.client)].tokens_served;
      const int64_t served_b = clients_[static_cast<size_t>(b.client)].tokens_served;
      if (!a.admitted && a.client != b.client && served_a != served_b) return served_a < served_b;
    }
    return runs_before(a, b);
  };
  size_t best = 0;
  for (size_t i = 1; i < waiting_.size(); ++i)
    if (comes_before(*waiting_[i], *waiting_[best])) best = i;
  return best;
}

// A client that comes (back) starts level with the least served one that is here: it can neither
// save up while away nor be made to pay for a time when nobody else wanted anything.
void Scheduler::join_client(Sequence& sequence) {
  int32_t found = -1;
  int32_t unused = -1;
  int64_t level = std::numeric_limits<int64_t>::max();
  for (size_t i = 0; i < clients_.size(); ++i) {
    const Client& client = clients_[i];
    if (client.num_sequences == 0) {
      unused = static_cast<int32_t>(i);
      continue;
    }
    level = std::min(level, client.tokens_served);
    if (client.name == sequence.request.client) found = static_cast<int32_t>(i);
  }
  if (found < 0) {
    if (unused < 0) {
      unused = static_cast<int32_t>(clients_.size());
      clients_.emplace_back();
    }
    found = unused;
    clients_[static_cast<size_t>(found)] = {
        sequence.request.client, 0, level == std::numeric_limits<int64_t>::max() ? 0 : level};
  }
  ++clients_[static_cast<size_t>(found)].num_sequences;
  sequence.client = found;
}

// --- slots ------------------------------------------------------------------------------------

bool Scheduler::reserve_blocks(Sequence& sequence, int32_t num_tokens) {
  const int32_t wanted = num_blocks_for(sequence.num_computed + num_tokens);
  while (static_cast<int32_t>(sequence.blocks.size()) < wanted) {
    const int32_t block = cache_.blocks.take();
    if (block < 0) return false;
    sequence.blocks.push_back(block);
  }
  return true;
}

// Last block first: the end of a prefix is forgotten before its beginning.
void Scheduler::release_slots(Sequence& sequence) {
  if (sequence.rolling_snapshot >= 0) {
    const int32_t slot = sequence.rolling_snapshot;
    if (cache_.snapshots.published(slot) && cache_.snapshots.hash(slot) == sequence.rolling_hash)
      offload_snapshot(slot);
    sequence.rolling_snapshot = -1;
  }
  for (size_t i = sequence.blocks.size(); i-- > 0;) cache_.blocks.release(sequence.blocks[i]);
  sequence.blocks.clear();
  if (sequence.state_slot >= 0) state_slots_.release(sequence.state_slot);
  sequence.state_slot = -1;
  sequence.num_computed = 0;
  sequence.num_published = 0;
}

void Scheduler::preempt_last(int32_t* budget, int32_t* rows) {
  std::unique_ptr<Sequence> sequence = std::move(running_.back());
  running_.pop_back();
  if (sequence->step_index >= 0) {
    const auto index = static_cast<size_t>(sequence->step_index);
    *budget += step_[index].num_tokens;
    *rows += std::max(1, step_[index].num_logit_rows());
    step_.erase(step_.begin() + static_cast<ptrdiff_t>(index));
    for (size_t i = index; i < step_.size(); ++i)
      step_[i].sequence->step_index = static_cast<int32_t>(i);
    sequence->step_index = -1;
  }
  release_slots(*sequence);
  ++counters_.num_preemptions;
  ++sequence->num_preemptions;
  waiting_.push_back(std::move(sequence));
}

// --- keeping ----------------------------------------------------------------------------------

// Names the blocks that are full now. A block that someone else has named meanwhile is swapped for
// theirs: one name is one block, which is what makes presence along a prefix monotone.
void Scheduler::publish_blocks(Sequence& sequence) {
  const int32_t size = options_.block_size;
  SlotCache& blocks = cache_.blocks;
  for (int32_t& i = sequence.num_published; i < sequence.num_computed / size; ++i) {
    const auto index = static_cast<size_t>(i);
    if (index == sequence.hashes.size()) {
      const std::span<const int32_t> tokens(sequence.tokens);
      sequence.hashes.push_back(hasher_.next(
          i == 0 ? sequence.root : sequence.hashes.back(),
          tokens.subspan(index * static_cast<size_t>(size), static_cast<size_t>(size))));
    }
    const BlockHash& hash = sequence.hashes[index];
    const int32_t known = blocks.find(hash);
    if (known >= 0) {
      blocks.share(known);
      blocks.release(sequence.blocks[index]);
      sequence.blocks[index] = known;
      continue;
    }
    blocks.publish(sequence.blocks[index], hash);
    offload_block(sequence.blocks[index], hash, i + 1);
  }
}

void Scheduler::keep_state(Sequence& sequence) {
  const SnapshotKind kind = snapshot_kind(sequence, options_.block_size);
  if (kind == SnapshotKind::kNone) return;
  SlotCache& snapshots = cache_.snapshots;
  const int32_t num_blocks = sequence.num_computed / options_.block_size;
  const BlockHash& hash = sequence.hashes[static_cast<size_t>(num_blocks) - 1];
  sequence.last_snapshot = sequence.num_computed;
  if (const int32_t known = snapshots.find(hash); known >= 0) {
    snapshots.touch(known);
    return;
  }
  // The rolling slot moves along, if nobody has taken it for something else.
  int32_t slot = sequence.rolling_snapshot;
  if (kind == SnapshotKind::kRolling && slot >= 0 && snapshots.published(slot) &&
      snapshots.hash(slot) == sequence.rolling_hash) {
    snapshots.forget(slot);
    snapshots.share(slot);
  } else {
    slot = snapshots.take();
  }
  if (slot < 0) return;
  cache_.publish_snapshot(slot, hash, num_blocks);
  snapshots.release(slot);
  copies_.push_back({SlotCopy::Kind::kStateToSnapshot, sequence.state_slot, slot});
  if (kind == SnapshotKind::kRolling) {
    sequence.rolling_snapshot = slot;
    sequence.rolling_hash = hash;
  } else if (kind == SnapshotKind::kCut) {
    offload_snapshot(slot);
  }
}

void Scheduler::offload_block(int32_t block, const BlockHash& hash, int32_t num_blocks) {
  SlotCache& host = cache_.host_blocks;
  if (host.pool().size() == 0 || host.find(hash) >= 0) return;
  const int32_t slot = host.take();
  if (slot < 0) return;  // all are being written to disk
  host.publish(slot, hash);
  copies_.push_back({SlotCopy::Kind::kBlockToHost, block, slot});
  if (options_.persist) {
    persist_.push_back({false, slot, hash, num_blocks});
  } else {
    host.release(slot);
  }
}

void Scheduler::offload_snapshot(int32_t slot) {
  SlotCache& host = cache_.host_snapshots;
  const BlockHash& hash = cache_.snapshots.hash(slot);
  if (host.pool().size() == 0 || host.find(hash) >= 0) return;
  const int32_t host_slot = host.take();
  if (host_slot < 0) return;
  const int32_t num_blocks = cache_.snapshot_position(slot);
  cache_.publish_host_snapshot(host_slot, hash, num_blocks);
  copies_.push_back({SlotCopy::Kind::kSnapshotToHost, slot, host_slot});
  if (options_.persist) {
    persist_.push_back({true, host_slot, hash, num_blocks});
  } else {
    host.release(host_slot);
  }
}

// --- tests ------------------------------------------------------------------------------------

void Scheduler::check_invariants() const {
  const BlockPool& pool = blocks();
  std::vector<int32_t> held(static_cast<size_t>(pool.size()), 0);
  int32_t num_states = 0;
  for (const Sequence* sequence : sequences()) {
    for (const int32_t block : sequence->blocks) ++held[static_cast<size_t>(block)];
    num_states += sequence->state_slot >= 0;
    for (int32_t i = 0; i < sequence->num_published; ++i) {
      const auto index = static_cast<size_t>(i);
      NB_CHECK(cache_.blocks.find(sequence->hashes[index]) == sequence->blocks[index],
               "block %d of a running sequence is not the one of its name", i);
    }
  }
  int32_t num_free = 0;
  for (int32_t block = 0; block < pool.size(); ++block) {
    NB_CHECK(pool.references(block) == held[static_cast<size_t>(block)],
             "block %d has %d references and %d holders", block, pool.references(block),
             held[static_cast<size_t>(block)]);
    num_free += held[static_cast<size_t>(block)] == 0;
  }
  NB_CHECK(num_free == pool.num_free(), "%d free blocks, %d counted", pool.num_free(), num_free);
  NB_CHECK(num_states + state_slots_.num_free() == state_slots_.size(), "state slots leak");
  NB_CHECK(num_states == num_running(), "%d states of %d running", num_states, num_running());
  NB_CHECK(cache_.snapshots.pool().num_free() == cache_.snapshots.pool().size(),
           "a snapshot is held");
}

}  // namespace nibble
