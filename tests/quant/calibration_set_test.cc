// Records of every layout become token ids; what cannot be one is named.
#include "quant/calibration_set.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/paths.h"
#include "support/temp_dir.h"

namespace nibble {
namespace {

using testing::HasSubstr;

class CalibrationFiles : public testing::Test {
 protected:
  fs::path file(const std::string& name, const std::string& text) {
    EXPECT_TRUE(write_file_durably(dir_.path() / name, text));
    return dir_.path() / name;
  }
  Result<CalibrationSet> load(const fs::path& path, const CalibrationOptions& options = {}) {
    return load_conversations(model_, path, options);
  }
  // A copy of the model without a chat template.
  ModelDir base_model() {
    const fs::path path = test::copy_bundled_model("nibble-demo-14m", dir_.path() / "base");
    fs::remove(path / "chat_template.jinja");
    return ModelDir::open(path).value();
  }
  test::TempDir dir_;
  ModelDir model_ = ModelDir::open(test::bundled_model("nibble-demo-14m")).value();
};

TEST_F(CalibrationFiles, TheSameConversationInTwoLayoutsIsTheSame) {
  const Result<CalibrationSet> hermes = load(file("hermes.json", R"([{"conversations": [
      {"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"},
      {"from": "gpt", "value": "Hello."}]}])"));
  const Result<CalibrationSet> openai =
      load(file("openai.jsonl",
                R"({"messages": [)"
                R"({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}, )"
                R"({"role": "assistant", "content": "Hello."}]})"));
  ASSERT_TRUE(hermes) << hermes.error().message;
  ASSERT_TRUE(openai) << openai.error().message;
  EXPECT_EQ(hermes->samples, openai->samples);
  EXPECT_EQ(hermes->num_tokens, hermes->samples[0].size());
}

TEST_F(CalibrationFiles, ParagraphsOfTextAreSamples) {
  const Result<CalibrationSet> json =
      load(file("prose.json", R"(["One line.\nAnother.", {"text": "The end."}])"));
  ASSERT_TRUE(json) << json.error().message;
  ASSERT_EQ(json->samples.size(), 2u);
  for (const char* text :
       {"\nOne line.\nAnother.\n\n \n\nThe end.\n", "One line.\r\nAnother.\r\n\r\nThe end."}) {
    const Result<CalibrationSet> prose = load(file("prose.txt", text));
    ASSERT_TRUE(prose) << prose.error().message;
    EXPECT_EQ(prose->samples, json->samples) << text;
  }
}

TEST_F(CalibrationFiles, TakesAsManyAndAsLongAsAsked) {
  const fs::path path = file("lines.json", R"(["one two three four", "five", "six", "seven"])");
  const Result<CalibrationSet> all = load(path);
  const Result<CalibrationSet> some =
      load(path, {.num_samples = 2, .skip_samples = 1, .max_seq_length = 2});
  ASSERT_TRUE(all && some);
  ASSERT_EQ(all->samples.size(), 4u);
  ASSERT_EQ(some->samples.size(), 2u);
  EXPECT_EQ(some->samples[1], all->samples[2]);
  const Result<CalibrationSet> cut = load(path, {.num_samples = 1, .max_seq_length = 2});
  ASSERT_TRUE(cut);
  EXPECT_EQ(cut->samples[0],
            std::vector<int32_t>(all->samples[0].begin(), all->samples[0].begin() + 2));
}

TEST_F(CalibrationFiles, TheShuffleDependsOnItsSeedAlone) {
  std::string list = "[";
  for (int i = 0; i < 40; ++i) list += (i == 0 ? "\"" : ", \"") + std::to_string(1000 + i) + "\"";
  const fs::path path = file("numbers.json", list + "]");
  const auto with_seed = [&](uint64_t seed) {
    return load(path, {.shuffle = true, .seed = seed}).value().samples;
  };
  EXPECT_EQ(with_seed(1), with_seed(1));
  EXPECT_NE(with_seed(1), with_seed(2));
  EXPECT_THAT(with_seed(1), testing::UnorderedElementsAreArray(load(path).value().samples));
}

TEST_F(CalibrationFiles, ABadSampleIsNamedOrPassedOver) {
  const fs::path path = file("mixed.json", R"(["good", {"question": "?"}, "also good"])");
  const Result<CalibrationSet> strict = load(path);
  ASSERT_FALSE(strict);
  EXPECT_THAT(strict.error().message, HasSubstr("mixed.json: sample 1: "));
  EXPECT_THAT(strict.error().message, HasSubstr("--skip-bad-samples"));
  const Result<CalibrationSet> lax = load(path, {.skip_bad_samples = true});
  ASSERT_TRUE(lax) << lax.error().message;
  EXPECT_EQ(lax->samples.size(), 2u);
  ASSERT_EQ(lax->skipped.size(), 1u);
  EXPECT_THAT(lax->skipped[0], HasSubstr("sample 1"));
}

TEST_F(CalibrationFiles, WithoutAUsableSampleItSaysSo) {
  const Result<CalibrationSet> none = load(file("one.json", R"(["only"])"), {.skip_samples = 1});
  ASSERT_FALSE(none);
  EXPECT_THAT(none.error().message, HasSubstr("no usable sample among 1 after 1 skipped"));
  EXPECT_FALSE(load(dir_.path() / "missing.json"));
}

TEST_F(CalibrationFiles, ABaseModelTakesTextAndNoConversations) {
  const ModelDir base = base_model();
  const fs::path prose = file("prose.txt", "Some text.\n");
  const Result<CalibrationSet> text = load_conversations(base, prose, {});
  ASSERT_TRUE(text) << text.error().message;
  EXPECT_EQ(text->samples, load(prose).value().samples);
  const Result<CalibrationSet> chat = load_conversations(
      base, file("chat.jsonl", R"({"messages": [{"role": "user", "content": "Hi"}]})"), {});
  ASSERT_FALSE(chat);
  EXPECT_THAT(chat.error().message, HasSubstr("no chat template"));
}

}  // namespace
}  // namespace nibble
