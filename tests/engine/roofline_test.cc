// The bounds against arithmetic by hand for the 40B hybrid shape: 25.67 G parameters in the MLPs,
// 2.52 G in attention, 8.34 G in linear attention, 1.27 G in the head.
#include "engine/roofline.h"

#include <gtest/gtest.h>

#include "device/planning_device.h"
#include "model/architectures.h"
#include "model/sharding.h"
#include "support/paths.h"

namespace nibble {
namespace {

Model rank_of(int world_size, DType activation) {
  const Json config = read_model_config(test::golden("plan/hybrid-40b")).value();
  const ModelSpec spec = shard(parse_model_config(config).value(), world_size).value();
  PlanningDevice device("planned", {});
  return Model::shapes(spec, parse_quantization_config(config).value(), device, activation).value();
}

void expect_near(double actual, double expected, double relative) {
  EXPECT_NEAR(actual, expected, expected * relative);
}

TEST(Roofline, WhatADecodeStepMovesIsWhatItMustMove) {
  const Model model = rank_of(1, DType::kBF16);
  const int32_t one = 1;
  const int32_t context = 200000;
  const StepCost cost = model.step_cost({&one, 1}, {&context, 1}, 1, DType::kF8E5M2);
  // 4-bit weights with a 16-bit scale and bias for 128, linear attention and head in 16 bits.
  const double packed = 28.19e9;
  const double expected = packed / 2 + packed * 4 / 128 + 8.34e9 * 2 + 1.27e9 * 2;
  expect_near(static_cast<double>(cost.linear_weight_bytes), expected, 0.005);
  EXPECT_EQ(cost.kv_bytes, int64_t{49152} * 200001)
      << "the cached tokens read, the new one written";
  const double recurrent = 2.0 * 72 * 48 * 128 * 128 * 4;
  expect_near(static_cast<double>(cost.state_bytes), recurrent + 2.0 * 72 * 10240 * 3 * 2, 1e-9);
}

TEST(Roofline, DecodeBoundsOfTwoV100) {
  const Model rank = rank_of(2, DType::kF16);
  const CardSet cards = parse_cards("2xV100-32GB").value();
  struct Row {
    int32_t batch, context;
    double tokens_per_second;
  };
  // Hand arithmetic at 4.16 bits a weight, as on disk; the device layout has 4.25.
  for (const Row& row : {Row{1, 0, 52}, Row{1, 32768, 50}, Row{1, 200000, 41}, Row{16, 0, 700},
                         Row{16, 8192, 606}, Row{16, 32768, 431}}) {
    const auto points =
        decode_roofline(rank, cards, DType::kF8E5M2, {&row.batch, 1}, {&row.context, 1}).value();
    ASSERT_EQ(points.size(), 1u);
    SCOPED_TRACE(row.context);
    expect_near(points[0].tokens_per_second, row.tokens_per_second, 0.02);
    EXPECT_TRUE(points[0].memory_bound);
  }
}

TEST(Roofline, PrefillBoundsOfTwoV100) {
  const Model rank = rank_of(2, DType::kF16);
  const CardSet cards = parse_cards("2xV100-32GB").value();
  struct Row {
    int32_t length;
    double tokens_per_second;
  };
  for (const Row& row :
       {Row{1024, 3053}, Row{8192, 2968}, Row{32768, 2708}, Row{131072, 2005}, Row{200000, 1696}}) {
    const auto points =
        prefill_roofline(rank, cards, DType::kF8E5M2, 8192, {&row.length, 1}).value();
    SCOPED_TRACE(row.length);
    expect_near(points[0].tokens_per_second, row.tokens_per_second, 0.02);
    EXPECT_FALSE(points[0].memory_bound);
  }
}

TEST(Roofline, FlopsOfAPromptByHand) {
  const Model model = rank_of(1, DType::kBF16);
  const int32_t length = 8192;
  const int32_t none = 0;
  const StepCost cost = model.step_cost({&length, 1}, {&none, 1}, 1, DType::kF16);
  expect_near(static_cast<double>(cost.linear_flops) / length, 73.1e9, 0.005);
  // 24 layers x 4 x 24 heads x 256 a position, half of the positions on average.
  EXPECT_EQ(cost.attention_flops, int64_t{24} * 4 * 24 * 256 * (int64_t{8192} * 8193 / 2));
  expect_near(static_cast<double>(cost.delta_net_flops) / length, 180e3 * 48 * 72, 0.01);
}

TEST(Roofline, RefusesCardsItKnowsNothingAbout) {
  const Model rank = rank_of(2, DType::kBF16);
  const int32_t one = 1;
  EXPECT_FALSE(
      decode_roofline(rank, parse_cards("2x32GiB").value(), DType::kF16, {&one, 1}, {&one, 1})
          .has_value());
  const auto no_bf16 =
      decode_roofline(rank, parse_cards("2xV100-32GB").value(), DType::kF16, {&one, 1}, {&one, 1});
  ASSERT_FALSE(no_bf16.has_value());
  EXPECT_NE(no_bf16.error().message.find("use float16"), std::string::npos);
}

}  // namespace
}  // namespace nibble
