// The sampler's rules one by one, and its fast paths against plain definitions of the same steps.
#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "support/random.h"

namespace nibble {
namespace {

constexpr float kDropped = -std::numeric_limits<float>::infinity();

// One greedy step over `logits` with `params`.
class OneStep {
 public:
  explicit OneStep(std::vector<float> logits, LogprobsMode mode = LogprobsMode::kRawLogprobs)
      : logits_(std::move(logits)), sampler_(static_cast<int64_t>(logits_.size()), mode) {
    params.temperature = 0;
  }
  TokenEvent event() {
    std::vector<float> logits = logits_;
    return sampler_.sample({.logits = logits,
                            .params = &params,
                            .prompt = prompt,
                            .generated = generated,
                            .stop_token_ids = stop,
                            .seed = 1,
                            .constraint = constraint,
                            .repetition_penalty = penalty});
  }
  int32_t token() { return event().token; }

  SamplingParams params;
  std::vector<int32_t> prompt, generated, stop;
  TokenConstraint* constraint = nullptr;
  float penalty = 0;

 private:
  std::vector<float> logits_;
  Sampler sampler_;
};

class OnlyThese final : public TokenConstraint {
 public:
  explicit OnlyThese(std::vector<int32_t> tokens) : tokens_(std::move(tokens)) {}
  bool fill(std::span<uint32_t> allowed) override {
    std::ranges::fill(allowed, 0u);
    for (const int32_t t : tokens_) allowed[static_cast<size_t>(t) / 32] |= 1u << (t % 32);
    return true;
  }
  void accept(int32_t) override {}

