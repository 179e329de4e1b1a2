// What a smaller KV cache costs the bundled model, teacher forced over its own replies.
#include <gtest/gtest.h>

#include <cmath>

#include "support/golden_file.h"
#include "support/model_harness.h"

namespace nibble {
namespace {

// KL(p || q) of two rows of logits, in nats.
double divergence(const float* p, const float* q, int64_t n) {
  const auto log_sum = [n](const float* x) {
    const double largest = *std::max_element(x, x + n);
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += std::exp(x[i] - largest);
    return largest + std::log(sum);
  };
  const double p_sum = log_sum(p);
  const double q_sum = log_sum(q);
  double total = 0;
  for (int64_t i = 0; i < n; ++i)
    total += std::exp(p[i] - p_sum) * ((p[i] - p_sum) - (q[i] - q_sum));
  return total;
}

TEST(KvCache, SmallerTypesChangeTheDemoModelLittle) {
  const Json prompts = test::load_json(test::golden("demo/prompts.json"));
  std::vector<std::vector<int32_t>> texts;
  for (size_t i = 0; i < 4; ++i) {
    texts.push_back(prompts[i * 10]["prompt_ids"].get<std::vector<int32_t>>());
    const auto reply = prompts[i * 10]["float32"]["ids"].get<std::vector<int32_t>>();
    texts.back().insert(texts.back().end(), reply.begin(), reply.end());
  }
  const auto run_all = [&](DType kv) {
    test::ModelHarness model(test::bundled_model("nibble-demo-14m"), Backend::kCpu, DType::kF32,
                             256, 1, kv);
    std::vector<std::vector<float>> logits;
    for (const auto& text : texts) {
      model.reset(0);
      logits.push_back(model.run({{0, text}}));
    }
    return logits;
  };
  const auto expected = run_all(DType::kF32);
  struct Bound {
    DType dtype;
    double mean_kl;
  };
  // Mean KL seen when the bounds were set: F16 below 1e-6, BF16 1e-6, E4M3 2.6e-4, E5M2 1.7e-3.
  for (const Bound& bound : {Bound{DType::kF16, 1e-6}, Bound{DType::kBF16, 1e-5},
                             Bound{DType::kF8E4M3, 1e-3}, Bound{DType::kF8E5M2, 4e-3}}) {
    const auto actual = run_all(bound.dtype);
    const int64_t vocab = 4096;
    double total = 0;
    int64_t count = 0;
    for (size_t text = 0; text < texts.size(); ++text) {
      for (size_t token = 0; token < texts[text].size(); ++token, ++count) {
        const size_t row = token * static_cast<size_t>(vocab);
        total += divergence(&expected[text][row], &actual[text][row], vocab);
      }
    }
    const double mean = total / static_cast<double>(count);
    RecordProperty(std::string(dtype_name(bound.dtype)), std::to_string(mean));
    EXPECT_LE(mean, bound.mean_kl) << dtype_name(bound.dtype);
    EXPECT_GT(mean, 0) << dtype_name(bound.dtype) << " is not stored at all";
  }
}

}  // namespace
}  // namespace nibble
