// A thread's view of weights in 12 bits; the form is described in compact.h.
#pragma once

#include "device/cuda/compact.h"

namespace nibble::cuda {

// What the four bits that are not stored are in every weight: exponents 112 to 127.
constexpr uint32_t kCompactFixed = 0x38003800u;
constexpr uint32_t kCompactStored = 0x87ff87ffu;
constexpr int kCompactExponent = 112;

// (x & mask) | rest, one logic instruction.
__device__ __forceinline__ uint32_t and_or(uint32_t x, uint32_t mask, uint32_t rest) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;\n" : "=r"(result) : "r"(x), "r"(mask), "r"(rest));
  return result;
}

// The four pairs of a step, still to be multiplied by compact_scale() of their rows.
__device__ __forceinline__ void compact_step(uint32_t w0, uint32_t w1, uint32_t w2,
                                             uint32_t (&a)[4]) {
  a[0] = and_or(w0, kCompactStored, kCompactFixed);
  a[1] = and_or(w1, kCompactStored, kCompactFixed);
  a[2] = and_or(w2, kCompactStored, kCompactFixed);
  uint32_t last = and_or(w0 >> 11, 0x000f000fu, kCompactFixed);
  last = and_or(w1 >> 7, 0x00f000f0u, last);
  last = and_or(w2 >> 3, 0x07000700u, last);
  a[3] = and_or(w2 << 1, 0x80008000u, last);
}

// 2^(first - 112).
__device__ __forceinline__ float compact_scale(CompactRow row) {
  return __uint_as_float(static_cast<uint32_t>(row.first - kCompactExponent + 127) << 23);
}
// What a listed weight is where the words say place 0, mantissa 0.
__device__ __forceinline__ float compact_lowest(CompactRow row) {
  return __uint_as_float(static_cast<uint32_t>(row.first) << 23);
}
__device__ __forceinline__ float compact_rest_value(uint32_t entry) {
  return __uint_as_float(entry << 16);
}

}  // namespace nibble::cuda
