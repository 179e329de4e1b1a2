// Calibration on a GPU against the CPU: the same losses but for what 16-bit activations blur, and
// checkpoints as near to their parent. Without a GPU every test is skipped.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "device/cuda_device_tensor.h"
#include "quant/pipeline.h"
#include "support/golden_file.h"
#include "support/model_harness.h"
#include "support/temp_dir.h"

namespace nibble {
namespace {

class CudaCalibrated : public testing::Test {
 protected:
  void SetUp() override {
    if (test::gpu() == nullptr) GTEST_SKIP() << "no GPU";
    options_.num_threads = 2;
    std::mt19937 random(7);
    for (const size_t length : {size_t{96}, size_t{7}, size_t{0}, size_t{200}, size_t{64}}) {
      options_.calibration.emplace_back(length);
      for (int32_t& id : options_.calibration.back()) id = static_cast<int32_t>(random() % 500);
    }
  }
  void recipe(const std::string& name) {
    const fs::path path = fs::path(NIBBLE_SOURCE_DIR) / "recipes" / name;
    options_.recipe = parse_recipe(read_file(path).value(), name).value();
    if (options_.recipe.awq) options_.recipe.awq->num_candidates = 8;
  }
  QuantizeReport run(const fs::path& model, Backend device, const std::string& out) {
    options_.device = device;
    return quantize_checkpoint(model, dir_.path() / out, options_).value();
  }
  // Of the quantized model's logits from its parent's, both on the CPU.
  double distance(const fs::path& model, const std::string& out) {
    const std::vector<int32_t>& ids = options_.calibration[0];
    const auto logits = [&](const fs::path& path) {
      test::ModelHarness harness(path, Backend::kCpu);
      return harness.run({{0, ids}});
    };
    return test::relative_error(logits(dir_.path() / out), logits(model));
  }
  // Losses of each mapping before and after the search.
  void expect_near_losses(const QuantizeReport& found, const QuantizeReport& expected,
                          double tolerance) {
    const Json& ours = found.details["mappings"];
    const Json& theirs = expected.details["mappings"];
    ASSERT_EQ(ours.size(), theirs.size());
    ASSERT_GT(ours.size(), 0u);
    for (size_t i = 0; i < ours.size(); ++i) {
      ASSERT_EQ(ours[i]["smooth"], theirs[i]["smooth"]);
      for (const char* which : {"initial_loss", "loss"})
        EXPECT_NEAR(ours[i][which].get<double>() / theirs[i][which].get<double>(), 1, tolerance)
            << ours[i]["smooth"] << " " << which;
    }
  }

  QuantizeOptions options_;
  test::TempDir dir_;
};

TEST_F(CudaCalibrated, AwqFindsTheSameLosses) {
  const fs::path model = test::bundled_model("nibble-demo-14m");
  recipe("w4a16-awq.yaml");
  const QuantizeReport gpu = run(model, Backend::kCuda, "gpu");
  const QuantizeReport cpu = run(model, Backend::kCpu, "cpu");
  EXPECT_EQ(gpu.details["device"], "cuda");
  expect_near_losses(gpu, cpu, 0.1);
  for (const Json& layer : gpu.details["layers"])
    EXPECT_LT(layer["smoothing_check"].get<double>(), 0x1p-6);
  EXPECT_EQ(gpu.output_bytes, cpu.output_bytes);
  const double on_cpu = distance(model, "cpu");
  EXPECT_LT(distance(model, "gpu"), 1.15 * on_cpu);
  // Activations that do not fit beside the rest stay in host memory, and change nothing.
  options_.calibrated.spill.device_limit = 1;
  const QuantizeReport spilled = run(model, Backend::kCuda, "spilled");
  EXPECT_EQ(spilled.details["mappings"], gpu.details["mappings"]);
}

TEST_F(CudaCalibrated, GptqAndRefinementTakeTheirMomentsFromTheGpu) {
  const fs::path model = test::bundled_model("nibble-demo-14m");
  recipe("w4a16-awq-gptq.yaml");
  run(model, Backend::kCuda, "gpu");
  run(model, Backend::kCpu, "cpu");
  const double on_cpu = distance(model, "cpu");
  EXPECT_LT(distance(model, "gpu"), 1.15 * on_cpu);
}

TEST_F(CudaCalibrated, MixturesOfExpertsRecordTheirExperts) {
  const fs::path model = test::golden("fixtures/qwen3_5_moe");
  recipe("w4a16-awq-minmax.yaml");
  for (const bool all_experts : {true, false}) {
    options_.calibrated.all_experts = all_experts;
    const std::string name = all_experts ? "all" : "routed";
    const QuantizeReport gpu = run(model, Backend::kCuda, "gpu " + name);
    const QuantizeReport cpu = run(model, Backend::kCpu, "cpu " + name);
    expect_near_losses(gpu, cpu, 0.1);
  }
}

}  // namespace
}  // namespace nibble
