// What follows from several engine options together.
#include "engine/options.h"

#include <gtest/gtest.h>

#include "engine/sampler.h"

namespace nibble {
namespace {

TEST(CaptureSizes, EveryBatchHasARecordedStepAtLeastAsLarge) {
  for (const int seqs : {1, 3, 7, 16, 100, 256}) {
    EngineOptions options;
    options.max_num_seqs = seqs;
    const std::vector<int> sizes = capture_sizes(options);
    ASSERT_FALSE(sizes.empty());
    EXPECT_EQ(sizes.front(), 1);
    EXPECT_EQ(sizes.back(), seqs);
    for (size_t i = 1; i < sizes.size(); ++i) {
      EXPECT_LT(sizes[i - 1], sizes[i]);
      EXPECT_LE(sizes[i] - sizes[i - 1], 8);  // what padding can cost
    }
  }
}

TEST(CaptureSizes, GivenSizesAreSortedAndCutToTheLargestBatch) {
  EngineOptions options;
  options.max_num_seqs = 8;
  options.cudagraph_capture_sizes = {64, 4, 1, 4, 8};
  EXPECT_EQ(capture_sizes(options), (std::vector<int>{1, 4, 8}));
}

TEST(CaptureSizes, ModeNoneAndEnforceEagerRecordNothing) {
  EngineOptions none;
  none.cudagraph_mode = "none";
  EXPECT_TRUE(capture_sizes(none).empty());
  EngineOptions eager;
  eager.enforce_eager = true;
  EXPECT_TRUE(capture_sizes(eager).empty());
}

TEST(PlainGreedy, IsWhatTheSamplerWouldTakeUntouched) {
  SamplingParams params;
  params.temperature = 0;
  EXPECT_TRUE(is_plain_greedy(params, false, 0));
  EXPECT_FALSE(is_plain_greedy(params, true, 0));
  EXPECT_FALSE(is_plain_greedy(params, false, 1.1f));
  const auto with = [&](auto change) {
    SamplingParams changed = params;
    change(changed);
    return is_plain_greedy(changed, false, 0);
  };
  EXPECT_FALSE(with([](SamplingParams& p) { p.temperature = 1; }));
  EXPECT_FALSE(with([](SamplingParams& p) { p.num_logprobs = 0; }));
  EXPECT_FALSE(with([](SamplingParams& p) { p.repetition_penalty = 1.2f; }));
  EXPECT_FALSE(with([](SamplingParams& p) { p.presence_penalty = 1; }));
  EXPECT_FALSE(with([](SamplingParams& p) { p.frequency_penalty = 1; }));
  EXPECT_FALSE(with([](SamplingParams& p) { p.logit_bias = {{3, 1.0f}}; }));
  EXPECT_FALSE(with([](SamplingParams& p) { p.min_tokens = 1; }));
  EXPECT_FALSE(with([](SamplingParams& p) { p.bad_words = {{3}}; }));
  EXPECT_FALSE(with([](SamplingParams& p) { p.allowed_token_ids = {3}; }));
  EXPECT_FALSE(with([](SamplingParams& p) { p.thinking_token_budget = 5; }));
}

TEST(EngineOptions, StepsOfAGpuTakeMoreTokensWhereNothingIsAsked) {
  EngineOptions options;
  EXPECT_EQ(batched_tokens(options, true), 512);
  EXPECT_EQ(batched_tokens(options, false), 2048);
  options.max_num_seqs = 4096;  // one token of each must fit
  EXPECT_EQ(batched_tokens(options, true), 4096);
  EXPECT_EQ(batched_tokens(options, false), 4096);
  options = {.max_num_batched_tokens = 100};
  EXPECT_EQ(batched_tokens(options, true), 100);
  EXPECT_EQ(batched_tokens(options, false), 100);
}

}  // namespace
}  // namespace nibble
