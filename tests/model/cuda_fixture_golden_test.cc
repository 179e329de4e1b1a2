// The tiny random models on a GPU: f32 activations against the logits of Hugging Face transformers,
// whole prompts and step by step. Without a GPU every test is skipped, and the program says so.
#include <gtest/gtest.h>

#include <algorithm>

#include "device/cuda_device_tensor.h"
#include "support/bf16_noise.h"
#include "support/golden_file.h"
#include "support/model_harness.h"

namespace nibble {
namespace {

using test::GoldenFile;
using test::max_abs_diff;
using test::ModelHarness;

class CudaFixture : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (test::gpu() == nullptr) GTEST_SKIP() << "no GPU";
  }
  fs::path folder() const { return test::golden(std::string("fixtures/") + GetParam()); }
  GoldenFile goldens() const { return GoldenFile(folder() / "goldens.safetensors"); }
  float tolerance(const char* implementation) const {
    return test::load_json(folder() /
                           "manifest.json")["tolerance"][implementation]["logits_max_abs_diff"]
        .get<float>();
  }
};

constexpr const char* kPrompts[] = {"prompt1", "prompt5", "prompt65", "prompt200"};

TEST_P(CudaFixture, LogitsOfWholePromptsMatch) {
  ModelHarness model(folder(), Backend::kCuda);
  const GoldenFile golden = goldens();
  for (const std::string prompt : kPrompts) {
    model.reset(0);
    const std::vector<float> logits = model.run({{0, golden.ints(prompt + ".input_ids")}});
    const float difference = max_abs_diff(golden.floats(prompt + ".logits"), logits);
    EXPECT_LE(difference, tolerance("float32_implementation")) << prompt;
    RecordProperty(prompt, std::to_string(difference));
  }
}

TEST_P(CudaFixture, PrefillAndStepwiseDecodeMatch) {
  ModelHarness model(folder(), Backend::kCuda);
  const GoldenFile golden = goldens();
  const std::vector<int32_t> ids = golden.ints("prompt65.input_ids");
  const std::vector<float> expected = golden.floats("prompt65.logits");
  std::vector<float> logits = model.run({{0, {ids.begin(), ids.begin() + 37}}});
  for (size_t i = 37; i < ids.size(); ++i) {
    const std::vector<float> next = model.run({{0, {ids[i]}}});
    logits.insert(logits.end(), next.begin(), next.end());
  }
  EXPECT_LE(max_abs_diff(expected, logits), tolerance("float32_implementation"));
}

TEST_P(CudaFixture, ABatchOfSequencesEqualsEachAlone) {
  ModelHarness model(folder(), Backend::kCuda);
  const GoldenFile golden = goldens();
  const std::vector<int32_t> a = golden.ints("prompt65.input_ids");
  const std::vector<int32_t> b = golden.ints("prompt5.input_ids");
  std::vector<float> alone = model.run({{0, a}});
  model.reset(0);
  const std::vector<float> part = model.run({{0, b}});
  alone.insert(alone.end(), part.begin(), part.end());
  model.reset(0);
  EXPECT_LE(max_abs_diff(alone, model.run({{3, a}, {0, b}})), tolerance("float32_implementation"));
}

// 16-bit activations take the tensor-core kernels. The logits of a bf16 run differ from the f32
// goldens by its rounding noise; its size is read off the CPU backend, which rounds in the same
// places, and twice that is allowed.
TEST_P(CudaFixture, SixteenBitActivationsAreAsNearAsTheCpusAre) {
  const GoldenFile golden = goldens();
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    ModelHarness gpu(folder(), Backend::kCuda, dtype);
    ModelHarness cpu(folder(), Backend::kCpu, dtype);
    for (const std::string prompt : kPrompts) {
      gpu.reset(0);
      cpu.reset(0);
      const std::vector<int32_t> ids = golden.ints(prompt + ".input_ids");
      const std::vector<float> exact = golden.floats(prompt + ".logits");
      const double noise = test::relative_error(cpu.run({{0, ids}}), exact);
      EXPECT_LE(test::relative_error(gpu.run({{0, ids}}), exact), 2 * noise)
          << dtype_name(dtype) << " " << prompt;
    }
  }
}

TEST_P(CudaFixture, Bf16IsAtMostTwiceAsFarAsTransformersOwn) {
  const test::Bf16Noise noise = test::bf16_noise(GetParam(), Backend::kCuda);
  std::printf("%s: max KL %.5f, transformers' own %.5f\n", GetParam(), noise.ours,
              noise.transformers);
  EXPECT_LE(noise.ours, 2 * noise.transformers);
}

INSTANTIATE_TEST_SUITE_P(Models, CudaFixture,
                         testing::Values("qwen3_5-dense", "qwen3_5-dense-tied", "qwen3_5_moe",
                                         "qwen3-dense", "llama-dense"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace nibble
