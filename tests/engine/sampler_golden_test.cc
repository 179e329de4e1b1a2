// Each sampling step, and chains of them, against Hugging Face's logits processors.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "engine/sampler.h"
#include "support/golden_file.h"

namespace nibble {
namespace {

constexpr size_t kRows = 4;
constexpr size_t kTiedRow = 3;  // whole-number logits: ties may be cut elsewhere by top-p

// A step by name and value: "rep1.05", "t0.7", "k20", "p0.95", "minp0.02".
struct Step {
  std::string kind;
  float value;
};

class SamplingGolden : public testing::Test {
 protected:
  SamplingGolden() : goldens_(test::golden("fixtures/sampling/goldens.safetensors")) {}

  // Applies `steps` in order to every row and compares with the golden `name`.
  void expect_steps(const std::string& name, const std::vector<Step>& steps) {
    SCOPED_TRACE(name);
    const std::vector<float> start = goldens_.floats("logits");
    const std::vector<int32_t> ids = goldens_.ints("input_ids");
    const std::vector<float> expected = goldens_.floats(name + ".logits");
    const size_t vocab = start.size() / kRows;
    const size_t num_ids = ids.size() / kRows;
    for (size_t row = 0; row < kRows; ++row) {
      std::vector<float> logits(start.begin() + static_cast<ptrdiff_t>(row * vocab),
                                start.begin() + static_cast<ptrdiff_t>((row + 1) * vocab));
      const std::span<const int32_t> seen(ids.data() + row * num_ids, num_ids);
      bool has_top_p = false;
      for (const Step& step : steps) {
        if (step.kind == "rep") apply_repetition_penalty(logits, seen, {}, step.value, &marks_);
        if (step.kind == "t") apply_temperature(logits, step.value);
        if (step.kind == "k") apply_top_k(logits, static_cast<int>(step.value), &floats_);
        if (step.kind == "p") apply_top_p(logits, step.value, &ids_);
        if (step.kind == "minp") apply_min_p(logits, step.value);
        has_top_p |= step.kind == "p";
      }
      size_t kept = 0;
      size_t expected_kept = 0;
      for (size_t i = 0; i < vocab; ++i) {
        const float golden = expected[row * vocab + i];
        kept += std::isfinite(logits[i]);
        expected_kept += std::isfinite(golden);
        if (row == kTiedRow && has_top_p) continue;
        if (std::isfinite(golden)) {
          EXPECT_NEAR(logits[i], golden, 1e-5 * std::max(1.0f, std::fabs(golden)))
              << row << " " << i;
        } else {
          EXPECT_EQ(logits[i], golden) << row << " " << i;
        }
      }
      EXPECT_EQ(kept, expected_kept) << "row " << row;
    }
  }

