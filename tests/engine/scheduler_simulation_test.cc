// Random arrivals, cancellations and finishes against a fake device that only checks what it is
// given: slots never collide, accounting returns to zero, everybody finishes.
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>
#include <set>

#include "engine/scheduler.h"

namespace nibble {
namespace {

uint64_t base_seed() {
  const char* text = std::getenv("NIBBLE_TEST_SEED");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : 20261124;
}

std::unique_ptr<Sequence> make_sequence(int prompt, int max_tokens, int64_t arrival) {
  auto sequence = std::make_unique<Sequence>();
  sequence->channel = std::make_shared<RequestChannel>();
  sequence->request.prompt.assign(static_cast<size_t>(prompt), 1);
  sequence->request.max_tokens = max_tokens;
  sequence->tokens = sequence->request.prompt;
  sequence->arrival = arrival;
  return sequence;
}

// What must be true of every planned step.
void check_step(const Scheduler& scheduler, const SchedulerOptions& options,
                const std::vector<ScheduledSequence>& step) {
  int32_t tokens = 0;
  std::set<int32_t> blocks;
  std::set<int32_t> slots;
  std::set<const Sequence*> seen;
  for (const ScheduledSequence& scheduled : step) {
    const Sequence& sequence = *scheduled.sequence;
    tokens += scheduled.num_tokens;
    ASSERT_GT(scheduled.num_tokens, 0);
    ASSERT_LE(scheduled.num_tokens, sequence.num_pending());
    ASSERT_EQ(scheduled.wants_logits, scheduled.num_tokens == sequence.num_pending());
    ASSERT_TRUE(seen.insert(&sequence).second) << "scheduled twice";
    ASSERT_TRUE(slots.insert(sequence.state_slot).second) << "state slot shared";
    for (const int32_t block : sequence.blocks)
      ASSERT_TRUE(blocks.insert(block).second) << "block shared";
    ASSERT_GE(static_cast<int64_t>(sequence.blocks.size()) * options.block_size,
              sequence.num_computed + scheduled.num_tokens);
  }
  ASSERT_LE(tokens, options.max_num_batched_tokens);
  ASSERT_LE(scheduler.num_running(), options.max_num_seqs);
  int32_t held = 0;
  int32_t states = 0;
  for (const Sequence* sequence : scheduler.sequences()) {
    held += static_cast<int32_t>(sequence->blocks.size());
    states += sequence->state_slot >= 0;
  }
  ASSERT_EQ(held + scheduler.blocks().num_free(), scheduler.blocks().size());
  ASSERT_EQ(states + scheduler.state_slots().num_free(), scheduler.state_slots().size());
}

TEST(SchedulerSimulation, RandomTrafficNeverBreaksTheAccountingAndEverybodyFinishes) {
  for (uint64_t round = 0; round < 300; ++round) {
    const uint64_t seed = base_seed() + round;
    SCOPED_TRACE("NIBBLE_TEST_SEED=" + std::to_string(seed));
    std::mt19937_64 random(seed);
    const auto pick = [&](int low, int high) {
      return std::uniform_int_distribution<int>(low, high)(random);
    };
    SchedulerOptions options;
    options.block_size = 1 << pick(0, 4);
    options.max_num_seqs = pick(1, 8);
    options.max_num_batched_tokens = pick(options.max_num_seqs, 64);
    const int max_len = pick(4, 80);
    const int longest = (max_len + options.block_size - 1) / options.block_size;
    options.num_blocks = longest + pick(0, 2 * longest);
    Scheduler scheduler(options);
    int64_t arrivals = 0;
    int64_t finished = 0;
    for (int tick = 0; tick < 400 || scheduler.num_running() + scheduler.num_waiting() > 0;
         ++tick) {
      ASSERT_LT(tick, 200000) << "no progress";
      if (tick < 200 && pick(0, 3) == 0) {
        const int prompt = pick(1, max_len - 1);
        scheduler.add(make_sequence(prompt, pick(1, max_len - prompt), arrivals++));
      }
      if (pick(0, 20) == 0) {
        const std::vector<Sequence*> all = scheduler.sequences();
        if (!all.empty()) {
          scheduler.remove(all[static_cast<size_t>(pick(0, static_cast<int>(all.size()) - 1))]);
          ++finished;
        }
      }
      const std::vector<ScheduledSequence>& step = scheduler.plan();
      ASSERT_NO_FATAL_FAILURE(check_step(scheduler, options, step));
      ASSERT_TRUE(!step.empty() || scheduler.num_running() + scheduler.num_waiting() == 0)
          << "work waits and nothing runs";
      std::vector<Sequence*> sampled;
      for (const ScheduledSequence& scheduled : step)
        if (scheduled.wants_logits) sampled.push_back(scheduled.sequence);
      scheduler.commit();
      for (Sequence* sequence : sampled) {
        sequence->tokens.push_back(7);
        if (sequence->num_generated() < sequence->request.max_tokens) continue;
        scheduler.remove(sequence);
        ++finished;
      }
    }
    EXPECT_EQ(finished, arrivals);
    EXPECT_EQ(scheduler.blocks().num_free(), options.num_blocks);
    EXPECT_EQ(scheduler.state_slots().num_free(), options.max_num_seqs);
    EXPECT_EQ(scheduler.kv_usage(), 0.0);
  }
}

TEST(Scheduler, TheOldestRunningSequenceIsNeverPreempted) {
  SchedulerOptions options{
      .num_blocks = 4, .block_size = 1, .max_num_seqs = 2, .max_num_batched_tokens = 8};
  Scheduler scheduler(options);
  scheduler.add(make_sequence(1, 3, 0));
  scheduler.add(make_sequence(1, 3, 1));
  std::vector<int64_t> order;
  while (scheduler.num_running() + scheduler.num_waiting() > 0) {
    std::vector<Sequence*> sampled;
    for (const ScheduledSequence& scheduled : scheduler.plan())
      if (scheduled.wants_logits) sampled.push_back(scheduled.sequence);
    scheduler.commit();
    for (Sequence* sequence : sampled) {
      sequence->tokens.push_back(7);
      if (sequence->num_generated() < 3) continue;
      order.push_back(sequence->arrival);
      scheduler.remove(sequence);
    }
  }
  EXPECT_EQ(order, (std::vector<int64_t>{0, 1}));
  EXPECT_GT(scheduler.num_preemptions(), 0);
}

TEST(BlockPoolDeathTest, ReleasingTwiceAborts) {
  BlockPool pool(2);
  const int32_t slot = pool.take();
  pool.release(slot);
  EXPECT_DEATH(pool.release(slot), "released too often");
}

}  // namespace
}  // namespace nibble
