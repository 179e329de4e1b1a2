// What the scheduler costs: one step at 256 running sequences, and the lookup of a 200,000-token
// prompt. No device: the bounds of the design are 50 us a step and 100 us a lookup.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <vector>

#include "engine/scheduler.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

double microseconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double, std::micro>(to - from).count();
}
double percentile(std::vector<double> values, double p) {
  const auto at =
      values.begin() + static_cast<ptrdiff_t>(p * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

std::unique_ptr<Sequence> make_sequence(int32_t num_prompt, int32_t max_tokens, int32_t block_size,
                                        int64_t arrival) {
  auto sequence = std::make_unique<Sequence>();
  for (int32_t i = 0; i < num_prompt; ++i)
    sequence->request.prompt.push_back(static_cast<int32_t>((arrival * 7919 + i * 31) % 150000));
  sequence->request.max_tokens = max_tokens;
  sequence->tokens.reserve(static_cast<size_t>(num_prompt + max_tokens));
  sequence->tokens = sequence->request.prompt;
  sequence->blocks.reserve(static_cast<size_t>((num_prompt + max_tokens) / block_size + 1));
  sequence->hashes.reserve(sequence->blocks.capacity());
  sequence->arrival = arrival;
  BlockHasher hasher;
  sequence->root = hasher.root("");
  const std::span<const int32_t> tokens(sequence->tokens);
  for (int32_t i = 0; (i + 1) * block_size <= num_prompt; ++i)
    sequence->hashes.push_back(hasher.next(
        i == 0 ? sequence->root : sequence->hashes.back(),
        tokens.subspan(static_cast<size_t>(i * block_size), static_cast<size_t>(block_size))));
  return sequence;
}

// plan + commit of steps in which 256 sequences of a hybrid model decode, prefixes kept.
void step_overhead() {
  constexpr int32_t kSequences = 256;
  constexpr int32_t kBlock = 16;
  constexpr int kSteps = 2000;
  SchedulerOptions options{.num_blocks = kSequences * 160,
                           .block_size = kBlock,
                           .max_num_seqs = kSequences,
                           .max_num_batched_tokens = 2048,
                           .prefix_caching = true,
                           .hybrid = true,
                           .num_snapshots = 2 * kSequences};
  Scheduler scheduler(options);
  for (int64_t i = 0; i < kSequences; ++i) scheduler.add(make_sequence(100, 2 * kSteps, kBlock, i));
  std::vector<double> times;
  std::vector<Sequence*> sampling;
  while (static_cast<int>(times.size()) < kSteps) {
    const auto start = Clock::now();
    const std::vector<ScheduledSequence>& step = scheduler.plan();
    const auto planned = Clock::now();
    const bool decoding = step.size() == kSequences && scheduler.num_waiting() == 0;
    sampling.clear();
    for (const ScheduledSequence& s : step)
      if (s.wants_logits) sampling.push_back(s.sequence);
    scheduler.clear_copies();
    const auto committing = Clock::now();
    scheduler.commit();
    const auto end = Clock::now();
    for (Sequence* sequence : sampling) sequence->tokens.push_back(17);
    if (decoding && sampling.size() == kSequences)
      times.push_back(microseconds(start, planned) + microseconds(committing, end));
  }
  std::printf("step, 256 sequences decode   median %6.1f us   p99 %6.1f us   (bound 50 us)\n",
              percentile(times, 0.5), percentile(times, 0.99));
}

void lookup() {
  constexpr int32_t kTokens = 200000;
  constexpr int32_t kBlock = 16;
  constexpr int32_t kBlocks = kTokens / kBlock;
  PrefixCache cache({.num_blocks = kBlocks + 64, .num_snapshots = 512, .hybrid = true});
  const auto start = Clock::now();
  const std::unique_ptr<Sequence> sequence = make_sequence(kTokens, 16, kBlock, 1);
  const double hashing = microseconds(start, Clock::now());
  const auto& hashes = sequence->hashes;
  for (const BlockHash& hash : hashes) cache.blocks.publish(cache.blocks.take(), hash);
  for (int32_t i = 1; i <= 500; ++i) {
    const int32_t slot = cache.snapshots.take();
    const int32_t position = i * 24;
    cache.publish_snapshot(slot, hashes[static_cast<size_t>(position) - 1], position);
  }
  std::vector<double> times;
  int64_t matched = 0;
  for (int i = 0; i < 2000; ++i) {
    const auto before = Clock::now();
    matched += cache.match(hashes).num_blocks;
    times.push_back(microseconds(before, Clock::now()));
  }
  std::printf(
      "lookup, 200000-token prompt  median %6.1f us   p99 %6.1f us   (bound 100 us), resumes at "
      "%lld\n",
      percentile(times, 0.5), percentile(times, 0.99),
      static_cast<long long>(matched / 2000 * kBlock));
  std::printf("hashing it, client's thread         %6.1f us\n", hashing);
}

}  // namespace
}  // namespace nibble

int main() {
  nibble::step_overhead();
  nibble::lookup();
}
