// Rounding through the 16-bit types over every bit pattern, floats into tensors, and the arena's
// two modes.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <random>
#include <vector>

#include "support/random.h"
#include "tensor/arena.h"
#include "tensor/dtype.h"

namespace nibble {
namespace {

// The nearest of `low` and its successor, ties to the even pattern, computed in double.
template <class T>
uint16_t nearest_of_two(float value, uint16_t low_bits) {
  T low;
  T high;
  low.bits = low_bits;
  high.bits = static_cast<uint16_t>(low_bits + 1);
  const double below = std::fabs(static_cast<double>(value) - static_cast<double>(float(low)));
  const double above = std::fabs(static_cast<double>(float(high)) - static_cast<double>(value));
  if (below < above || (below == above && low_bits % 2 == 0)) return low.bits;
  return high.bits;
}

template <class T>
void every_value_survives_and_midpoints_go_to_even(uint16_t largest_finite) {
  std::mt19937 random(test::test_seed());
  std::uniform_real_distribution<float> between(0, 1);
  for (uint32_t bits = 0; bits < largest_finite; ++bits) {
    T value;
    value.bits = static_cast<uint16_t>(bits);
    ASSERT_EQ(T(float(value)).bits, bits);
    ASSERT_EQ(T(-float(value)).bits, bits | 0x8000u);
    T next;
    next.bits = static_cast<uint16_t>(bits + 1);
    const float low = value;
    const float high = next;
    for (const float part : {0.5f, between(random)}) {
      const float inside = low + (high - low) * part;
      ASSERT_EQ(T(inside).bits, nearest_of_two<T>(inside, value.bits)) << inside;
    }
  }
}

TEST(DType, Float16RoundsToNearestEven) {
  every_value_survives_and_midpoints_go_to_even<Float16>(0x7bff);
  EXPECT_EQ(Float16(65519.0f).bits, 0x7bff);
  EXPECT_EQ(Float16(65520.0f).bits, 0x7c00);
  EXPECT_TRUE(std::isnan(float(Float16(std::nanf("")))));
}

TEST(DType, BFloat16RoundsToNearestEven) {
  every_value_survives_and_midpoints_go_to_even<BFloat16>(0x7f7f);
  EXPECT_TRUE(std::isinf(float(BFloat16(3.4e38f))));
  EXPECT_TRUE(std::isnan(float(BFloat16(std::nanf("")))));
}

TEST(Tensor, ValuesOfEachFloatTypeComeBackFromFloats) {
  const std::vector<float> values = {0, -0.5f, 1.75f, 96};  // every type holds them
  for (const DType dtype :
       {DType::kF32, DType::kF16, DType::kBF16, DType::kF8E5M2, DType::kF8E4M3}) {
    std::array<std::byte, 16> memory;
    const Tensor tensor{memory.data(), dtype, {4}};
    from_float(values.data(), tensor);
    std::vector<float> back(4, -1.0f);
    to_float(tensor, back.data());
    EXPECT_EQ(back, values) << dtype_name(dtype);
  }
}

TEST(Arena, CountsWhatItPlaces) {
  const auto fill = [](Arena& arena) {
    arena.allocate(1, "first");
    const size_t mark = arena.mark();
    arena.allocate(1000, "scratch");
    arena.release(mark);
    return arena.tensor(DType::kF16, {3, 100}, "last");
  };
  Arena counted;
  EXPECT_TRUE(counted.counting());
  fill(counted);
  EXPECT_EQ(counted.used(), 256u + 600);
  EXPECT_EQ(counted.peak(), 256u + 1000);
  std::vector<std::byte> memory(counted.peak());
  Arena placed(memory.data(), memory.size());
  const Tensor last = fill(placed);
  EXPECT_EQ(placed.peak(), counted.peak());
  EXPECT_EQ(last.data, memory.data() + 256);
}

TEST(ArenaDeathTest, RefusesMoreThanPlannedAndAnythingAfterTheSeal) {
  std::vector<std::byte> memory(512);
  Arena arena(memory.data(), memory.size());
  EXPECT_DEATH(arena.allocate(513, "greedy"), "greedy needs 513 bytes");
  arena.seal();
  EXPECT_DEATH(arena.allocate(1, "late"), "late allocates 1 bytes after the arena was sealed");
}

}  // namespace
}  // namespace nibble
