// What the quantizer must refuse, and what it must survive: one line that names the culprit, or the
// documented fallback; never silent garbage.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "checkpoint/writer.h"
#include "quant/pipeline.h"
#include "quant/rtn.h"
#include "support/paths.h"
#include "support/temp_dir.h"

namespace nibble {
namespace {

using testing::HasSubstr;

constexpr const char* kModule = "model.layers.3.self_attn.k_proj";

class BadInput : public testing::Test {
 protected:
  // The demo model with one weight changed by `edit(values, count)`, and without another.
  template <class Edit>
  fs::path model_with(const std::string& name, Edit edit, const std::string& left_out = "") {
    const fs::path to = dir_.path() / "model";
    const ModelDir dir = ModelDir::open(demo_).value();
    CheckpointWriter writer = CheckpointWriter::create(to).value();
    for (const std::string& tensor_name : dir.tensor_names()) {
      if (tensor_name == left_out) continue;
      OwnedTensor copy = OwnedTensor::copy_of(dir.tensor(tensor_name).value());
      if (tensor_name == name)
        edit(copy.view().as<BFloat16>(), static_cast<size_t>(copy.view().num_elements()));
      EXPECT_TRUE(writer.add(tensor_name, copy.view()));
    }
    EXPECT_TRUE(writer.add_file("config.json", dump_json_pretty(dir.config())));
    EXPECT_TRUE(writer.finish());
    return to;
  }
  static QuantizeOptions options_for(const std::string& algorithm) {
    RecipeParts parts;
    parts.algorithm = algorithm;
    QuantizeOptions options;
    options.num_threads = 2;
    options.recipe = parse_recipe(recipe_text(parts), "test").value();
    if (options.recipe.awq) options.recipe.awq->num_candidates = 2;
    if (algorithm != "rtn") options.calibration = {{1, 2, 3, 4, 5, 6, 7, 8}};
    return options;
  }
  std::string refusal(const fs::path& model, const QuantizeOptions& options) {
    const fs::path out = dir_.path() / "out";
    const auto report = quantize_checkpoint(model, out, options);
    EXPECT_FALSE(report);
    EXPECT_FALSE(fs::exists(out));
    fs::remove_all(dir_.path() / "out.calibration");
    return report ? "" : report.error().message;
  }
  static std::string recipe_error(const std::string& yaml) {
    const auto recipe = parse_recipe(yaml, "recipe.yaml");
    return recipe ? "" : recipe.error().message;
  }
  test::TempDir dir_;
  fs::path demo_ = test::bundled_model("nibble-demo-14m");
};

TEST_F(BadInput, WeightsThatAreNotFiniteAreNamedByEveryAlgorithm) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    const fs::path model = model_with(std::string(kModule) + ".weight",
                                      [&](BFloat16* w, size_t) { w[77] = BFloat16(bad); });
    for (const char* algorithm : {"rtn", "gptq", "awq", "awq+gptq"})
      EXPECT_THAT(refusal(model, options_for(algorithm)), HasSubstr(kModule)) << algorithm << bad;
    fs::remove_all(model);
  }
}

TEST_F(BadInput, AModelThatLacksATensorIsRefusedBeforeAnyWork) {
  const std::string norm = "model.layers.3.input_layernorm.weight";
  const fs::path model = model_with(
      "", [](BFloat16*, size_t) {}, norm);
  for (const char* algorithm : {"rtn", "awq"}) {
    bool begun = false;
    QuantizeOptions options = options_for(algorithm);
    options.calibrated.started = [&] { begun = true; };
    options.progress = [&](size_t, size_t, const std::string&) { begun = true; };
    EXPECT_THAT(refusal(model, options), HasSubstr(norm)) << algorithm;
    EXPECT_FALSE(begun) << algorithm;
  }
}

TEST_F(BadInput, GroupsWithoutVarianceKeepTheirValue) {
  // All zero, all the same positive, all the same negative, and one value among zeros.
  constexpr int64_t kColumns = 128;
  std::vector<float> w(4 * kColumns);
  for (int64_t c = 0; c < kColumns; ++c) {
    w[static_cast<size_t>(kColumns + c)] = 0.25f;
    w[static_cast<size_t>(2 * kColumns + c)] = -3.0f;
  }
  w[3 * kColumns + 5] = 1e-20f;
  const Tensor weight{w.data(), DType::kF32, {4, kColumns}};
  const QuantFormat format{.num_bits = 4, .group_size = 128, .symmetric = false};
  ThreadPool pool(1);
  for (const std::string_view name : known_observers()) {
    const auto observer = make_observer(std::string(name)).value();
    const auto rounded = round_to_nearest(weight, format, observer, {}, pool);
    ASSERT_TRUE(rounded);
    OwnedTensor back(DType::kF32, weight.shape);
    dequantize_weight(*rounded, format, back.view(), pool);
    for (size_t i = 0; i < w.size(); ++i)
      ASSERT_NEAR(back.view().as<float>()[i], w[i], 1e-6f + 0.25f * std::fabs(w[i])) << name << i;
  }
}

TEST_F(BadInput, CalibrationWithoutTokensOrWithForeignOnesIsRefused) {
  QuantizeOptions options = options_for("awq");
  options.calibration = {};
  EXPECT_THAT(refusal(demo_, options), HasSubstr("--calibration"));
  options.calibration = {{}, {}};
  EXPECT_THAT(refusal(demo_, options), HasSubstr("no token"));
  options.calibration = {{1, 2, 1 << 30}};
  EXPECT_THAT(refusal(demo_, options), HasSubstr("1073741824"));
  // One empty sample among others is only empty.
  options.calibration = {{}, {1, 2, 3}, {}};
  EXPECT_TRUE(quantize_checkpoint(demo_, dir_.path() / "some", options));
}

TEST_F(BadInput, RecipesThatContradictThemselvesOrTheModelAreRefused) {
  const std::string head = "s:\n  m_modifiers:\n    QuantizationModifier:\n";
  EXPECT_THAT(recipe_error(head + "      scheme: W4A16\n      config_groups: {group_0: {}}\n"),
              HasSubstr("contradict"));
  EXPECT_THAT(recipe_error(head + "      schem: W4A16\n"), HasSubstr("did you mean \"scheme\""));
  EXPECT_THAT(recipe_error("s:\n  m_modifiers:\n    AWQModifer: {scheme: W4A16}\n"),
              HasSubstr("AWQModifier"));
  EXPECT_THAT(recipe_error(head + "      scheme: W4A16\n      observer: msee\n"), HasSubstr("mse"));
  EXPECT_THAT(
      recipe_error("s:\n  m_modifiers:\n    AWQModifier: {scheme: W4A16, duo_scaling: x}\n"),
      HasSubstr("duo_scaling"));
  QuantizeOptions options = options_for("rtn");
  options.recipe.ignore = {"re:model.layers.(3"};
  EXPECT_THAT(refusal(demo_, options), HasSubstr("model.layers.(3"));
  options = options_for("rtn");
  options.recipe.groups[0].targets = {"re:.*no_such_module$"};
  EXPECT_THAT(refusal(demo_, options), HasSubstr("no_such_module"));
  options = options_for("rtn");
  options.recipe.groups[0].format.group_size = 96;
  EXPECT_THAT(refusal(demo_, options), HasSubstr(kModule));
}

}  // namespace
}  // namespace nibble