  test::GoldenFile goldens_;
  std::vector<float> floats_;
  std::vector<int32_t> ids_;
  TokenMarks marks_;
};

TEST_F(SamplingGolden, SingleStepsKeepTheSameTokensWithTheSameLogits) {
  expect_steps("repetition_1.1", {{"rep", 1.1f}});
  expect_steps("repetition_0.8", {{"rep", 0.8f}});
  expect_steps("temperature_0.7", {{"t", 0.7f}});
  expect_steps("temperature_1.8", {{"t", 1.8f}});
  expect_steps("top_k_1", {{"k", 1}});
  expect_steps("top_k_20", {{"k", 20}});
  expect_steps("top_p_0.1", {{"p", 0.1f}});
  expect_steps("top_p_0.95", {{"p", 0.95f}});
  expect_steps("min_p_0.05", {{"minp", 0.05f}});
  expect_steps("min_p_0.5", {{"minp", 0.5f}});
}

TEST_F(SamplingGolden, ChainsKeepTheSameTokensWithTheSameLogits) {
  expect_steps("chain_rep1.05_t0.7_k20_p0.95",
               {{"rep", 1.05f}, {"t", 0.7f}, {"k", 20}, {"p", 0.95f}});
  expect_steps("chain_rep1.1_t0.5_k50_p0.8_minp0.02",
               {{"rep", 1.1f}, {"t", 0.5f}, {"k", 50}, {"p", 0.8f}, {"minp", 0.02f}});
  expect_steps("chain_t1.3_p0.9", {{"t", 1.3f}, {"p", 0.9f}});
}

TEST(Sampler, DrawsFollowTheDistribution) {
  Sampler sampler(4);
  SamplingParams params;
  const float base[4] = {0.0f, 1.0f, 2.0f, -1.0f};
  std::map<int32_t, int> counts;
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) {
    float logits[4];
    std::copy_n(base, 4, logits);
    ++counts[sampler
                 .sample({.logits = logits,
                          .params = &params,
                          .prompt = {},
                          .generated = {},
                          .stop_token_ids = {},
                          .seed = static_cast<uint64_t>(i)})
                 .token];
  }
  double total = 0;
  for (const float x : base) total += std::exp(x);
  for (int32_t token = 0; token < 4; ++token) {
    const double p = std::exp(base[token]) / total;
    // Five standard deviations of a binomial count.
    EXPECT_NEAR(counts[token], kDraws * p, 5 * std::sqrt(kDraws * p * (1 - p))) << token;
  }
}

TEST(Sampler, TheSameSeedAndPositionGiveTheSameToken) {
  Sampler sampler(64);
  SamplingParams params;
  const std::vector<int32_t> prompt = {1, 2, 3};
  std::vector<float> base(64);
  for (size_t i = 0; i < base.size(); ++i) base[i] = std::sin(static_cast<float>(i));
  std::set<int32_t> by_seed;
  for (uint64_t seed = 0; seed < 32; ++seed) {
    std::vector<float> a = base;
    std::vector<float> b = base;
    const auto draw = [&](std::vector<float>& logits) {
      return sampler
          .sample({.logits = logits,
                   .params = &params,
                   .prompt = prompt,
                   .generated = {},
                   .stop_token_ids = {},
                   .seed = seed})
          .token;
    };
    const int32_t first = draw(a);
    EXPECT_EQ(first, draw(b));
    by_seed.insert(first);
  }
  EXPECT_GT(by_seed.size(), 4u) << "seeds make no difference";
}

TEST(Sampler, GreedyTakesTheLowestIdAmongEquals) {
  Sampler sampler(4);
  SamplingParams params;
  params.temperature = 0;
  float logits[4] = {1, 3, 3, 2};
  EXPECT_EQ(sampler
                .sample({.logits = logits,
                         .params = &params,
                         .prompt = {},
                         .generated = {},
                         .stop_token_ids = {},
                         .seed = 0})
                .token,
            1);
}

TEST(Sampler, StopTokensAreMaskedUntilMinTokens) {
  Sampler sampler(3);
  SamplingParams params;
  params.temperature = 0;
  params.min_tokens = 2;
  const std::vector<int32_t> stop = {2};
  const std::vector<int32_t> one = {0};
  const std::vector<int32_t> two = {0, 0};
  float early[3] = {0, 1, 9};
  EXPECT_EQ(sampler
                .sample({.logits = early,
                         .params = &params,
                         .prompt = {},
                         .generated = one,
                         .stop_token_ids = stop,
                         .seed = 0})
                .token,
            1);
  float late[3] = {0, 1, 9};
  EXPECT_EQ(sampler
                .sample({.logits = late,
                         .params = &params,
                         .prompt = {},
                         .generated = two,
                         .stop_token_ids = stop,
                         .seed = 0})
                .token,
            2);
}

TEST(Sampler, LogprobsAreOfTheRawDistributionAndSorted) {
  Sampler sampler(4);
  SamplingParams params;
  params.temperature = 0;
  params.num_logprobs = 2;
  params.logit_bias = {{0, 100.0f}};
  float logits[4] = {0, 1, 2, 3};
  const TokenEvent event = sampler.sample({.logits = logits,
                                           .params = &params,
                                           .prompt = {},
                                           .generated = {},
                                           .stop_token_ids = {},
                                           .seed = 0});
  EXPECT_EQ(event.token, 0);
  const float log_total = std::log(1.0f + std::exp(1.0f) + std::exp(2.0f) + std::exp(3.0f));
  EXPECT_NEAR(event.logprob, -log_total, 1e-5);
  ASSERT_EQ(event.top_logprobs.size(), 2u);
  EXPECT_EQ(event.top_logprobs[0].token, 3);
  EXPECT_NEAR(event.top_logprobs[0].logprob, 3 - log_total, 1e-5);
  EXPECT_EQ(event.top_logprobs[1].token, 2);
}

TEST(Sampler, PenaltiesCountGeneratedTokensOnly) {
  std::vector<float> logits = {1, 1, 1};
  const std::vector<int32_t> generated = {1, 1, 2};
  TokenMarks marks;
  apply_output_penalties(logits, generated, 0.5f, 0.25f, &marks);
  EXPECT_FLOAT_EQ(logits[0], 1.0f);
  EXPECT_FLOAT_EQ(logits[1], 1.0f - 0.5f - 2 * 0.25f);
  EXPECT_FLOAT_EQ(logits[2], 1.0f - 0.5f - 0.25f);
}

}  // namespace
}  // namespace nibble
