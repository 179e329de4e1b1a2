// The 8-bit floats of the KV cache: every code read exactly, every write the nearest code.
#include "tensor/float8.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "support/random.h"

namespace nibble {
namespace {

struct Format {
  int mantissa_bits;
  int bias;
  uint8_t largest_finite;  // code
};
constexpr Format kE5M2 = {2, 15, 0x7b};
constexpr Format kE4M3 = {3, 7, 0x7e};

// By the definition of the format, in double.
double value_of(const Format& format, int magnitude) {
  const int exponent = magnitude >> format.mantissa_bits;
  const int mantissa = magnitude & ((1 << format.mantissa_bits) - 1);
  const int unit = 1 - format.bias - format.mantissa_bits;
  if (exponent == 0) return std::ldexp(mantissa, unit);
  return std::ldexp((1 << format.mantissa_bits) + mantissa, unit + exponent - 1);
}

template <class T>
void every_code_reads_exactly(const Format& format) {
  for (int code = 0; code < 256; ++code) {
    SCOPED_TRACE(code);
    T value;
    value.bits = static_cast<uint8_t>(code);
    const int magnitude = code & 0x7f;
    const double sign = code < 128 ? 1.0 : -1.0;
    if (magnitude <= format.largest_finite) {
      EXPECT_EQ(static_cast<double>(float(value)), sign * value_of(format, magnitude));
      EXPECT_EQ(std::signbit(float(value)), code >= 128);
      EXPECT_EQ(T(float(value)).bits, code) << "a stored value is stored as itself";
    } else if (format.mantissa_bits == 2 && magnitude == 0x7c) {
      EXPECT_EQ(static_cast<double>(float(value)), sign * HUGE_VAL);
    } else {
      EXPECT_TRUE(std::isnan(float(value)));
    }
  }
}

template <class T>
void writes_go_to_the_nearest_code_and_ties_to_even(const Format& format) {
  std::mt19937 random(test::test_seed());
  std::uniform_real_distribution<float> between(0, 1);
  for (int low = 0; low < format.largest_finite; ++low) {
    const double below = value_of(format, low);
    const double above = value_of(format, low + 1);
    for (const double part :
         {0.0, 0.5, 0.5 - 0x1p-12, 0.5 + 0x1p-12, static_cast<double>(between(random))}) {
      const auto value = static_cast<float>(below + part * (above - below));
      const double to_low = static_cast<double>(value) - below;
      const double to_high = above - static_cast<double>(value);
      const int expected = to_low < to_high || (to_low == to_high && low % 2 == 0) ? low : low + 1;
      ASSERT_EQ(T(value).bits, expected) << value;
      ASSERT_EQ(T(-value).bits, expected | 0x80) << value;
    }
  }
}

template <class T>
void what_is_too_large_saturates(const Format& format) {
  for (const float value : {T::kLargest, std::nextafter(T::kLargest, HUGE_VALF),
                            T::kLargest * 1.124f, T::kLargest * 2, 3e38f, HUGE_VALF}) {
    EXPECT_EQ(T(value).bits, format.largest_finite) << value;
    EXPECT_EQ(T(-value).bits, format.largest_finite | 0x80) << value;
  }
  EXPECT_TRUE(std::isnan(float(T(NAN))));
}

TEST(Float8, EveryCodeReadsExactly) {
  every_code_reads_exactly<Float8E5M2>(kE5M2);
  every_code_reads_exactly<Float8E4M3>(kE4M3);
}

TEST(Float8, E5M2IsTheUpperByteOfAHalf) {
  for (int code = 0; code < 256; ++code) {
    Float8E5M2 value;
    value.bits = static_cast<uint8_t>(code);
    const float half = Float16::to_float(static_cast<uint16_t>(code << 8));
    if (std::isnan(half)) {
      EXPECT_TRUE(std::isnan(float(value)));
    } else {
      EXPECT_EQ(float(value), half) << code;
    }
  }
}

TEST(Float8, WritesGoToTheNearestCodeAndTiesToEven) {
  writes_go_to_the_nearest_code_and_ties_to_even<Float8E5M2>(kE5M2);
  writes_go_to_the_nearest_code_and_ties_to_even<Float8E4M3>(kE4M3);
}

TEST(Float8, WhatIsTooLargeSaturatesAndNaNStays) {
  EXPECT_EQ(Float8E5M2::kLargest, 57344.0f);
  EXPECT_EQ(Float8E4M3::kLargest, 448.0f);
  what_is_too_large_saturates<Float8E5M2>(kE5M2);
  what_is_too_large_saturates<Float8E4M3>(kE4M3);
}

}  // namespace
}  // namespace nibble
