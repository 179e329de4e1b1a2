// The two 8-bit floats that a KV cache may hold: one byte of storage, arithmetic in float.
//
// Both are written with one rounding, to nearest with ties to even, and saturate: a finite value
// beyond the largest one, and infinity, become the largest one; NaN stays NaN. Every code is read
// exactly. Source: Micikevicius et al., "FP8 Formats for Deep Learning", arXiv:2209.05433.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

#include "tensor/dtype.h"

namespace nibble {
namespace detail {

// Magnitudes only: `mantissa_bits` below an exponent biased by `bias`; the sign is the top bit.
constexpr uint8_t to_float8(float value, int mantissa_bits, int bias, float largest) {
  const uint32_t word = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint8_t>((word >> 24) & 0x80u);
  float magnitude = std::bit_cast<float>(word & 0x7fffffffu);
  if (magnitude != magnitude) return sign | 0x7fu;
  if (magnitude > largest) magnitude = largest;
  const uint32_t smallest_normal = static_cast<uint32_t>(127 + 1 - bias) << 23;
  if (std::bit_cast<uint32_t>(magnitude) < smallest_normal) {
    // Subnormal: the float adder rounds to a grid of 2^(1 - bias - mantissa_bits).
    const float grid =
        std::bit_cast<float>(static_cast<uint32_t>(127 + 24 - bias - mantissa_bits) << 23);
    const float shifted = magnitude + grid;
    return sign |
           static_cast<uint8_t>(std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(grid));
  }
  const int dropped = 23 - mantissa_bits;
  uint32_t bits = std::bit_cast<uint32_t>(magnitude);
  bits += (uint32_t{1} << (dropped - 1)) - 1 + ((bits >> dropped) & 1u);
  return sign | static_cast<uint8_t>((bits >> dropped) -
                                     (static_cast<uint32_t>(127 - bias) << mantissa_bits));
}

constexpr float from_float8(uint8_t code, int mantissa_bits, int bias, bool has_infinity) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24;
  const uint32_t magnitude = code & 0x7fu;
  const uint32_t exponent = magnitude >> mantissa_bits;
  const uint32_t mantissa = magnitude & ((1u << mantissa_bits) - 1);
  const uint32_t top = 0x7fu >> mantissa_bits;
  if (has_infinity ? exponent == top : magnitude == 0x7fu)
    return std::bit_cast<float>(sign | 0x7f800000u |
                                (has_infinity && mantissa == 0 ? 0u : 0x00400000u));
  if (exponent == 0) {
    const float grid =
        std::bit_cast<float>(static_cast<uint32_t>(127 + 1 - bias - mantissa_bits) << 23);
    const float value = static_cast<float>(mantissa) * grid;
    return sign != 0 ? -value : value;
  }
  return std::bit_cast<float>(sign | ((exponent + static_cast<uint32_t>(127 - bias)) << 23) |
                              (mantissa << (23 - mantissa_bits)));
}

constexpr std::array<float, 256> float8_table(int mantissa_bits, int bias, bool has_infinity) {
  std::array<float, 256> table{};
  for (int code = 0; code < 256; ++code)
    table[static_cast<size_t>(code)] =
        from_float8(static_cast<uint8_t>(code), mantissa_bits, bias, has_infinity);
  return table;
}

}  // namespace detail

// 1 sign, 5 exponent, 2 mantissa bits: the upper byte of an IEEE half. Largest 57344.
struct Float8E5M2 {
  static constexpr float kLargest = 57344.0f;
  static constexpr std::array<float, 256> kValues = detail::float8_table(2, 15, true);
  uint8_t bits = 0;
  Float8E5M2() = default;
  explicit Float8E5M2(float value) : bits(detail::to_float8(value, 2, 15, kLargest)) {}
  operator float() const { return kValues[bits]; }
};

// 1 sign, 4 exponent, 3 mantissa bits; no infinities, two NaN codes. Largest 448.
struct Float8E4M3 {
  static constexpr float kLargest = 448.0f;
  static constexpr std::array<float, 256> kValues = detail::float8_table(3, 7, false);
  uint8_t bits = 0;
  Float8E4M3() = default;
  explicit Float8E4M3(float value) : bits(detail::to_float8(value, 3, 7, kLargest)) {}
  operator float() const { return kValues[bits]; }
};

static_assert(sizeof(Float8E5M2) == 1 && sizeof(Float8E4M3) == 1);

template <>
struct DTypeOf<Float8E5M2> {
  static constexpr DType value = DType::kF8E5M2;
};
template <>
struct DTypeOf<Float8E4M3> {
  static constexpr DType value = DType::kF8E4M3;
};

}  // namespace nibble
