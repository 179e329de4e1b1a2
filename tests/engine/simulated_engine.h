// The scheduler and its caches over a fake device, in one thread and from one seed. The device's
// "keys" and "states" are hashes of the tokens that made them, and the next token is a function of
// everything a real one would read: all keys through the block table, and the state. A wrong block,
// a wrong snapshot or a copy between tiers that comes too early or too late changes tokens.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <string>

#include "engine/cache_tiers.h"
#include "engine/scheduler.h"

namespace nibble::test {

inline uint64_t mix(uint64_t a, uint64_t b) {
  uint64_t x = (a + 0x9e3779b97f4a7c15) ^ (b * 0xbf58476d1ce4e5b9);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}
inline constexpr int32_t kVocabulary = 6;  // small, so that prefixes coincide

// The same arithmetic over one sequence and plain vectors.
inline std::vector<int32_t> reference_output(std::vector<int32_t> tokens, int max_tokens,
                                             bool hybrid) {
  std::vector<int32_t> output;
  uint64_t state = 1;
  uint64_t read = 0;
  size_t done = 0;
  for (int i = 0; i < max_tokens; ++i) {
    for (; done < tokens.size(); ++done) {
      state = hybrid ? mix(state, static_cast<uint64_t>(tokens[done])) : 0;
      read = mix(read, mix(mix(done, static_cast<uint64_t>(tokens[done])), state));
    }
    output.push_back(static_cast<int32_t>(mix(read, state) % kVocabulary));
    tokens.push_back(output.back());
  }
  return output;
}

class FakeDevice {
 public:
  explicit FakeDevice(const SchedulerOptions& o)
      : options_(o),
        keys_(slots(o.num_blocks), std::vector<uint64_t>(slots(o.block_size))),
        host_keys_(slots(o.num_host_blocks), std::vector<uint64_t>(slots(o.block_size))),
        states_(slots(o.max_num_seqs)),
        snapshots_(slots(o.num_snapshots)),
        host_states_(slots(o.num_host_snapshots)) {}

  void copy(std::span<const SlotCopy> copies) {
    for (const SlotCopy& c : copies) {
      const auto from = slots(c.from);
      const auto to = slots(c.to);
      switch (c.kind) {
        case SlotCopy::Kind::kStateToSnapshot: snapshots_.at(to) = states_.at(from); break;
        case SlotCopy::Kind::kSnapshotToState: states_.at(to) = snapshots_.at(from); break;
        case SlotCopy::Kind::kBlockToHost: host_keys_.at(to) = keys_.at(from); break;
        case SlotCopy::Kind::kHostToBlock: keys_.at(to) = host_keys_.at(from); break;
        case SlotCopy::Kind::kSnapshotToHost: host_states_.at(to) = snapshots_.at(from); break;
        case SlotCopy::Kind::kHostToState: states_.at(to) = host_states_.at(from); break;
      }
    }
  }
  // The token that each sequence with wants_logits would sample, in order.
  std::vector<int32_t> run(std::span<const ScheduledSequence> step) {
    std::vector<int32_t> sampled;
    for (const ScheduledSequence& scheduled : step) {
      const Sequence& sequence = *scheduled.sequence;
      uint64_t& state = states_.at(slots(sequence.state_slot));
      if (sequence.num_computed == 0) state = 1;
      const int32_t end = sequence.num_computed + scheduled.num_tokens;
      for (int32_t p = sequence.num_computed; p < end; ++p) {
        const auto token = static_cast<uint64_t>(sequence.tokens.at(slots(p)));
        state = options_.hybrid ? mix(state, token) : 0;
        key(sequence, p) = mix(mix(slots(p), token), state);
      }
      if (!scheduled.wants_logits) continue;
      uint64_t read = 0;
      for (int32_t p = 0; p < end; ++p) read = mix(read, key(sequence, p));
      sampled.push_back(static_cast<int32_t>(mix(read, state) % kVocabulary));
    }
    return sampled;
  }

  // What a slot of the cache holds now.
  const std::vector<uint64_t>& keys(int32_t block) const { return keys_.at(slots(block)); }
  const std::vector<uint64_t>& host_keys(int32_t slot) const { return host_keys_.at(slots(slot)); }
  uint64_t snapshot(int32_t slot) const { return snapshots_.at(slots(slot)); }
  uint64_t host_snapshot(int32_t slot) const { return host_states_.at(slots(slot)); }