 private:
  std::vector<int32_t> tokens_;
};

TEST(SamplerMasks, TheGrammarComesFirst) {
  OneStep step({5, 4, 3, 2});
  OnlyThese only({2, 3});
  step.constraint = &only;
  EXPECT_EQ(step.token(), 2);
  step.params.logit_bias = {{0, 100.0f}, {3, 50.0f}};
  EXPECT_EQ(step.token(), 3);
}

TEST(SamplerMasks, AllowedIdsAndBadWordsDropTokens) {
  OneStep step({5, 4, 3, 2});
  step.params.allowed_token_ids = {1, 3, 99};
  EXPECT_EQ(step.token(), 1);
  step.params.bad_words = {{1}};
  EXPECT_EQ(step.token(), 3);
  step.params = {};
  step.params.temperature = 0;
  step.params.bad_words = {{2, 0}, {7, 7, 7, 7, 7}};
  EXPECT_EQ(step.token(), 0);
  step.generated = {1, 2};
  EXPECT_EQ(step.token(), 1);
}

TEST(SamplerMasks, ARuleThatWouldLeaveNoTokenIsPassedOver) {
  OneStep step({5, 4, 3, 2});
  OnlyThese only({2});
  step.constraint = &only;
  step.params.allowed_token_ids = {0, 1};
  EXPECT_EQ(step.token(), 2);
  step.params.allowed_token_ids.clear();
  step.params.bad_words = {{2}};
  EXPECT_EQ(step.token(), 2);
  step.params.bad_words.clear();
  step.params.min_tokens = 5;
  step.stop = {2};
  EXPECT_EQ(step.token(), 2) << "the grammar allows nothing but its end";
  step.params.temperature = 1;
  EXPECT_EQ(step.token(), 2);
}

TEST(SamplerMasks, TheThinkingBudgetForcesTheEndOfThinking) {
  OneStep step({5, 4, 3, 2});
  step.params.thinking_token_budget = 2;
  step.params.end_of_thinking_id = 3;
  step.generated = {0};
  EXPECT_EQ(step.token(), 0);
  step.generated = {0, 0};
  EXPECT_EQ(step.token(), 3);
  step.generated = {0, 0, 3, 0};
  EXPECT_EQ(step.token(), 0);
  step.generated = {3, 0, 0};
  EXPECT_EQ(step.token(), 0);
  step.params.thinking_token_budget = 0;
  step.generated = {};
  EXPECT_EQ(step.token(), 3);
}

TEST(SamplerPenalties, TheLoopGuardsPenaltyReplacesTheRequests) {
  OneStep step({4, 3.9f, 0, 0});
  step.generated = {0};
  EXPECT_EQ(step.token(), 0);
  step.penalty = 1.1f;
  EXPECT_EQ(step.token(), 1);
}

TEST(SamplerLogprobs, ModesReportRawOrProcessedValues) {
  const auto value = [](LogprobsMode mode) {
    OneStep step({2, 1, 0}, mode);
    step.params.num_logprobs = 1;
    step.params.logit_bias = {{1, 3.0f}};
    return step.event();
  };
  const float total = std::log(std::exp(2.f) + std::exp(1.f) + 1);
  const TokenEvent raw = value(LogprobsMode::kRawLogprobs);
  EXPECT_EQ(raw.token, 1);
  EXPECT_EQ(raw.rank, 2);
  EXPECT_NEAR(raw.logprob, 1 - total, 1e-5);
  EXPECT_EQ(raw.top_logprobs.at(0).token, 0);
  EXPECT_FLOAT_EQ(value(LogprobsMode::kRawLogits).logprob, 1);
  EXPECT_FLOAT_EQ(value(LogprobsMode::kProcessedLogits).logprob, 4);
  const TokenEvent processed = value(LogprobsMode::kProcessedLogprobs);
  EXPECT_EQ(processed.rank, 1);
  EXPECT_NEAR(processed.logprob, 4 - std::log(std::exp(2.f) + std::exp(4.f) + 1), 1e-5);
  EXPECT_FALSE(parse_logprobs_mode("raw"));
  EXPECT_EQ(parse_logprobs_mode("raw_logits").value(), LogprobsMode::kRawLogits);
}

TEST(SamplerLogprobs, RawValuesShowTheGrammarButNotTheOtherMasks) {
  OneStep step({2, 1, 0, 0});
  OnlyThese only({0, 1});
  step.constraint = &only;
  step.params.allowed_token_ids = {1};
  step.params.num_logprobs = 4;
  const TokenEvent event = step.event();
  EXPECT_EQ(event.token, 1);
  EXPECT_EQ(event.rank, 2);
  EXPECT_NEAR(event.logprob, 1 - std::log(std::exp(2.f) + std::exp(1.f)), 1e-5);
  EXPECT_EQ(event.top_logprobs.size(), 2u) << "masked tokens are not listed";
}

TEST(SamplerTemperature, TinyTemperaturesAreRaised) {
  // At 0.0001 the quotient would overflow to infinity for both.
  OneStep step({1e36f, 2e36f, 0, 0});
  step.params.temperature = 1e-4f;
  EXPECT_EQ(step.token(), 1);
}

TEST(SamplerRobustness, AllDroppedOrNotNumbersStillGiveATokenOfTheVocabulary) {
  for (const float x : {kDropped, std::numeric_limits<float>::quiet_NaN()}) {
    OneStep step({x, x, x, x});
    for (const float temperature : {0.0f, 1.0f}) {
      step.params.temperature = temperature;
      step.params.top_k = 2;
      step.params.top_p = 0.5f;
      step.params.min_p = 0.1f;
      const int32_t token = step.token();
      EXPECT_GE(token, 0);
      EXPECT_LT(token, 4);
    }
  }
}

// The definitions, by sorting.
std::vector<float> plain_top_k(std::vector<float> x, int k) {
  std::vector<float> sorted = x;
  std::ranges::sort(sorted, std::greater<>());
  for (float& v : x)
    if (v < sorted[static_cast<size_t>(k - 1)]) v = kDropped;
  return x;
}
std::vector<float> plain_top_p(std::vector<float> x, double p) {
  std::vector<int32_t> order(x.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](int32_t a, int32_t b) {
    return x[static_cast<size_t>(a)] > x[static_cast<size_t>(b)];
  });
  double total = 0;
  for (const float v : x) total += std::exp(static_cast<double>(v));
  double before = 0;
  std::vector<float> out(x.size(), kDropped);
  for (const int32_t id : order) {
    if (before > 0 && before >= p * total) break;
    out[static_cast<size_t>(id)] = x[static_cast<size_t>(id)];
    before += std::exp(static_cast<double>(x[static_cast<size_t>(id)]));
  }
  return out;
}

TEST(SamplerSteps, PartialSelectionEqualsSorting) {
  std::mt19937 random(test::test_seed());
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> floats;
  std::vector<int32_t> ids;
  for (int round = 0; round < 60; ++round) {
    std::vector<float> x(static_cast<size_t>(1 + random() % 5000));
    // Whole numbers every third time: many ties.
    for (float& v : x) v = round % 3 == 0 ? std::round(normal(random)) : normal(random);
    for (const int k : {1, 5, 50, 1500}) {
      if (static_cast<size_t>(k) > x.size()) continue;
      std::vector<float> got = x;
      apply_top_k(got, k, &floats);
      EXPECT_EQ(got, plain_top_k(x, k)) << k << " of " << x.size();
    }
    // Sums in float differ by 1e-6 or so: a threshold in the middle of a step.
    for (const float p : {0.0f, 0.1f, 0.5317f, 0.9517f, 0.9993f}) {
      std::vector<float> got = x;
      apply_top_p(got, p, &ids);
      const std::vector<float> expected = plain_top_p(x, p);
      const auto num_kept = [](const std::vector<float>& v) {
        return std::ranges::count_if(v, [](float f) { return f != kDropped; });
      };
      EXPECT_NEAR(static_cast<double>(num_kept(got)), static_cast<double>(num_kept(expected)), 1)
          << p << " of " << x.size();
    }
    select_largest(x, 7, &ids);
    std::vector<int32_t> order(x.size());
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(order, [&](int32_t a, int32_t b) {
      return x[static_cast<size_t>(a)] > x[static_cast<size_t>(b)];
    });
    order.resize(std::min<size_t>(7, order.size()));
    EXPECT_EQ(ids, order);
  }
}

}  // namespace
}  // namespace nibble
