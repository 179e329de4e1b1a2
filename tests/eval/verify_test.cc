// Whole checkpoints pass; every kind of damage is named; cards say what changed.
#include "eval/verify.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "base/format.h"
#include "eval/card.h"
#include "quant/estimate.h"
#include "support/paths.h"
#include "support/temp_dir.h"

namespace nibble {
namespace {

using testing::Contains;
using testing::HasSubstr;

class Checkpoint : public testing::Test {
 protected:
  static QuantizeOptions options_of(const RecipeParts& parts) {
    QuantizeOptions options;
    options.num_threads = 2;
    options.recipe = parse_recipe(recipe_text(parts), "test").value();
    return options;
  }
  static RecipeParts plain() {
    RecipeParts parts;
    parts.algorithm = "rtn";
    parts.observer = "memoryless_minmax";
    return parts;
  }
  fs::path quantize(const std::string& name, const RecipeParts& parts) {
    const fs::path out = dir_.path() / name;
    const auto report = quantize_checkpoint(model_, out, options_of(parts));
    EXPECT_TRUE(report) << report.error().message;
    return out;
  }
  // Flips one bit in the middle of a tensor.
  static void damage(const fs::path& dir, const std::string& tensor) {
    for (const auto& entry : fs::directory_iterator(dir)) {
      if (entry.path().extension() != ".safetensors") continue;
      const SafetensorsFile file = SafetensorsFile::open(entry.path()).value();
      const TensorInfo* info = file.find(tensor);
      if (info == nullptr) continue;
      std::fstream bytes(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
      const auto at = static_cast<std::streamoff>(info->offset + info->num_bytes / 2);
      bytes.seekg(at);
      const int byte = bytes.get();
      bytes.seekp(at);
      bytes.put(static_cast<char>(byte ^ 4));
    }
  }
  test::TempDir dir_;
  fs::path model_ = test::bundled_model("nibble-demo-14m");
};

TEST_F(Checkpoint, AWholeOneHasNoProblemsAndADamagedTensorIsNamed) {
  const fs::path out = quantize("out", plain());
  VerifyOptions options;
  options.parent = model_;
  const auto whole = verify_checkpoint(out, options);
  ASSERT_TRUE(whole) << whole.error().message;
  EXPECT_THAT(whole->problems, testing::IsEmpty());
  EXPECT_TRUE(whole->has_manifest);
  EXPECT_TRUE(whole->compared);
  EXPECT_GT(whole->fidelity.mean_kl, 0);

  const std::string tensor = "model.layers.5.mlp.up_proj.weight_packed";
  damage(out, tensor);
  const auto damaged = verify_checkpoint(out, {});
  ASSERT_TRUE(damaged);
  EXPECT_EQ(damaged->problems.size(), 1u);
  EXPECT_THAT(damaged->problems, Contains(HasSubstr(tensor)));
}

TEST_F(Checkpoint, MissingFilesAndUnopenableOnesAreProblems) {
  const fs::path out = quantize("out", plain());
  fs::remove(out / "tokenizer.json");
  fs::resize_file(out / "config.json", 10);
  const auto report = verify_checkpoint(out, {});
  ASSERT_TRUE(report);
  EXPECT_THAT(report->problems, Contains(HasSubstr("tokenizer.json")));
  EXPECT_THAT(report->problems, Contains(HasSubstr("config.json")));
  EXPECT_FALSE(verify_checkpoint(dir_.path() / "nowhere", {}));
}

TEST_F(Checkpoint, TheEstimateOfTheSizeIsExact) {
  for (const int bits : {4, 8})
    for (const bool symmetric : {false, true}) {
      RecipeParts parts = plain();
      parts.num_bits = bits;
      parts.symmetric = symmetric;
      const auto estimate = estimate_quantization(model_, options_of(parts));
      ASSERT_TRUE(estimate) << estimate.error().message;
      const auto report = quantize_checkpoint(model_, dir_.path() / format("{}{}", bits, symmetric),
                                              options_of(parts));
      ASSERT_TRUE(report);
      EXPECT_EQ(estimate->output_bytes, report->output_bytes);
      EXPECT_EQ(estimate->num_quantized, report->num_quantized);
      EXPECT_GT(estimate->seconds, 0);
    }
}

TEST_F(Checkpoint, ACardSaysWhatChangedAndWarnsWhenItIsMoreThanOneThing) {
  const fs::path out = quantize("out", plain());
  RecipeParts parts = plain();
  parts.observer = "mse";
  const fs::path other_observer = quantize("observer", parts);
  parts.num_bits = 8;
  const fs::path other_bits = quantize("bits", parts);
  CardOptions options;
  options.compare_with = other_observer;
  options.fidelity = {{"num_tokens", 100}, {"mean_kl", 0.0125}, {"top1_agreement", 0.95}};
  const auto single = make_model_card(out, options);
  ASSERT_TRUE(single) << single.error().message;
  EXPECT_THAT(single->text, HasSubstr("A single change: observer."));
  EXPECT_THAT(single->text, HasSubstr("0.01250"));
  EXPECT_THAT(single->warnings, testing::IsEmpty());
  options.compare_with = other_bits;
  const auto several = make_model_card(out, options);
  ASSERT_TRUE(several);
  EXPECT_THAT(several->warnings, Contains(HasSubstr("weights, observer")));
  EXPECT_FALSE(make_model_card(model_, {}));
}

TEST(Recipe, PartsAndTextSayTheSame) {
  RecipeParts parts;
  parts.algorithm = "awq";
  parts.num_bits = 8;
  parts.group_size = -1;
  parts.ignore = {"lm_head"};
  const Recipe recipe = parse_recipe(recipe_text(parts), "test").value();
  EXPECT_TRUE(recipe.awq.has_value());
  EXPECT_FALSE(recipe.gptq.has_value());
  ASSERT_EQ(recipe.groups.size(), 1u);
  EXPECT_EQ(recipe.groups[0].format.num_bits, 8);
  EXPECT_EQ(recipe.groups[0].format.group_size, -1);
  EXPECT_EQ(recipe.groups[0].observer, "mse");
  EXPECT_EQ(recipe.ignore, std::vector<std::string>{"lm_head"});
}

}  // namespace
}  // namespace nibble