  // A disk that never forgets.
  void write(const PersistRequest& r) {
    if (r.is_snapshot) {
      disk_states_[r.hash.bytes] = host_states_.at(slots(r.host_slot));
    } else {
      disk_keys_[r.hash.bytes] = host_keys_.at(slots(r.host_slot));
    }
  }
  bool on_disk(bool is_snapshot, const BlockHash& hash) const {
    return is_snapshot ? disk_states_.contains(hash.bytes) : disk_keys_.contains(hash.bytes);
  }
  void read(const DiskLoad& load) {
    if (load.is_snapshot) {
      host_states_.at(slots(load.host_slot)) = disk_states_.at(load.hash.bytes);
    } else {
      host_keys_.at(slots(load.host_slot)) = disk_keys_.at(load.hash.bytes);
    }
  }
  // Memory is gone, files stay.
  void restart_from(const FakeDevice& before) {
    disk_keys_ = before.disk_keys_;
    disk_states_ = before.disk_states_;
  }

 private:
  static size_t slots(int32_t n) { return static_cast<size_t>(n); }
  uint64_t& key(const Sequence& sequence, int32_t p) {
    const int32_t block = sequence.blocks.at(slots(p / options_.block_size));
    return keys_.at(slots(block)).at(slots(p % options_.block_size));
  }
  SchedulerOptions options_;
  std::vector<std::vector<uint64_t>> keys_, host_keys_;
  std::vector<uint64_t> states_, snapshots_, host_states_;
  std::map<std::array<std::byte, 32>, std::vector<uint64_t>> disk_keys_;
  std::map<std::array<std::byte, 32>, uint64_t> disk_states_;
};

struct SimulationTotals {
  int64_t steps = 0, finished = 0, cancelled = 0, preemptions = 0;
  int64_t device_hits = 0, tier_hits = 0, disk_loads = 0, restarts = 0, longest_wait = 0;
  void operator+=(const SimulationTotals& o) {
    steps += o.steps, finished += o.finished, cancelled += o.cancelled;
    preemptions += o.preemptions, device_hits += o.device_hits, tier_hits += o.tier_hits;
    disk_loads += o.disk_loads, restarts += o.restarts;
    longest_wait = std::max(longest_wait, o.longest_wait);
  }
};

// One random schedule.
class Simulation {
 public:
  explicit Simulation(uint64_t seed) : random_(seed) {
    SchedulerOptions& o = options_;
    o.block_size = 1 << pick(0, 4);
    o.max_num_seqs = pick(1, 8);
    o.max_num_batched_tokens = pick(o.max_num_seqs, 64);
    if (chance(4)) o.long_prefill_token_threshold = pick(1, 20);
    o.policy = chance(3) ? SchedulingPolicy::kPriority : SchedulingPolicy::kFcfs;
    max_len_ = pick(4, 120);
    const int longest = (max_len_ + o.block_size - 1) / o.block_size;
    o.num_blocks = longest + pick(0, 3 * longest);
    o.prefix_caching = !chance(8);
    o.hybrid = !chance(3);
    o.num_snapshots = o.hybrid ? pick(0, 12) : 0;
    if (chance(2)) {
      o.num_host_blocks = pick(1, 4 * longest);
      o.num_host_snapshots = o.hybrid ? pick(1, 16) : 0;
      o.persist = chance(2);
    }
    for (auto& family : families_)
      for (int i = 0; i < max_len_; ++i) family.push_back(pick(0, kVocabulary - 1));
    restart();
  }

  // Runs until `num_ticks` have passed and everybody has finished.
  SimulationTotals run(int num_ticks) {
    int idle_limit = 0;
    for (int tick = 0; tick < num_ticks || busy(); ++tick) {
      if (tick < num_ticks && chance(4)) arrive();
      if (chance(24)) cancel();
      if (chance(300) && scheduler_->num_running() == 0) restart();
      serve_disk();
      step();
      if (testing::Test::HasFatalFailure() || testing::Test::HasNonfatalFailure()) break;
      // Priority may starve by design; nothing arrives any more, so this bounds everybody.
      if (tick >= num_ticks && ++idle_limit > 100000) {
        ADD_FAILURE() << "no progress";
        break;
      }
    }
    flush();
    drain_disk();
    scheduler_->check_invariants();
    EXPECT_EQ(scheduler_->kv_usage(), 0.0);
    EXPECT_EQ(scheduler_->state_slots().num_free(), options_.max_num_seqs);
    EXPECT_EQ(scheduler_->cache().host_blocks.pool().num_free(), options_.num_host_blocks);
    EXPECT_EQ(scheduler_->cache().host_snapshots.pool().num_free(), options_.num_host_snapshots);
    count(*scheduler_);
    return totals_;
  }

