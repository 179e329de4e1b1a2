// What nibble quantize and nibble recipe explain print, for people and for machines.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "base/file.h"
#include "base/hash.h"
#include "base/json.h"
#include "cli/command.h"
#include "support/paths.h"
#include "support/temp_dir.h"

namespace nibble {
namespace {

using testing::HasSubstr;
using testing::Not;

// Two scales tried, two modules a full-attention layer: quick.
constexpr const char* kRecipe = R"(default_stage:
  default_modifiers:
    AWQModifier: {n_grid: 2}
    QuantizationModifier:
      ignore: ['re:.*lm_head', 're:.*no_such_module']
      config_groups:
        group_0:
          targets: ['re:.*self_attn.[kv]_proj$']
          weights: {num_bits: 4, type: int, symmetric: false, group_size: 128, strategy: group,
                    observer: memoryless_minmax}
)";

class Quantize : public testing::Test {
 protected:
  struct Outcome {
    int exit;
    std::string out;
    std::string error;
  };
  template <class Command>
  static Outcome run(Command command, const std::vector<std::string>& arguments) {
    testing::internal::CaptureStderr();
    testing::internal::CaptureStdout();
    const int exit = command(cli::Arguments(arguments));
    std::string out = testing::internal::GetCapturedStdout();
    return {exit, std::move(out), testing::internal::GetCapturedStderr()};
  }
  Outcome quantize(std::vector<std::string> flags) {
    std::vector<std::string> arguments = {model_,
                                          out_.string(),
                                          "--recipe",
                                          recipe_.string(),
                                          "--calibration",
                                          samples_,
                                          "--num-calibration-samples",
                                          "1",
                                          "--max-seq-length",
                                          "32",
                                          "--num-threads",
                                          "2"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return run(cli::quantize, arguments);
  }
  void write_recipe(std::string_view text) { std::ofstream(recipe_) << text; }
  void SetUp() override { write_recipe(kRecipe); }

  test::TempDir dir_;
  fs::path out_ = dir_.path() / "out";
  fs::path recipe_ = dir_.path() / "recipe.yaml";
  std::string model_ = test::bundled_model("nibble-demo-14m").string();
  std::string samples_ =
      (fs::path(NIBBLE_SOURCE_DIR) / "models/calibration/hermes-style.json").string();
};

TEST_F(Quantize, TheJsonLogHasALineForEachLayerAndTheTimesThatTheReportLeavesOut) {
  const Outcome outcome = quantize({"--json", "--seed", "7", "--without", "shortlist"});
  ASSERT_EQ(outcome.exit, 0) << outcome.error;
  std::vector<Json> events;
  for (size_t begin = 0; begin < outcome.out.size();) {
    const size_t end = outcome.out.find('\n', begin);
    events.push_back(parse_json(outcome.out.substr(begin, end - begin), "event").value());
    begin = end + 1;
  }
  ASSERT_EQ(events.size(), 13u);  // 12 layers, and the end
  int num_searched = 0;
  for (size_t i = 0; i < 12; ++i) {
    EXPECT_EQ(events[i]["event"], "layer");
    EXPECT_EQ(events[i]["layer"], i);
    EXPECT_GT(events[i]["elapsed_seconds"], 0);
    if (events[i]["mappings"].empty()) continue;
    ++num_searched;
    EXPECT_GT(events[i]["search_seconds"], 0);
    EXPECT_GT(events[i]["forward_seconds"], 0);
    EXPECT_LE(events[i]["smoothing_check"], 0x1p-7);
  }
  EXPECT_EQ(num_searched, 3);
  EXPECT_EQ(events[12]["event"], "done");
  EXPECT_GT(events[12]["seconds"], 0);
  ASSERT_EQ(events[12]["warnings"].size(), 1u);
  EXPECT_THAT(events[12]["warnings"][0].get<std::string>(), HasSubstr("no_such_module"));

  const std::string text = read_file(out_ / "quantization_report.json").value();
  const Json report = parse_json(text, "report").value();
  EXPECT_EQ(events[12]["report"], report);
  EXPECT_THAT(text, Not(HasSubstr("seconds")));
  EXPECT_EQ(report["mode"], "best without shortlist");
  EXPECT_EQ(report["calibration"]["seed"], 7);
  EXPECT_EQ(report["calibration"]["file"], "hermes-style.json");
  EXPECT_EQ(report["source_sha256"].size(), 3u);  // shards
  for (const auto& [file, hash] : report["source_sha256"].items())
    EXPECT_EQ(hash, sha256_file(test::bundled_model("nibble-demo-14m") / file).value());
  EXPECT_EQ(report["modules"].size(), 6u);
  EXPECT_GT(report["modules"]["model.layers.7.self_attn.v_proj"]["relative_error"], 0);
  for (const char* key : {"nibble_version", "recipe_sha256", "calibration_sha256"})
    EXPECT_FALSE(report[key].get<std::string>().empty()) << key;
  const Json& mapping = report["mappings"][0];
  EXPECT_EQ(mapping["smooth"], "model.layers.3.input_layernorm");
  EXPECT_LE(mapping["loss"], mapping["initial_loss"]);
  EXPECT_LE(mapping["smallest_scale"], mapping["largest_scale"]);
}

TEST_F(Quantize, PeopleSeeALineForEachLayerWithTheTimeToGo) {
  const Outcome outcome = quantize({});
  ASSERT_EQ(outcome.exit, 0) << outcome.error;
  EXPECT_THAT(outcome.error, HasSubstr("layer 4/12  input_layernorm "));
  EXPECT_THAT(outcome.error, HasSubstr("smoothing moved "));
  EXPECT_THAT(outcome.error, HasSubstr(" s to go"));
  EXPECT_THAT(outcome.out, HasSubstr("6 modules quantized, 88 kept"));
}

TEST_F(Quantize, ADryRunSaysWhatItWouldTakeAndWritesNothing) {
  const Outcome people = quantize({"--dry-run"});
  ASSERT_EQ(people.exit, 0) << people.error;
  EXPECT_THAT(people.out, HasSubstr("would quantize 6 modules and keep 88"));
  const Outcome machine = quantize({"--dry-run", "--json"});
  const Json estimate = parse_json(machine.out, "estimate").value();
  for (const char* key : {"output_bytes", "memory_bytes", "disk_bytes", "seconds"})
    EXPECT_GT(estimate[key], 0) << key;
  EXPECT_FALSE(fs::exists(out_));
  EXPECT_FALSE(fs::exists(out_.string() + ".calibration"));
}

TEST_F(Quantize, RecipeExplainNamesTheRuleOfEveryModule) {
  const Outcome outcome =
      run(cli::recipe, std::vector<std::string>{"explain", recipe_.string(), model_});
  EXPECT_EQ(outcome.exit, 0);
  EXPECT_THAT(outcome.out, HasSubstr("quantize  model.layers.3.self_attn.k_proj  (target "
                                     "re:.*self_attn.[kv]_proj$)"));
  EXPECT_THAT(outcome.out,
              HasSubstr("keep      model.layers.0.mlp.down_proj  (no target matches)"));
  EXPECT_EQ(std::ranges::count(outcome.out, '\n'), 94);
  EXPECT_THAT(outcome.error,
              HasSubstr("warning: ignore \"re:.*no_such_module\" matches no module"));
}

// Followed in part, each of these would end in a checkpoint that is not what the recipe says.
TEST_F(Quantize, ARecipeThatCannotBeFollowedIsRefusedBeforeAnyWork) {
  const std::string head = "s:\n  s_modifiers:\n    QuantizationModifier:\n";
  const auto group = [&](const std::string& weights) {
    return head + "      config_groups: {g: {targets: [Linear], weights: {" + weights + "}}}\n";
  };
  const std::string whole = "num_bits: 4, symmetric: false, group_size: 128, strategy: group";
  const std::pair<std::string, const char*> cases[] = {
      {group("num_bits: 4, group_size: 128, strategy: channel"), "strategy is channel"},
      {group("num_bits: 4, group_size: -1, strategy: group"), "group_size is -1"},
      {group("num_bits: 4, group_size: 96, strategy: group"), "32, 64 or 128"},
      {group("num_bits: 3, group_size: 128"), "num_bits is 3"},
      {group("num_bit: 4"), "did you mean \"num_bits\""},
      {group(whole + ", observer_kwargs: {maxshrink: 0.5}"), "observer_kwargs"},
      {group(whole + ", observer: 5"), "observer is 5"},
      {group(whole + ", observer: msee"), "mse"},
      {head + "      config_groups:\n        g: {targets: [Linear], weights: {" + whole +
           "}}\n        h: {targets: [Linear], weights: {num_bits: 8, group_size: 128}}\n",
       "two config_groups target \"Linear\""},
      {head + "      config_groups: {g: {format: nvfp4, weights: {" + whole + "}}}\n", "nvfp4"},
      {head + "      config_groups: {g: {target: [Linear]}}\n", "did you mean \"targets\""},
      {head + "      scheme: W4A16\n    GPTQModifier:\n      scheme: W8A16\n",
       "both say what to quantize"},
      {head + "      scheme: W4A16\n      ignore: [Linear]\n", "nothing is left to quantize"},
      {head + "      scheme: W4A16\n      ignore: ['re:model.(']\n", "ignore: \"model.(\""},
      {head + "      scheme: W4A16\n      bypass_divisibility_checks: true\n", "divide"},
      {head + "      scheme: W4A16\n      targets: ['re:.*nothing']\n", "matches no module"},
      {"s:\n  s_modifiers:\n    AWQModifer: {scheme: W4A16}\n", "did you mean \"AWQModifier\""},
      {"s:\n  s_modifiers:\n    AWQModifier: {scheme: W4A16, balance_layers: [x]}\n",
       "unknown key \"balance_layers\""},
      {"s:\n  s_modifiers:\n    GPTQModifier: {scheme: W4A16, block_size: 0}\n", "block_size is 0"},
      {"", "expected a mapping of stages"},
      {"a:\n  b: 1\n  b: 2\n", "appears twice"}};
  for (const auto& [text, part] : cases) {
    write_recipe(text);
    const Outcome outcome = quantize({});
    EXPECT_EQ(outcome.exit, 2) << text << outcome.error;
    EXPECT_THAT(outcome.error, HasSubstr(part)) << text;
    EXPECT_EQ(std::ranges::count(outcome.error, '\n'), 1) << outcome.error;
    EXPECT_FALSE(fs::exists(out_)) << text;
  }
  write_recipe(kRecipe);
  const Outcome outcome = quantize({"--without", "shortlst"});
  EXPECT_EQ(outcome.exit, 2);
  EXPECT_THAT(outcome.error, HasSubstr("did you mean \"shortlist\""));
}

}  // namespace
}  // namespace nibble
