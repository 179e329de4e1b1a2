// The load report's arithmetic on made-up times.
#include "eval/load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nibble {
namespace {

LoadSample sample(double ttft_s, double latency_s, int num_tokens) {
  LoadSample out;
  out.ok = true;
  out.num_prompt_tokens = 10;
  out.num_output_tokens = num_tokens;
  out.ttft_s = ttft_s;
  out.latency_s = latency_s;
  out.itl_s = {0.01, 0.03};
  return out;
}

TEST(LoadReport, CountsOnlyWhatSucceeded) {
  LoadSample failed;
  failed.error = "HTTP 500";
  const Json report = load_report({sample(0.1, 0.4, 4), sample(0.3, 0.3, 1), failed}, 2.0, {});
  EXPECT_EQ(report["completed"], 2);
  EXPECT_EQ(report["failed"], 1);
  EXPECT_EQ(report["total_input_tokens"], 20);
  EXPECT_EQ(report["total_output_tokens"], 5);
  EXPECT_DOUBLE_EQ(report["output_throughput"], 2.5);
  EXPECT_NEAR(report["median_ttft_ms"].get<double>(), 200, 1e-9);
  EXPECT_NEAR(report["mean_tpot_ms"].get<double>(), 100, 1e-9);  // the one-token answer has none
  EXPECT_NEAR(report["p99_itl_ms"].get<double>(), 30, 1e-9);
  EXPECT_NEAR(report["p99_ttft_ms"].get<double>(), 298, 1e-9);  // interpolated as numpy does
  EXPECT_TRUE(report["request_goodput"].is_null());
}

TEST(LoadReport, CountsGoodputOverAllGoals) {
  const Json report = load_report({sample(0.1, 0.4, 4), sample(0.3, 0.3, 1)}, 1.0,
                                  {.ttft_ms = 200, .tpot_ms = 150});
  EXPECT_DOUBLE_EQ(report["request_goodput"], 1.0);
  const Json none = load_report({sample(0.1, 0.4, 4)}, 1.0, {.tpot_ms = 50});
  EXPECT_DOUBLE_EQ(none["request_goodput"], 0.0);
  EXPECT_THAT(load_table(none), ::testing::HasSubstr("Request goodput (req/s):"));
}

TEST(LoadReport, SurvivesNothing) {
  const Json report = load_report({}, 0, {});
  EXPECT_EQ(report["completed"], 0);
  EXPECT_EQ(report["median_ttft_ms"], 0.0);
}

}  // namespace
}  // namespace nibble