 private:
  struct Loading {
    std::unique_ptr<Sequence> sequence;
    std::vector<DiskLoad> loads;
  };
  int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  bool chance(int one_in) { return pick(1, one_in) == 1; }
  bool busy() const {
    return scheduler_->num_running() + scheduler_->num_waiting() > 0 || !loading_.empty();
  }
  void count(const Scheduler& scheduler) {
    totals_.preemptions += scheduler.num_preemptions();
    totals_.device_hits += scheduler.counters().device_hits;
    totals_.tier_hits += scheduler.counters().tier_hits;
  }

  // A new process over the same files; only between requests.
  void restart() {
    if (scheduler_ != nullptr) {
      if (busy()) return;
      flush();
      drain_disk();
      count(*scheduler_);
      ++totals_.restarts;
    }
    auto device = std::make_unique<FakeDevice>(options_);
    if (device_ != nullptr) device->restart_from(*device_);
    device_ = std::move(device);
    scheduler_ = std::make_unique<Scheduler>(options_);
  }

  void arrive() {
    auto sequence = std::make_unique<Sequence>();
    std::vector<int32_t>& prompt = sequence->request.prompt;
    if (!history_.empty() && chance(2)) {  // the next turn of a conversation
      prompt = history_[static_cast<size_t>(pick(0, static_cast<int>(history_.size()) - 1))];
      if (chance(3)) prompt.resize(static_cast<size_t>(pick(1, static_cast<int>(prompt.size()))));
    } else {
      const auto& family = families_[static_cast<size_t>(pick(0, 2))];
      prompt.assign(family.begin(), family.begin() + pick(1, max_len_ - 1));
    }
    for (int i = pick(0, 6); i > 0; --i) prompt.push_back(pick(0, kVocabulary - 1));
    if (static_cast<int>(prompt.size()) >= max_len_)
      prompt.resize(static_cast<size_t>(max_len_ - 1));
    sequence->request.max_tokens = pick(1, max_len_ - static_cast<int>(prompt.size()));
    sequence->request.priority = pick(0, 2);
    sequence->request.client = std::string(1, static_cast<char>('a' + pick(0, 2)));
    sequence->request.cache_salt = chance(6) ? "other" : "";
    if (chance(10)) sequence->request.sampling.num_prompt_logprobs = 1;
    sequence->channel = std::make_shared<RequestChannel>();
    sequence->tokens = prompt;
    sequence->arrival = arrivals_++;
    sequence->root = hasher_.root(sequence->request.cache_salt);
    const auto size = static_cast<size_t>(options_.block_size);
    for (size_t i = 0; (i + 1) * size <= prompt.size(); ++i)
      sequence->hashes.push_back(
          hasher_.next(i == 0 ? sequence->root : sequence->hashes.back(),
                       std::span<const int32_t>(prompt).subspan(i * size, size)));
    int32_t kept = 0;  // by looking at each block, where the cache bisects
    while (kept < static_cast<int32_t>(sequence->hashes.size()) &&
           scheduler_->cache().blocks.find(sequence->hashes[static_cast<size_t>(kept)]) >= 0)
      ++kept;
    EXPECT_EQ(scheduler_->cache().match_device_blocks(sequence->hashes), kept);
    if (options_.persist && options_.prefix_caching) {
      flush();  // a slot may be overwritten only after the copies that read it
      const size_t most = (prompt.size() - 1) / size;
      std::vector<DiskLoad> loads =
          plan_disk_loads(scheduler_->cache(),
                          std::span<const BlockHash>(sequence->hashes)
                              .first(std::min(most, sequence->hashes.size())),
                          [&](bool is_snapshot, const BlockHash& hash) {
                            return device_->on_disk(is_snapshot, hash);
                          });
      if (!loads.empty()) {
        totals_.disk_loads += static_cast<int64_t>(loads.size());
        loading_.push_back({std::move(sequence), std::move(loads)});
        return;
      }
    }
    scheduler_->add(std::move(sequence));
  }

