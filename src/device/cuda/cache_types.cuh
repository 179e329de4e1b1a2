// The KV cache's element types in kernels: which of them there are kernels for, with which head
// dims, and how they enter tensor-core products.
#pragma once

#include <cuda_fp8.h>

#include <type_traits>

#include "device/cuda/scalar.cuh"

namespace nibble::cuda {

// The element type of the products over a cache of C.
template <class C>
using ProductType = std::conditional_t<std::is_same_v<C, BFloat>, BFloat, Half>;

// What with_kv_shape() takes.
inline bool has_kv_shape(Scalar cache_type, int32_t head_dim) {
  return cache_type != Scalar::kF32 && (head_dim == 64 || head_dim == 128 || head_dim == 256);
}

// Calls body(Type<C>{}, std::integral_constant<int, head_dim>{}) with C as `cache_type` names it.
template <class Body>
auto with_kv_shape(Scalar cache_type, int32_t head_dim, Body body) {
  const auto with_dim = [&](auto cache) {
    switch (head_dim) {
      case 64: return body(cache, std::integral_constant<int, 64>{});
      case 128: return body(cache, std::integral_constant<int, 128>{});
      default: return body(cache, std::integral_constant<int, 256>{});
    }
  };
  switch (cache_type) {
    case Scalar::kF16: return with_dim(Type<Half>{});
    case Scalar::kBF16: return with_dim(Type<BFloat>{});
    case Scalar::kE4M3: return with_dim(Type<E4M3>{});
    default: return with_dim(Type<E5M2>{});
  }
}

// Two neighbouring 8-bit elements, the lower or upper half of a word, as a pair of f16, exactly.
template <class C, int kHalf>
__device__ __forceinline__ uint32_t widen_pair(uint32_t word) {
  static_assert(kHalf == 0 || kHalf == 1);
  // Each in the upper byte of its 16 bits: e5m2 is that of f16.
  const uint32_t upper = __byte_perm(word, 0, kHalf == 0 ? 0x1404 : 0x3424);
  if constexpr (std::is_same_v<C, E5M2>) return upper;
#if __CUDA_ARCH__ >= 890
  const __half2_raw raw = __nv_cvt_fp8x2_to_halfraw2(
      static_cast<__nv_fp8x2_storage_t>(kHalf == 0 ? word : word >> 16), __NV_E4M3);
  return static_cast<uint32_t>(raw.x) | (static_cast<uint32_t>(raw.y) << 16);
#else
  // Exponent and mantissa of e4m3, moved to where f16 has its own, are the value times 2^-8; 0x7f,
  // the NaN, is the only code that a carry takes past bit 14 and would be 480.
  const uint32_t magnitude = upper >> 1 & 0x3f803f80u;
  const uint32_t nan = (magnitude + 0x00800080u) & 0x40004000u;
  const uint32_t bits = magnitude | (upper & 0x80008000u);
  const __half2 value = __hmul2(reinterpret_cast<const __half2&>(bits), __float2half2_rn(256.0f));
  return reinterpret_cast<const uint32_t&>(value) | (nan >> 4) * 0x1fu;
#endif
}

}  // namespace nibble::cuda
