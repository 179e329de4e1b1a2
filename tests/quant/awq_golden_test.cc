// The scales that llm-compressor's AWQ finds for the same token ids in float32; the golden is made
// by tools/make_awq_goldens.py.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "checkpoint/writer.h"
#include "model/architectures.h"
#include "quant/calibrated.h"
#include "quant/rtn.h"
#include "support/golden_file.h"
#include "support/model_harness.h"
#include "support/temp_dir.h"

namespace nibble {
namespace {

// The demo model with float32 weights.
void write_in_f32(const fs::path& from, const fs::path& to) {
  const ModelDir dir = ModelDir::open(from).value();
  CheckpointWriter writer =
      CheckpointWriter::create(to, {.max_shard_bytes = size_t{1} << 30}).value();
  for (const SafetensorsFile& shard : dir.shards())
    for (const TensorInfo& info : shard.tensors()) {
      const Tensor tensor = shard.view(info);
      OwnedTensor wide(DType::kF32, tensor.shape);
      to_float(tensor, wide.view().as<float>());
      ASSERT_TRUE(writer.add(info.name, wide.view()));
    }
  ASSERT_TRUE(writer.add_file("config.json", dump_json_pretty(dir.config())));
  ASSERT_TRUE(writer.finish());
}

TEST(AwqGolden, TheReferenceModeFindsTheScalesOfLlmCompressor) {
  test::TempDir temp;
  const fs::path model = temp.path() / "f32";
  write_in_f32(test::bundled_model("nibble-demo-14m"), model);
  const ModelDir dir = ModelDir::open(model).value();
  const ModelSpec spec = parse_model_config(dir.config()).value();
  const test::GoldenFile golden(test::golden("awq/scales.safetensors"));
  std::vector<std::vector<int32_t>> samples;
  const Tensor ids = golden.tensor("input_ids");
  for (int64_t s = 0; s < ids.shape[0]; ++s) {
    samples.emplace_back();
    for (int64_t i = 0; i < ids.shape[1]; ++i)
      if (const int32_t id = ids.as<const int32_t>()[s * ids.shape[1] + i]; id >= 0)
        samples.back().push_back(id);
  }
  const fs::path recipe_path = fs::path(NIBBLE_SOURCE_DIR) / "recipes" / "w4a16-awq.yaml";
  const Recipe recipe = parse_recipe(read_file(recipe_path).value(), "w4a16-awq.yaml").value();
  const Explanation explanation = explain_recipe(recipe, spec).value();
  std::map<std::string, int> groups;
  for (const ModuleDecision& decision : explanation.modules)
    if (decision.group >= 0) groups[decision.module.name] = decision.group;
  CalibratedOptions options;
  options.mode = CalibrationMode::reference();
  options.norm_rounding = NormRounding::kUpstream;
  ThreadPool pool(2);
  const std::unique_ptr<Device> device = open_device(Backend::kCpu, 2).value();
  CalibrationJournal journal =
      CalibrationJournal::open(temp.path() / "journal", Json::object()).value();
  const auto found = calibrate(dir, spec, recipe, groups, samples, options, journal, *device, pool);
  ASSERT_TRUE(found) << found.error().message;

  int compared = 0;
  for (size_t layer = 0; layer < spec.layers.size(); ++layer)
    for (const SmoothingMapping& mapping : smoothing_mappings(spec, static_cast<int>(layer))) {
      if (!groups.contains(mapping.balance[0])) continue;
      const std::vector<float> expected = golden.floats(mapping.smooth);
      // A row of ones takes the scales on.
      std::vector<float> scales(expected.size(), 1.0f);
      found->plan.apply(mapping.balance[0] + ".weight",
                        {scales.data(), DType::kF32, {1, static_cast<int64_t>(scales.size())}});
      for (size_t i = 0; i < scales.size(); ++i)
        ASSERT_NEAR(scales[i] / expected[i], 1.0f, 1e-3f) << mapping.smooth << " channel " << i;
      ++compared;
    }
  EXPECT_EQ(compared, 27);
}

// Layer 3 as llm-compressor wrote it in BF16: from the same scales, the same bytes.
TEST(AwqGolden, TheSameScalesGiveTheSameBytes) {
  const ModelDir dir = ModelDir::open(test::bundled_model("nibble-demo-14m")).value();
  const ModelSpec spec = parse_model_config(dir.config()).value();
  const test::GoldenFile golden(test::golden("awq/layer3.safetensors"));
  SmoothingPlan plan(NormRounding::kUpstream, spec.norm_weight_offset);
  for (const SmoothingMapping& mapping : smoothing_mappings(spec, 3)) {
    const Tensor scales = golden.tensor(mapping.smooth + ".scales");
    const double* values = scales.as<const double>();
    plan.add(mapping, {values, values + scales.num_elements()});
  }
  const auto expect_bytes = [&](const std::string& name, const void* data, size_t num_bytes) {
    const Tensor expected = golden.tensor(name);
    ASSERT_EQ(expected.num_bytes(), num_bytes) << name;
    EXPECT_EQ(std::memcmp(expected.data, data, num_bytes), 0) << name;
  };
  ThreadPool pool(2);
  const QuantFormat format{.num_bits = 4, .group_size = 128, .symmetric = false};
  const auto observer = make_observer("mse").value();
  int num_modules = 0;
  for (const std::string& name : dir.tensor_names()) {
    if (!name.starts_with("model.layers.3.")) continue;
    OwnedTensor weight = OwnedTensor::copy_of(dir.tensor(name).value());
    plan.apply(name, weight.view());
    if (golden.has(name)) {
      expect_bytes(name, weight.view().data, weight.view().num_bytes());
      continue;
    }
    const QuantizedWeight rounded =
        round_to_nearest(weight.view(), format, observer, {}, pool).value();
    const PackedWeight packed = pack_weight(pack_rounded(weight.view(), rounded, format, pool),
                                            weight.view().dtype, weight.view().shape, format);
    expect_bytes(name + "_packed", packed.packed.data(), packed.packed.size() * 4);
    expect_bytes(name + "_scale", packed.scale16.data(), packed.scale16.size() * 2);
    expect_bytes(name + "_zero_point", packed.zero_point.data(), packed.zero_point.size() * 4);
    ++num_modules;
  }
  EXPECT_EQ(num_modules, 7);
}

}  // namespace
}  // namespace nibble