  void cancel() {
    const std::vector<Sequence*>& all = scheduler_->sequences();
    if (all.empty()) return;
    const auto owned =
        scheduler_->remove(all[static_cast<size_t>(pick(0, static_cast<int>(all.size()) - 1))]);
    num_waited_.erase(owned.get());
    ++totals_.cancelled;
  }

  void flush() {
    device_->copy(scheduler_->copies());
    scheduler_->clear_copies();
    for (const PersistRequest& request : scheduler_->persist_requests())
      writing_.push_back(request);
    scheduler_->persist_requests().clear();
  }
  // Some of the reads and writes complete.
  void serve_disk() {
    while (!writing_.empty() && chance(2)) write_one();
    while (!loading_.empty() && chance(2)) load_one();
  }
  void drain_disk() {
    while (!writing_.empty()) write_one();
    while (!loading_.empty()) load_one();
  }
  void write_one() {
    if (!chance(10)) device_->write(writing_.back());  // or the disk was full
    scheduler_->persisted(writing_.back());
    writing_.pop_back();
  }
  void load_one() {
    for (DiskLoad& load : loading_.back().loads) {
      load.done = !chance(20);  // or the file was corrupt
      if (load.done) device_->read(load);
    }
    finish_disk_loads(scheduler_->cache(), loading_.back().loads);
    scheduler_->add(std::move(loading_.back().sequence));
    loading_.pop_back();
  }

  void step() {
    const std::vector<ScheduledSequence>& step = scheduler_->plan();
    check(step);
    flush();
    check_kept();
    if (testing::Test::HasFatalFailure()) return;
    const std::vector<int32_t> tokens = device_->run(step);
    std::vector<Sequence*> sampling;
    for (const ScheduledSequence& scheduled : step)
      if (scheduled.wants_logits) sampling.push_back(scheduled.sequence);
    scheduler_->commit();
    for (const Sequence* sequence : scheduler_->sequences()) learn(*sequence);
    ++totals_.steps;
    for (size_t i = 0; i < sampling.size(); ++i) {
      Sequence& sequence = *sampling[i];
      sequence.tokens.push_back(tokens[i]);
      if (sequence.num_generated() < sequence.request.max_tokens) continue;
      const auto owned = scheduler_->remove(&sequence);
      num_waited_.erase(owned.get());
      ++totals_.finished;
      const std::vector<int32_t> output(owned->tokens.begin() + owned->num_prompt(),
                                        owned->tokens.end());
      ASSERT_EQ(output, reference_output(owned->request.prompt, owned->request.max_tokens,
                                         options_.hybrid));
      history_.push_back(owned->tokens);
      if (history_.size() > 8) history_.erase(history_.begin());
    }
    scheduler_->check_invariants();
  }

  // What belongs under each name that `sequence` has: by the plain arithmetic, from its tokens.
  void learn(const Sequence& sequence) {
    const auto known = [&](size_t i) { return contents_.contains(sequence.hashes[i].bytes); };
    if (sequence.hashes.empty() || known(sequence.hashes.size() - 1)) return;
    const auto size = static_cast<size_t>(options_.block_size);
    Content content{.state = 1, .keys = std::vector<uint64_t>(size)};
    for (size_t p = 0; p < sequence.hashes.size() * size; ++p) {
      const auto token = static_cast<uint64_t>(sequence.tokens[p]);
      content.state = options_.hybrid ? mix(content.state, token) : 0;
      content.keys[p % size] = mix(mix(p, token), content.state);
      if (p % size == size - 1) contents_[sequence.hashes[p / size].bytes] = content;
    }
  }

