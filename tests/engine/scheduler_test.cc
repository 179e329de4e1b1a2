// The scheduler's rules, one by one, and the pool it takes slots from.
#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include "engine/snapshot_policy.h"

namespace nibble {
namespace {

std::unique_ptr<Sequence> make_sequence(int prompt, int max_tokens, int64_t arrival,
                                        std::string client = "", int priority = 0) {
  auto sequence = std::make_unique<Sequence>();
  sequence->channel = std::make_shared<RequestChannel>();
  sequence->request.prompt.assign(static_cast<size_t>(prompt), 1);
  sequence->request.max_tokens = max_tokens;
  sequence->request.client = std::move(client);
  sequence->request.priority = priority;
  sequence->tokens = sequence->request.prompt;
  sequence->arrival = arrival;
  return sequence;
}

// Runs until nobody is left; the arrivals in order of finishing.
std::vector<int64_t> finish_all(Scheduler& scheduler) {
  std::vector<int64_t> order;
  while (scheduler.num_running() + scheduler.num_waiting() > 0) {
    std::vector<Sequence*> sampled;
    for (const ScheduledSequence& scheduled : scheduler.plan())
      if (scheduled.wants_logits) sampled.push_back(scheduled.sequence);
    scheduler.clear_copies();
    scheduler.commit();
    for (Sequence* sequence : sampled) {
      sequence->tokens.push_back(7);
      if (sequence->num_generated() < sequence->request.max_tokens) continue;
      order.push_back(sequence->arrival);
      scheduler.remove(sequence);
    }
  }
  return order;
}

TEST(Scheduler, TheOldestRunningSequenceIsNeverPreempted) {
  Scheduler scheduler(
      {.num_blocks = 4, .block_size = 1, .max_num_seqs = 2, .max_num_batched_tokens = 8});
  scheduler.add(make_sequence(1, 3, 0));
  scheduler.add(make_sequence(1, 3, 1));
  EXPECT_EQ(finish_all(scheduler), (std::vector<int64_t>{0, 1}));
  EXPECT_GT(scheduler.num_preemptions(), 0);
}

TEST(Scheduler, UnderPriorityTheMostUrgentGoesFirstAndIsPreemptedLast) {
  SchedulerOptions options{
      .num_blocks = 64, .block_size = 1, .max_num_seqs = 1, .max_num_batched_tokens = 8};
  options.policy = SchedulingPolicy::kPriority;
  Scheduler one_at_a_time(options);
  one_at_a_time.add(make_sequence(2, 2, 0, "", 5));
  one_at_a_time.add(make_sequence(2, 2, 1, "", 1));
  one_at_a_time.add(make_sequence(2, 2, 2, "", 1));
  EXPECT_EQ(finish_all(one_at_a_time), (std::vector<int64_t>{1, 2, 0}));

  options.num_blocks = 6;
  options.max_num_seqs = 2;
  Scheduler tight(options);
  tight.add(make_sequence(1, 5, 0, "", 9));  // older, but less urgent
  tight.add(make_sequence(1, 5, 1, "", 0));
  EXPECT_EQ(finish_all(tight), (std::vector<int64_t>{1, 0}));
  EXPECT_GT(tight.num_preemptions(), 0);
}

TEST(Scheduler, AClientWithManyRequestsDoesNotKeepAnotherWaiting) {
  Scheduler scheduler(
      {.num_blocks = 64, .block_size = 4, .max_num_seqs = 1, .max_num_batched_tokens = 64});
  for (int64_t i = 0; i < 6; ++i) scheduler.add(make_sequence(8, 2, i, "greedy"));
  for (int64_t i = 6; i < 8; ++i) scheduler.add(make_sequence(8, 2, i, "modest"));
  // Turn about, each client's own in order, until one has no more.
  EXPECT_EQ(finish_all(scheduler), (std::vector<int64_t>{0, 6, 1, 7, 2, 3, 4, 5}));
}

TEST(Scheduler, ALongPromptDoesNotDelaySequencesThatDecode) {
  Scheduler scheduler(
      {.num_blocks = 64, .block_size = 16, .max_num_seqs = 2, .max_num_batched_tokens = 16});
  scheduler.add(make_sequence(200, 1, 0));
  scheduler.plan();
  scheduler.commit();
  // Had the first prompt the whole budget, the second would never start; here it does once there is
  // budget left, and from then on it gets a token in each step.
  scheduler.add(make_sequence(1, 50, 1));
  int starved = 0;
  bool decoding = false;
  for (int i = 0; i < 40; ++i) {
    bool served = false;
    std::vector<Sequence*> sampled;
    for (const ScheduledSequence& s : scheduler.plan()) {
      served |= s.sequence->arrival == 1;
      if (s.wants_logits) sampled.push_back(s.sequence);
    }
    scheduler.commit();
    for (Sequence* sequence : sampled) {
      sequence->tokens.push_back(7);
      decoding |= sequence->arrival == 1;
      if (sequence->num_generated() >= sequence->request.max_tokens) scheduler.remove(sequence);
    }
    starved += decoding && !served;
  }
  EXPECT_TRUE(decoding);
  EXPECT_EQ(starved, 0);
}

TEST(Scheduler, OnePromptTakesNoMoreOfAStepThanItsThreshold) {
  Scheduler scheduler({.num_blocks = 64,
                       .block_size = 16,
                       .max_num_seqs = 2,
                       .max_num_batched_tokens = 64,
                       .long_prefill_token_threshold = 10});
  scheduler.add(make_sequence(100, 1, 0));
  scheduler.add(make_sequence(100, 1, 1));
  for (const ScheduledSequence& s : scheduler.plan()) EXPECT_EQ(s.num_tokens, 10);
  scheduler.commit();
}

TEST(Scheduler, NobodyIsAdmittedIntoBlocksThatRunningPromptsStillNeed) {
  Scheduler scheduler(
      {.num_blocks = 10, .block_size = 16, .max_num_seqs = 4, .max_num_batched_tokens = 16});
  scheduler.add(make_sequence(112, 1, 0));  // 7 blocks, one taken in each step
  scheduler.add(make_sequence(64, 1, 1));   // 4 blocks
  scheduler.plan();
  scheduler.commit();
  EXPECT_EQ(scheduler.num_waiting(), 1);
  finish_all(scheduler);
  EXPECT_EQ(scheduler.num_preemptions(), 0);
}

TEST(Scheduler, PromptLogprobsNeverAskForMoreRowsThanThereAreSequences) {
  Scheduler scheduler(
      {.num_blocks = 64, .block_size = 16, .max_num_seqs = 4, .max_num_batched_tokens = 64});
  for (int64_t i = 0; i < 3; ++i) {
    auto sequence = make_sequence(30, 3, i);
    sequence->request.sampling.num_prompt_logprobs = 1;
    scheduler.add(std::move(sequence));
  }
  while (scheduler.num_waiting() + scheduler.num_running() > 0) {
    int rows = 0;
    std::vector<Sequence*> sampled;
    for (const ScheduledSequence& s : scheduler.plan()) {
      rows += s.num_logit_rows();
      if (s.wants_logits) sampled.push_back(s.sequence);
    }
    ASSERT_LE(rows, 4);
    scheduler.commit();
    for (Sequence* sequence : sampled) {
      sequence->tokens.push_back(7);
      if (sequence->num_generated() == 3) scheduler.remove(sequence);
    }
  }
}

TEST(SnapshotPolicy, AChunkEndsAtTheLastBoundaryOfThePromptAndBeforeTheTemplatesTail) {
  auto sequence = make_sequence(100, 1, 0);
  EXPECT_EQ(next_cut(*sequence, 16, 100), 80) << "96 is within the template's closing words";
  sequence->num_computed = 80;
  EXPECT_EQ(next_cut(*sequence, 16, 100), 96);
  sequence->num_computed = 96;
  EXPECT_EQ(next_cut(*sequence, 16, 100), 100);
  sequence->num_computed = 0;
  EXPECT_EQ(next_cut(*sequence, 16, 50), 48) << "a chunk cut short ends on a boundary";
  EXPECT_EQ(next_cut(*sequence, 16, 5), 5) << "unless it reaches none";
  sequence->branch = 32;
  EXPECT_EQ(next_cut(*sequence, 16, 50), 32);
}

TEST(PrefixCache, ASnapshotOfAnotherPrefixIsNotUsed) {
  PrefixCache cache({.num_blocks = 8, .num_snapshots = 2, .hybrid = true});
  BlockHasher hasher;
  const std::vector<int32_t> tokens = {1, 2, 3, 4};
  std::vector<BlockHash> ours, theirs;
  for (int i = 0; i < 3; ++i) {
    ours.push_back(hasher.next(i == 0 ? hasher.root("") : ours.back(), tokens));
    theirs.push_back(hasher.next(i == 0 ? hasher.root("salt") : theirs.back(), tokens));
    cache.blocks.publish(cache.blocks.take(), ours.back());
  }
  EXPECT_EQ(cache.match(ours).num_blocks, 0) << "blocks alone do not resume a hybrid model";
  EXPECT_EQ(cache.match(ours).num_kept_blocks, 3);
  cache.publish_snapshot(cache.snapshots.take(), theirs[2], 3);
  EXPECT_EQ(cache.match(ours).num_blocks, 0);
  cache.publish_snapshot(cache.snapshots.take(), ours[1], 2);
  EXPECT_EQ(cache.match(ours).num_blocks, 2);
  EXPECT_EQ(cache.match(theirs).num_blocks, 0);
}

TEST(SlotCache, ATableFullOfCollisionsStillFindsWhatIsLeft) {
  SlotCache cache(8);
  const auto hash = [](uint8_t low, uint8_t tag) {
    BlockHash h;
    h.bytes[0] = static_cast<std::byte>(low);
    h.bytes[31] = static_cast<std::byte>(tag);
    return h;
  };
  std::vector<int32_t> slots;
  for (uint8_t i = 0; i < 8; ++i) {  // three homes only
    slots.push_back(cache.take());
    cache.publish(slots.back(), hash(static_cast<uint8_t>(30 + i % 3), i));
  }
  for (const uint8_t gone : {1, 4, 6}) cache.forget(slots[gone]);
  for (uint8_t i = 0; i < 8; ++i)
    EXPECT_EQ(cache.find(hash(static_cast<uint8_t>(30 + i % 3), i)),
              i == 1 || i == 4 || i == 6 ? -1 : slots[i]);
}

TEST(BlockPoolDeathTest, ReleasingTwiceAborts) {
  BlockPool pool(2);
  const int32_t slot = pool.take();
  pool.release(slot);
  EXPECT_DEATH(pool.release(slot), "released too often");
}

}  // namespace
}  // namespace nibble
