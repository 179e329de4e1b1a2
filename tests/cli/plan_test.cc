// What `nibble plan` prints, word for word, and the exit codes of what does not fit.
// NIBBLE_UPDATE_GOLDEN=1 rewrites the files in tests/golden/plan.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>

#include "base/file.h"
#include "base/json.h"
#include "cli/command.h"
#include "support/paths.h"
#include "support/printed.h"
#include "support/temp_dir.h"

namespace nibble {
namespace {

using test::call;
using test::Printed;

const std::string kModel = test::golden("plan/hybrid-40b").string();

// `nibble plan` on the 40B hybrid; the model's path is MODEL in what it prints.
Printed plan(std::vector<std::string> flags, const std::string& model = kModel) {
  flags.insert(flags.begin(), model);
  Printed printed = call(cli::plan, flags);
  for (size_t at; (at = printed.out.find(model)) != std::string::npos;)
    printed.out.replace(at, model.size(), "MODEL");
  return printed;
}

void expect_words(const std::string& text, const std::string& name) {
  const fs::path path = test::golden("plan/" + name);
  if (std::getenv("NIBBLE_UPDATE_GOLDEN") != nullptr) {
    ASSERT_TRUE(write_file_durably(path, text).has_value());
    return;
  }
  const Result<std::string> golden = read_file(path);
  ASSERT_TRUE(golden) << golden.error().message;
  EXPECT_EQ(text, *golden);
}

void expect_no_line_wider_than(size_t width, const std::string& text) {
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    EXPECT_LE(end - begin, width) << text.substr(begin, end - begin);
    begin = end + 1;
  }
}

const std::vector<std::string> kPublished = {
    "--gpus",   "2xV100-32GB",    "--kv-cache-dtype", "fp8_e5m2", "--max-num-batched-tokens",
    "2048",     "--ladder",       "200000@0.85/4",    "--ladder", "240000@0.87/8",
    "--ladder", "262144@0.89/16", "--max-num-seqs",   "4"};

TEST(Plan, ThePublishedRowsOfTwoV100) {
  const auto start = std::chrono::steady_clock::now();
  const Printed printed = plan(kPublished);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
  EXPECT_EQ(printed.exit, 0) << printed.err;
  expect_words(printed.out, "two_v100.txt");
  expect_no_line_wider_than(80, printed.out.substr(printed.out.find('\n')));
}

TEST(Plan, TheUsualLadderEndsAtTheModelsOwnContext) {
  const Printed printed = plan({"--gpus", "H200", "--kv-cache-dtype", "fp8"});
  EXPECT_EQ(printed.exit, 0) << printed.err;
  expect_words(printed.out, "h200.txt");
  expect_no_line_wider_than(80, printed.out.substr(printed.out.find('\n')));
}

TEST(Plan, OneCardIsTooSmallAndTheWordsSayByHowMuchAndWhatHelps) {
  const Printed printed = plan({"--gpu", "1x32GiB"});
  EXPECT_EQ(printed.exit, 3);
  expect_words(printed.out, "one_card.txt");
  expect_no_line_wider_than(80, printed.out);
}

TEST(Plan, ATooLongContextNamesTheOneThatFits) {
  const Printed printed = plan({"--gpus", "2xV100-32GB", "--max-model-len", "262144"});
  EXPECT_EQ(printed.exit, 3);
  const std::string first = printed.out.substr(0, printed.out.find('\n'));
  EXPECT_EQ(first.find("does not fit: "), 0u) << first;
  EXPECT_NE(first.find("tokens less"), std::string::npos) << first;
  // The number it names does fit.
  const size_t open = first.rfind('(');
  const std::string length = first.substr(open + 1, first.rfind(')') - open - 1);
  EXPECT_EQ(plan({"--gpus", "2xV100-32GB", "--max-model-len", length}).exit, 0) << length;
}

TEST(Plan, AnOpenContextTakesWhatFits) {
  const Printed printed = plan({"--gpus", "2xV100-32GB", "--max-model-len", "auto"});
  EXPECT_EQ(printed.exit, 0);
  EXPECT_EQ(printed.out.find("fits with "), 0u) << printed.out.substr(0, 200);
}

TEST(Plan, JsonHoldsTheSameNumbers) {
  std::vector<std::string> flags = kPublished;
  flags.push_back("--json");
  const Printed printed = plan(flags);
  const Json json = parse_json(printed.out, "plan").value();
  EXPECT_EQ(json["verdict"], "fits");
  EXPECT_EQ(json["plan"]["kv_bytes_per_token"], 24576);
  size_t sum = 0;
  for (const Json& term : json["plan"]["terms"]) sum += term["bytes"].get<size_t>();
  EXPECT_EQ(json["plan"]["total_bytes"], sum);
  EXPECT_EQ(json["plan"]["terms"].size(), 21u) << "zero terms are there too";
  ASSERT_EQ(json["ladder"].size(), 3u);
  for (const Json& row : json["ladder"]) {
    EXPECT_TRUE(row["plan"]["fits"].get<bool>());
    EXPECT_LE(row["needed_utilization"].get<double>(), row["utilization"].get<double>());
  }
  EXPECT_EQ(json["ladder"][2]["kv_bytes_per_sequence"], size_t{6} << 30);
}

TEST(Plan, EmitsCommandsThatAskForWhatWasPlanned) {
  for (const char* what : {"serve", "systemd", "compose"}) {
    std::vector<std::string> flags = kPublished;
    flags.insert(flags.end(), {"--emit", what});
    const Printed printed = plan(flags);
    EXPECT_EQ(printed.exit, 0);
    expect_words(printed.out, std::string("emit_") + what + ".txt");
  }
  const Printed too_small = plan({"--gpu", "1x32GiB", "--emit", "serve"});
  EXPECT_EQ(too_small.exit, 3);
  EXPECT_EQ(too_small.out, "");
}

TEST(Plan, ThePictureIsWritten) {
  const test::TempDir dir;
  const std::string path = (dir.path() / "memory.svg").string();
  std::vector<std::string> flags = kPublished;
  flags.insert(flags.end(), {"--svg", path});
  EXPECT_EQ(plan(flags).exit, 0);
  const std::string svg = read_file(path).value();
  EXPECT_EQ(svg.find("<svg "), 0u);
  for (const char* label : {"weights, 17.1", "KV cache, ", "states, ", "driver, graphs, margin, "})
    EXPECT_NE(svg.find(label), std::string::npos) << label << "\n" << svg;
}

TEST(Plan, RooflineOfTwoV100) {
  const Printed printed = plan({"--gpus", "2xV100-32GB", "--roofline", "--kv-cache-dtype",
                                "fp8_e5m2", "--max-num-batched-tokens", "8192"});
  EXPECT_EQ(printed.exit, 0) << printed.err;
  expect_words(printed.out, "roofline_two_v100.txt");
}

TEST(Plan, ThisMachineIsPlannedForFromTheConfigFileAlone) {
  const Printed printed = plan({"--max-model-len", "4096"},
                               test::golden("fixtures/qwen3_5-dense/config.json").string());
  EXPECT_EQ(printed.exit, 0) << printed.err;
  EXPECT_EQ(printed.out.find("fits: 4096 tokens of context, up to 16 sequences, on cpu; "), 0u)
      << printed.out;
}

TEST(Plan, WrongFlagsAreUsageErrors) {
  EXPECT_EQ(plan({"--gpus", "2xH20"}).exit, 2);
  EXPECT_EQ(plan({"--gpus", "2xV100-32GB", "--dtype", "bfloat16"}).exit, 2);
  EXPECT_EQ(plan({"--gpus", "5xH200"}).exit, 2);
  EXPECT_EQ(plan({"--gpus", "H200", "--ladder", "many"}).exit, 2);
  EXPECT_EQ(plan({"--gpus", "H200", "--max-model-len", "300000"}).exit, 2);
  EXPECT_EQ(plan({}, "/nonexistent").exit, 2);
}

TEST(Serve, WhatDoesNotFitEndsWithCode3TheNumbersAndTheFlagsThatFit) {
  const Printed printed =
      call(cli::serve, {test::bundled_model("nibble-demo-14m").string(), "--port", "0",
                        "--max-model-len", "32768", "--kv-cache-memory-bytes", "16M"});
  EXPECT_EQ(printed.exit, 3);
  EXPECT_NE(printed.err.find("does not fit by 176.0 MiB"), std::string::npos) << printed.err;
  EXPECT_NE(printed.err.find("--max-model-len 2720"), std::string::npos) << printed.err;
  EXPECT_NE(printed.err.find("--kv-cache-memory-bytes 201326592"), std::string::npos)
      << printed.err;
}

}  // namespace
}  // namespace nibble
