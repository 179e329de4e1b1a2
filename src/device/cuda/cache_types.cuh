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

// Two neighbouring 8-bit elements (in the low 16 bits) as a pair of f16, exactly.
template <class C>
__device__ inline uint32_t widen_pair(uint32_t two_bytes) {
  constexpr auto kFormat = std::is_same_v<C, E4M3> ? __NV_E4M3 : __NV_E5M2;
  const __half2_raw raw =
      __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(two_bytes), kFormat);
  return static_cast<uint32_t>(raw.x) | (static_cast<uint32_t>(raw.y) << 16);
}

}  // namespace nibble::cuda
