// nibble bench: every measurement runs on the small shape, and its JSON holds what its table shows.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "base/json.h"
#include "cli/command.h"
#include "support/paths.h"
#include "support/printed.h"

namespace nibble {
namespace {

using test::Printed;

Printed bench(const std::vector<std::string>& arguments) {
  return test::call(cli::bench, arguments);
}

Json bench_json(std::vector<std::string> arguments) {
  for (const char* flag : {"--device", "cpu", "--num-threads", "2", "--repeats", "2", "--json"})
    arguments.emplace_back(flag);
  const Printed printed = bench(std::move(arguments));
  EXPECT_EQ(printed.exit, 0) << printed.err;
  const Result<Json> json = parse_json(printed.out, "bench");
  EXPECT_TRUE(json) << printed.out;
  if (!json) return {};
  EXPECT_GT((*json)["read_bytes_per_second"], 1e8);
  EXPECT_GT((*json)["matrix_flops_per_second"], 1e8);
  EXPECT_GT((*json)["weight_bytes"], 1'000'000);
  return *json;
}

void expect_close(double a, double b) {
  EXPECT_NEAR(a, b, 1e-6 * b);
}

TEST(Bench, DecodeDividesNeededBytesByTimeAndBandwidth) {
  const Json report = bench_json({"decode", "--like", "demo", "--layers", "4", "--batch", "1,3",
                                  "--context", "100", "--kv-cache-dtype", "fp8_e5m2"});
  ASSERT_EQ(report["rows"].size(), 2u);
  for (const Json& row : report["rows"]) {
    const double seconds = row["ms_per_step"].get<double>() / 1e3;
    expect_close(row["tokens_per_second"], row["batch"].get<double>() / seconds);
    expect_close(row["bytes_per_second"], row["needed_bytes"].get<double>() / seconds);
    expect_close(row["share_of_bandwidth"], row["bytes_per_second"].get<double>() /
                                                report["read_bytes_per_second"].get<double>());
    // One full-attention layer of four: K and V of 2 heads of 128, a byte each, read for 100 tokens
    // and written for one.
    EXPECT_EQ(row["kv_bytes"], row["batch"].get<int>() * 2 * 2 * 128 * 101);
  }
  EXPECT_EQ(report["rows"][0]["weight_bytes"], report["rows"][1]["weight_bytes"]);
  EXPECT_EQ(3 * report["rows"][0]["state_bytes"].get<int64_t>(),
            report["rows"][1]["state_bytes"].get<int64_t>());
}

TEST(Bench, PrefillSharesOfTimeAddUp) {
  const Json report =
      bench_json({"prefill", "--model", test::bundled_model("nibble-demo-14m").string(), "--chunk",
                  "70", "--context", "0,33"});
  ASSERT_EQ(report["rows"].size(), 2u);
  for (const Json& row : report["rows"]) {
    const double seconds = row["ms_per_step"].get<double>() / 1e3;
    expect_close(row["flops_per_second"], row["flops"].get<double>() / seconds);
    double sum = 0;
    for (const auto& [name, share] : row["time_shares"].items()) sum += share.get<double>();
    EXPECT_NEAR(sum, 1, 1e-9);
    EXPECT_GT(row["time_shares"]["linear"], 0);
    EXPECT_GT(row["time_shares"]["attention"], 0);
    EXPECT_GT(row["time_shares"]["delta_net"], 0);
    EXPECT_EQ(row["time_shares"]["moe"], 0);
  }
  EXPECT_GT(report["rows"][1]["flops"], report["rows"][0]["flops"]);  // attends to more
}

TEST(Bench, KernelsCoverProductsAttentionAndTheDeltaRule) {
  const Json report = bench_json({"kernels", "--like", "demo", "--layers", "4", "--tokens", "1,8",
                                  "--batch", "2", "--context", "64", "--chunk", "65"});
  std::map<std::string, int> rows;
  for (const Json& row : report["rows"]) {
    ++rows[row["operation"]];
    EXPECT_GT(row["us"], 0) << dump_json(row);
    EXPECT_GT(row["share_of_roofline"], 0) << dump_json(row);
  }
  // Projections of attention, of the delta rule and of the MLP, and the head: each at both sizes.
  EXPECT_EQ(rows["linear"], (4 + 5 + 3 + 1) * 2);
  EXPECT_EQ(rows["attention"], 2);
  EXPECT_EQ(rows["gated_delta_net"], 2);
}

TEST(Bench, ARowThatDoesNotFitSaysWhyAndTheOthersRun) {
  const Json report =
      bench_json({"decode", "--like", "demo", "--layers", "4", "--batch", "1,1000000", "--context",
                  "32000", "--kv-cache-dtype", "float32"});
  ASSERT_EQ(report["rows"].size(), 2u);
  EXPECT_GT(report["rows"][0]["tokens_per_second"], 0);
  EXPECT_THAT(report["rows"][1]["error"].get<std::string>(), testing::HasSubstr("does not fit"));
}

TEST(Bench, WrongFlagsAreOneLine) {
  EXPECT_THAT(bench({"sideways"}).err, testing::HasSubstr("say what to measure: serve, decode"));
  EXPECT_THAT(bench({"decode"}).err, testing::HasSubstr("give --model DIR or --like SHAPE"));
  const Printed list = bench({"decode", "--like", "demo", "--batch", "1,x"});
  EXPECT_EQ(list.exit, 2);
  EXPECT_THAT(list.err, testing::HasSubstr("--batch 1,x: expected whole numbers"));
  const Printed far =
      bench({"decode", "--like", "demo", "--layers", "4", "--context", "40000", "--device", "cpu"});
  EXPECT_EQ(far.exit, 2);
  EXPECT_THAT(far.err, testing::HasSubstr("at most 32768 tokens"));
}

}  // namespace
}  // namespace nibble
