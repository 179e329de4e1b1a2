// The bundled model against Hugging Face transformers: greedy replies to 40 prompts, and logits.
#include <gtest/gtest.h>

#include <algorithm>

#include "support/golden_file.h"
#include "support/model_harness.h"

namespace nibble {
namespace {

using test::max_abs_diff;
using test::ModelHarness;

// The gap between two logits below which float32 noise may decide.
constexpr float kTolerance = 1e-3f;

ModelHarness demo_model() {
  return ModelHarness(test::bundled_model("nibble-demo-14m"), Backend::kCpu, DType::kF32, 256, 1);
}

TEST(DemoModel, GreedyRepliesToAllPromptsMatch) {
  ModelHarness model = demo_model();
  const Json prompts = test::load_json(test::golden("demo/prompts.json"));
  ASSERT_EQ(prompts.size(), 40u);
  const auto vocab = static_cast<ptrdiff_t>(model.spec().vocab_size);
  int num_compared = 0;
  for (const Json& prompt : prompts) {
    SCOPED_TRACE(prompt["id"].get<int>());
    model.reset(0);
    const auto expected = prompt["float32"]["ids"].get<std::vector<int32_t>>();
    auto next = prompt["prompt_ids"].get<std::vector<int32_t>>();
    for (size_t i = 0; i < expected.size(); ++i) {
      const std::vector<float> logits = model.run({{0, next}});
      const auto last = logits.end() - vocab;
      const auto best = static_cast<int32_t>(std::max_element(last, logits.end()) - last);
      ++num_compared;
      if (best != expected[i]) {
        // A near tie may fall either way; the texts part there.
        EXPECT_LT(last[best] - last[expected[i]], kTolerance) << "token " << i;
        break;
      }
      next = {best};
    }
  }
  EXPECT_GE(num_compared, 1300) << "of 1388 tokens; replies parted too early";
}

TEST(DemoModel, LogitsAtTheEndOfPromptsMatch) {
  ModelHarness model = demo_model();
  const Json prompts = test::load_json(test::golden("demo/prompts.json"));
  const test::GoldenFile golden(test::golden("demo/logits.safetensors"));
  int num_compared = 0;
  for (const Json& prompt : prompts) {
    const std::string name = "prompt_" + std::to_string(prompt["id"].get<int>());
    if (!golden.has(name)) continue;
    SCOPED_TRACE(name);
    model.reset(0);
    const std::vector<float> logits =
        model.run({{0, prompt["prompt_ids"].get<std::vector<int32_t>>()}});
    const std::vector<float> expected = golden.floats(name);
    EXPECT_LE(max_abs_diff(expected,
                           {logits.end() - static_cast<ptrdiff_t>(expected.size()), logits.end()}),
              kTolerance);
    ++num_compared;
  }
  EXPECT_EQ(num_compared, 3);
}

}  // namespace
}  // namespace nibble