  // Every kept block and snapshot, in both memories, holds what its name says.
  void check_kept() const {
    const PrefixCache& cache = scheduler_->cache();
    const auto each = [](const SlotCache& slots, const auto& holds) {
      for (int32_t slot = 0; slot < slots.pool().size(); ++slot) {
        if (!slots.published(slot)) continue;
        ASSERT_TRUE(holds(slot, slots.hash(slot))) << "slot " << slot << " of another prefix";
      }
    };
    const auto content = [&](const BlockHash& hash) -> const Content& {
      return contents_.at(hash.bytes);
    };
    each(cache.snapshots, [&](int32_t slot, const BlockHash& hash) {
      return device_->snapshot(slot) == content(hash).state;
    });
    each(cache.host_snapshots, [&](int32_t slot, const BlockHash& hash) {
      return device_->host_snapshot(slot) == content(hash).state;
    });
    if (totals_.steps % 8 != 0) return;  // the long lists
    each(cache.blocks, [&](int32_t block, const BlockHash& hash) {
      return device_->keys(block) == content(hash).keys;
    });
    each(cache.host_blocks, [&](int32_t slot, const BlockHash& hash) {
      return device_->host_keys(slot) == content(hash).keys;
    });
  }

  // The first of the order makes progress in every step, and by arrival nobody waits for ever.
  void check_progress(const std::vector<ScheduledSequence>& step) {
    const Sequence* first = nullptr;
    for (const Sequence* sequence : scheduler_->sequences()) {
      const bool runs = sequence->state_slot >= 0;
      const auto before = [&](const Sequence& other) {
        return options_.policy == SchedulingPolicy::kPriority
                   ? std::tie(sequence->request.priority, sequence->arrival) <
                         std::tie(other.request.priority, other.arrival)
                   : sequence->arrival < other.arrival;
      };
      if (runs && (first == nullptr || before(*first))) first = sequence;
      if (runs || options_.policy == SchedulingPolicy::kPriority) continue;
      const int64_t waited = ++num_waited_[sequence];
      totals_.longest_wait = std::max(totals_.longest_wait, waited);
      // As if everybody before it ran alone, one token a step; three clients take turns.
      ASSERT_LE(waited, int64_t{3} * max_len_ * (scheduler_->num_running() + 64))
          << "a sequence starves";
    }
    if (first == nullptr) return;
    for (const ScheduledSequence& scheduled : step)
      if (scheduled.sequence == first) return;
    FAIL() << "the first running sequence does not run";
  }

  void check(const std::vector<ScheduledSequence>& step) {
    check_progress(step);
    ASSERT_TRUE(!step.empty() || scheduler_->num_running() + scheduler_->num_waiting() == 0)
        << "work waits and nothing runs";
    int32_t num_tokens = 0;
    int32_t rows = 0;
    std::set<int32_t> slots, written;
    for (const ScheduledSequence& s : step) {
      num_tokens += s.num_tokens;
      rows += s.num_logit_rows();
      ASSERT_GT(s.num_tokens, 0);
      ASSERT_LE(s.num_tokens, s.sequence->num_pending());
      ASSERT_EQ(s.wants_logits, s.num_tokens == s.sequence->num_pending());
      ASSERT_TRUE(slots.insert(s.sequence->state_slot).second) << "state slot shared";
      // Blocks that this step writes belong to one sequence and have no name yet.
      const int32_t end = s.sequence->num_computed + s.num_tokens;
      for (int32_t i = s.sequence->num_computed / options_.block_size;
           i <= (end - 1) / options_.block_size; ++i) {
        const int32_t block = s.sequence->blocks.at(static_cast<size_t>(i));
        ASSERT_TRUE(written.insert(block).second) << "two sequences write one block";
        ASSERT_FALSE(scheduler_->cache().blocks.published(block)) << "a shared block is written";
      }
    }
    ASSERT_LE(num_tokens, options_.max_num_batched_tokens);
    ASSERT_LE(rows, options_.max_num_seqs);
    ASSERT_LE(scheduler_->num_running(), options_.max_num_seqs);
  }

  std::mt19937_64 random_;
  SchedulerOptions options_;
  int max_len_ = 0;
  std::array<std::vector<int32_t>, 3> families_;
  std::vector<std::vector<int32_t>> history_;
  std::unique_ptr<FakeDevice> device_;
  std::unique_ptr<Scheduler> scheduler_;
  BlockHasher hasher_;
  int64_t arrivals_ = 0;
  std::vector<Loading> loading_;
  std::vector<PersistRequest> writing_;
  struct Content {
    uint64_t state = 0;  // after the block
    std::vector<uint64_t> keys;
  };
  std::map<std::array<std::byte, 32>, Content> contents_;
  std::map<const Sequence*, int64_t> num_waited_;  // steps
  SimulationTotals totals_;
};

}  // namespace nibble::test
