// Element types inside kernels: storage in 8, 16 or 32 bits, arithmetic in float, one rounding to
// nearest even per store. Compiles for sm_70 and CUDA 11.8: what an architecture lacks is done with
// integers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "device/cuda/cuda_check.h"
#include "device/cuda/scalar.h"

namespace nibble::cuda {

using Half = __half;

// bfloat16 as storage; the toolkit's own type lacks conversions before sm_80 in older toolkits.
struct alignas(2) BFloat {
  uint16_t bits;
};

// 8-bit floats of the KV cache: OCP E4M3 (no infinities, largest 448) and E5M2.
struct E4M3 {
  uint8_t bits;
};
struct E5M2 {
  uint8_t bits;
};

__device__ __forceinline__ float to_float(float x) {
  return x;
}
__device__ __forceinline__ float to_float(Half x) {
  return __half2float(x);
}
__device__ __forceinline__ float to_float(BFloat x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
__device__ __forceinline__ float to_float(E5M2 x) {
  return __half2float(__ushort_as_half(static_cast<uint16_t>(x.bits << 8)));
}
__device__ __forceinline__ float to_float(E4M3 x) {
  // Exponent and mantissa moved into a half are the value times 2^-8 (bias 7 against 15),
  // subnormals included; 0x7f is the NaN.
  if ((x.bits & 0x7f) == 0x7f) return __uint_as_float(0x7fc00000u);
  const auto half = static_cast<uint16_t>(((x.bits & 0x80) << 8) | ((x.bits & 0x7f) << 7));
  return __half2float(__ushort_as_half(half)) * 256.0f;
}

template <class T>
struct Round;
template <>
struct Round<float> {
  static __device__ __forceinline__ float of(float x) { return x; }
};
template <>
struct Round<Half> {
  static __device__ __forceinline__ Half of(float x) { return __float2half_rn(x); }
};
template <>
struct Round<BFloat> {
  static __device__ __forceinline__ BFloat of(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    return BFloat{__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#else
    uint32_t word = __float_as_uint(x);
    if ((word & 0x7fffffffu) > 0x7f800000u)
      return BFloat{static_cast<uint16_t>((word >> 16) | 0x40u)};
    word += 0x7fffu + ((word >> 16) & 1u);
    return BFloat{static_cast<uint16_t>(word >> 16)};
#endif
  }
};

// To 8 bits, nearest even, saturating: with kMantissa bits after the point and smallest normal
// exponent kMinExponent. A value past the largest finite one becomes it; NaN stays NaN.
template <int kMantissa, int kBias>
__device__ __forceinline__ uint8_t round_to_8_bits(float x, float largest, uint8_t largest_bits,
                                                   uint8_t nan_bits) {
  const uint32_t word = __float_as_uint(x);
  const auto sign = static_cast<uint8_t>((word >> 24) & 0x80u);
  const float magnitude = fabsf(x);
  if (!(magnitude == magnitude)) return sign | nan_bits;
  if (magnitude >= largest) return sign | largest_bits;
  const float smallest_normal = exp2f(static_cast<float>(1 - kBias));
  if (magnitude < smallest_normal) {
    // Multiples of the smallest subnormal; rounding up to the first normal lands on its code.
    return sign | static_cast<uint8_t>(
                      __float2int_rn(magnitude * exp2f(static_cast<float>(kBias - 1 + kMantissa))));
  }
  uint32_t bits = word & 0x7fffffffu;
  bits += (1u << (22 - kMantissa)) - 1 + ((bits >> (23 - kMantissa)) & 1u);
  bits = (bits >> (23 - kMantissa)) - (static_cast<uint32_t>(127 - kBias) << kMantissa);
  return sign | static_cast<uint8_t>(bits < largest_bits ? bits : largest_bits);
}
template <>
struct Round<E4M3> {
  static __device__ __forceinline__ E4M3 of(float x) {
    return {round_to_8_bits<3, 7>(x, 448.0f, 0x7e, 0x7f)};
  }
};
template <>
struct Round<E5M2> {
  static __device__ __forceinline__ E5M2 of(float x) {
    return {round_to_8_bits<2, 15>(x, 57344.0f, 0x7b, 0x7f)};
  }
};

// x rounded through T.
template <class T>
__device__ __forceinline__ float rounded(float x) {
  return to_float(Round<T>::of(x));
}

template <class T>
struct Type {
  using type = T;
};

// Calls body(Type<T>{}) with the type that `scalar` names; activations and weights.
template <class Body>
void with_type(Scalar scalar, Body body) {
  switch (scalar) {
    case Scalar::kF32: return body(Type<float>{});
    case Scalar::kF16: return body(Type<Half>{});
    case Scalar::kBF16: return body(Type<BFloat>{});
    default: fail(cudaErrorInvalidValue, "8-bit activations", __FILE__, __LINE__);
  }
}
// The same with the 8-bit types of the KV cache.
template <class Body>
void with_cache_type(Scalar scalar, Body body) {
  switch (scalar) {
    case Scalar::kE4M3: return body(Type<E4M3>{});
    case Scalar::kE5M2: return body(Type<E5M2>{});
    default: return with_type(scalar, body);
  }
}

__device__ __forceinline__ float warp_sum(float x) {
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

__device__ __forceinline__ float sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

}  // namespace nibble::cuda
