// bfloat16 weights as float16: every value there is, what is refused, what stays as it was.
#include "model/half_weights.h"

#include <gtest/gtest.h>

#include <cmath>

namespace nibble {
namespace {

// One weight, whatever its name.
struct OneWeight final : WeightSource {
  LinearWeight weight;
  bool has(std::string_view) const override { return true; }
  Result<Tensor> tensor(std::string_view, const Shape& expected) const override {
    return weight.dense.reshaped(expected);
  }
  Result<LinearWeight> linear(std::string_view, int64_t, int64_t) const override { return weight; }
};

std::vector<uint16_t> all_bfloats() {
  std::vector<uint16_t> bits(size_t{1} << 16);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint16_t>(i);
  return bits;
}
float value_of(uint16_t bits) {
  BFloat16 value;
  value.bits = bits;
  return value;
}

TEST(HalfWeights, EveryBfloatBecomesTheNearestHalf) {
  std::vector<uint16_t> bits = all_bfloats();
  std::erase_if(bits, [](uint16_t b) {
    return std::isfinite(value_of(b)) && std::fabs(value_of(b)) > 65504;
  });
  const auto count = static_cast<int64_t>(bits.size());
  OneWeight source;
  source.weight.dense = {bits.data(), DType::kBF16, {1, count}};
  const HalfWeights halves(source);
  const LinearWeight half = halves.linear("w", 1, count).value();
  ASSERT_EQ(half.dense.dtype, DType::kF16);
  ASSERT_EQ(half.dense.shape, source.weight.dense.shape);
  int64_t lost = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float from = value_of(bits[static_cast<size_t>(i)]);
    const Float16 to = half.dense.as<Float16>()[i];
    if (std::isnan(from)) {
      EXPECT_TRUE(std::isnan(static_cast<float>(to)));
      continue;
    }
    EXPECT_EQ(to.bits, Float16(from).bits) << from;
    if (std::fabs(from) >= 0x1p-14f) {
      EXPECT_EQ(static_cast<float>(to), from);
    }
    lost += from != 0 && static_cast<float>(to) == 0;
  }
  EXPECT_GT(lost, 0);
  EXPECT_EQ(halves.lost(), lost);
}

TEST(HalfWeights, ValuesBeyondAreRefused) {
  std::vector<uint16_t> bits = {BFloat16(1.0f).bits, BFloat16(-65536.0f).bits,
                                BFloat16(65280.0f).bits, BFloat16(1e30f).bits};
  OneWeight source;
  source.weight.dense = {bits.data(), DType::kBF16, {1, 4}};
  const HalfWeights halves(source);
  const auto found = halves.linear("layers.0.mlp.up_proj", 1, 4);
  ASSERT_FALSE(found);
  EXPECT_EQ(found.error().message,
            "\"layers.0.mlp.up_proj\": 2 of 4 values are larger than float16 holds (65504); use "
            "--dtype bfloat16");
  EXPECT_FALSE(halves.tensor("stack", {2, 2}));
}

TEST(HalfWeights, OfPackedWeightsTheScaleIsConverted) {
  std::vector<int32_t> packed = {1, 2};
  std::vector<uint16_t> scale = {BFloat16(0.5f).bits};
  OneWeight source;
  source.weight.format = {4, 16, true};
  source.weight.packed = {packed.data(), DType::kI32, {1, 2}};
  source.weight.scale = {scale.data(), DType::kBF16, {1, 1}};
  const HalfWeights halves(source);
  const LinearWeight half = halves.linear("w", 1, 16).value();
  EXPECT_EQ(half.packed.data, packed.data());
  EXPECT_EQ(half.scale.dtype, DType::kF16);
  EXPECT_EQ(static_cast<float>(half.scale.as<Float16>()[0]), 0.5f);
  EXPECT_EQ(scale[0], BFloat16(0.5f).bits);
}

TEST(HalfWeights, VectorsAndOtherTypesStay) {
  std::vector<uint16_t> bits = {BFloat16(1.0f).bits, BFloat16(2.0f).bits};
  std::vector<float> floats = {3, 4};
  OneWeight source;
  source.weight.dense = {bits.data(), DType::kBF16, {2}};
  const HalfWeights halves(source);
  EXPECT_EQ(halves.tensor("norm", {2}).value().data, bits.data());
  // Tensors outlive the next ones.
  const Tensor first = halves.tensor("embed", {2, 1}).value();
  const Tensor second = halves.tensor("conv", {1, 2}).value();
  EXPECT_NE(first.data, second.data);
  EXPECT_EQ(static_cast<float>(first.as<Float16>()[1]), 2.0f);
  source.weight.dense = {floats.data(), DType::kF32, {1, 2}};
  EXPECT_EQ(halves.linear("w", 1, 2).value().dense.data, floats.data());
  EXPECT_EQ(halves.lost(), 0);
}

}  // namespace
}  // namespace nibble
