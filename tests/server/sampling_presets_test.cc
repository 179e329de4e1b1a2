// Layers of sampling defaults: the model's file, a directory, an override, a preset.
#include "server/sampling_presets.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "support/paths.h"
#include "support/temp_dir.h"

namespace nibble {
namespace {

using testing::HasSubstr;

Result<SamplingDefaults> defaults(const SamplingDefaultsOptions& options) {
  const ModelDir model = ModelDir::open(test::bundled_model("nibble-demo-14m")).value();
  return sampling_defaults(model, options);
}

TEST(SamplingDefaults, LaterLayersWin) {
  EXPECT_TRUE(defaults({}).value().config.contains("eos_token_id"));
  EXPECT_TRUE(defaults({.generation_config = "vllm"}).value().config.empty());
  const SamplingDefaults both =
      defaults({.generation_config = "vllm",
                .override_generation_config = R"({"temperature": 1.5, "max_new_tokens": 7})",
                .sampling_preset = "tools"})
          .value();
  EXPECT_EQ(both.config["temperature"], 0.4);
  EXPECT_EQ(both.config["max_new_tokens"], 7);
  EXPECT_EQ(both.max_tokens_cap, 7);
  EXPECT_EQ(with_sampling_preset(Json::object(), "creative").value()["repetition_penalty"], 1.05);
  EXPECT_EQ(with_sampling_preset(Json::object(), "general").value()["top_k"], 20);
}

TEST(SamplingDefaults, ErrorsNameTheFlag) {
  const auto message = [](const SamplingDefaultsOptions& options) {
    return defaults(options).error().message;
  };
  EXPECT_THAT(message({.generation_config = "/nonexistent"}), HasSubstr("--generation-config"));
  EXPECT_THAT(message({.override_generation_config = "{"}),
              HasSubstr("--override-generation-config"));
  EXPECT_THAT(message({.override_generation_config = "[1]"}), HasSubstr("JSON object"));
  EXPECT_THAT(message({.override_generation_config = R"({"top_p": "x"})"}), HasSubstr("top_p"));
  EXPECT_THAT(message({.sampling_preset = "creativ"}), HasSubstr("did you mean creative"));
}

}  // namespace
}  // namespace nibble
