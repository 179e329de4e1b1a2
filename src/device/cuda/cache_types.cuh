// How the cache's element types enter tensor-core products.
#pragma once

#include <cuda_fp8.h>

#include <type_traits>

#include "device/cuda/scalar.cuh"

namespace nibble::cuda {

// The element type of the products over a cache of C.
template <class C>
using ProductType = std::conditional_t<std::is_same_v<C, BFloat>, BFloat, Half>;

// Two neighbouring 8-bit elements (in the low 16 bits) as a pair of f16, exactly.
template <class C>
__device__ inline uint32_t widen_pair(uint32_t two_bytes) {
  constexpr auto kFormat = std::is_same_v<C, E4M3> ? __NV_E4M3 : __NV_E5M2;
  const __half2_raw raw =
      __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(two_bytes), kFormat);
  return static_cast<uint32_t>(raw.x) | (static_cast<uint32_t>(raw.y) << 16);
}

}  // namespace nibble::cuda
