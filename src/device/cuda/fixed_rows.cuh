// Writing FixedRows from inside the kernel that makes the activations.
#pragma once

#include "device/cuda/fixed_rows.h"

namespace nibble::cuda {

// Each half of a warp holds the 128 inputs of a group, 8 a lane; all of its lanes call, or none.
// `piece`: which 8 inputs of the token.
__device__ __forceinline__ void write_fixed(const float (&x)[8], int token, int64_t piece,
                                            const FixedRows& to) {
  const uint32_t half_warp = 0xffffu << (threadIdx.x & 16);
  // As integers, magnitudes order like floats, and NaN is above all.
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t magnitude = __float_as_uint(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
#pragma unroll
  for (int offset = 8; offset > 0; offset /= 2) {
    const uint32_t other = __shfl_xor_sync(half_warp, largest, offset);
    largest = other > largest ? other : largest;
  }
  const auto biased = static_cast<int>(largest >> 23);
  const int exponent = (biased > 27 ? biased : 27) - 127;
  const float inverse = __uint_as_float(static_cast<uint32_t>(127 + 13 - exponent) << 23);
  // Infinities and NaN make all products of the group NaN.
  const float unit = biased == 255
                         ? __uint_as_float(0x7fc00000u)
                         : __uint_as_float(static_cast<uint32_t>(127 - 13 + exponent) << 23);
  int high_sum = 0;
  int low_sum = 0;
  uint32_t high[2] = {};
  uint32_t low[2] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int value = __float2int_rn(x[i] * inverse);
    const int h = (value + 128) >> 8;
    const int l = value - 256 * h;
    high_sum += h;
    low_sum += l;
    constexpr int kByte[4] = {0, 2, 1, 3};
    high[i / 4] |= static_cast<uint32_t>(h & 255) << (8 * kByte[i % 4]);
    low[i / 4] |= static_cast<uint32_t>(l & 255) << (8 * kByte[i % 4]);
  }
  const auto add_lanes = [&](int offset) {
    high_sum += __shfl_xor_sync(half_warp, high_sum, offset);
    low_sum += __shfl_xor_sync(half_warp, low_sum, offset);
  };
  const int64_t group = piece / 16;
  const auto inner = static_cast<int>(piece % 16);
  add_lanes(1);
  add_lanes(2);
  if (to.parts != nullptr && inner % 4 == 0) {
    int32_t* parts = to.parts + group * 32 + inner / 4 * 2;
    const auto column = [&](int c) -> int32_t& { return parts[c / 2 * 8 + c % 2]; };
    if (to.num_tokens <= 4) {
      column(token) = -high_sum;
      column(4 + token) = -low_sum;
    } else {
      column(token) = -256 * high_sum - low_sum;
    }
  }
  add_lanes(4);
  add_lanes(8);
  int8_t* at = to.digits + ((group * 2 + inner / 8) * 2 * to.num_tokens + token) * 64 +
               inner % 4 * 16 + inner / 4 % 2 * 8;
  *reinterpret_cast<uint2*>(at) = make_uint2(high[0], high[1]);
  *reinterpret_cast<uint2*>(at + to.num_tokens * 64) = make_uint2(low[0], low[1]);
  if (inner != 0) return;
  auto* columns = static_cast<uint2*>(to.columns) + group * fixed_columns(to.num_tokens);
  if (to.num_tokens <= 4) {
    columns[token] = make_uint2(static_cast<uint32_t>(-high_sum), __float_as_uint(unit * 256));
    columns[4 + token] = make_uint2(static_cast<uint32_t>(-low_sum), __float_as_uint(unit));
  } else {
    columns[token] =
        make_uint2(static_cast<uint32_t>(-256 * high_sum - low_sum), __float_as_uint(unit));
  }
}

}  // namespace nibble::cuda
