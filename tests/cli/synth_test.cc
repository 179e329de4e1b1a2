// nibble synth: what the other commands make of its checkpoints.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "base/file.h"
#include "base/json.h"
#include "checkpoint/model_dir.h"
#include "cli/command.h"
#include "model/architectures.h"
#include "quant/recipe.h"
#include "support/paths.h"
#include "support/printed.h"
#include "support/temp_dir.h"

namespace nibble {
namespace {

using test::call;
using test::Printed;

TEST(Synth, OtherCommandsReadItsCheckpoints) {
  const test::TempDir dir;
  for (const bool quantized : {false, true}) {
    const std::string out = (dir.path() / (quantized ? "w4" : "bf16")).string();
    const std::string tokenizer = test::bundled_model("nibble-demo-14m").string();
    std::vector<std::string> arguments = {out,           "--like",  "demo",       "--layers", "4",
                                          "--tokenizer", tokenizer, "--manifest", "--json"};
    if (quantized) arguments.emplace_back("--quantized");
    const Printed made = call(cli::synth, arguments);
    ASSERT_EQ(made.exit, 0) << made.err;
    const Json report = parse_json(made.out, "synth").value();
    EXPECT_EQ(report["num_layers"], 4);

    const Printed inspected = call(cli::inspect, {out, "--json"});
    const Json summary = parse_json(inspected.out, "inspect").value();
    EXPECT_EQ(summary["tensor_bytes"], report["tensor_bytes"]);
    EXPECT_EQ(summary["num_quantized_modules"], quantized ? 16 : 0);

    const Printed verified = call(cli::verify, {out, "--num-threads", "2"});
    EXPECT_EQ(verified.exit, 0) << verified.err;
    EXPECT_THAT(verified.out, testing::HasSubstr("forward pass finite"));

    const Printed planned = call(cli::plan, {out, "--gpus", "V100-32GB", "--json"});
    EXPECT_EQ(planned.exit, 0) << planned.err;

    const Printed answered =
        call(cli::run, {out, "--prompt", "Hello", "--max-tokens", "4", "--num-threads", "2"});
    EXPECT_EQ(answered.exit, 0) << answered.err;
  }
}

TEST(Synth, QuantizesTheModulesThatTheBundledRecipeDoes) {
  const test::TempDir dir;
  const std::string out = (dir.path() / "w4").string();
  ASSERT_EQ(call(cli::synth, {out, "--like", "demo", "--quantized"}).exit, 0);
  const ModelDir model = ModelDir::open(out).value();
  const std::string path = std::string(NIBBLE_SOURCE_DIR) + "/recipes/w4a16-awq.yaml";
  const Recipe recipe = parse_recipe(read_file(path).value(), path).value();
  const Explanation explained =
      explain_recipe(recipe, parse_model_config(model.config()).value()).value();
  ASSERT_FALSE(explained.modules.empty());
  for (const ModuleDecision& decision : explained.modules)
    EXPECT_EQ(model.has(decision.module.name + ".weight_packed"), decision.group >= 0)
        << decision.module.name;
}

TEST(Synth, RefusesWhatIsThereAndATokenizerThatIsNot) {
  const test::TempDir dir;
  EXPECT_EQ(call(cli::synth, {dir.path().string(), "--like", "demo"}).exit, 2);
  const std::string out = (dir.path() / "out").string();
  const Printed missing = call(cli::synth, {out, "--like", "demo", "--tokenizer", "/nowhere"});
  EXPECT_NE(missing.exit, 0);
  EXPECT_THAT(missing.err, testing::HasSubstr("/nowhere/tokenizer.json"));
  EXPECT_FALSE(fs::exists(out));
  EXPECT_FALSE(fs::exists(out + ".partial"));
}

}  // namespace
}  // namespace nibble
