// Blocks of a thread block cluster (sm_90) together: a barrier, and reads of each other's shared
// memory. Code for older GPUs compiles and must not be reached.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace nibble::cuda {

// All threads of all blocks of the cluster; what was written to shared memory before is seen after.
__device__ __forceinline__ void cluster_barrier() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;\n" ::
          : "memory");
#endif
}

// What lies at `from` in the shared memory of block `rank` of the cluster.
__device__ __forceinline__ float4 load_cluster(const float4* from, uint32_t rank) {
  float4 value = make_float4(0, 0, 0, 0);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .u32 there;\n"
      "mapa.shared::cluster.u32 there, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there];\n}\n"
      : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
      : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(from))), "r"(rank)
      : "memory");
#endif
  return value;
}

}  // namespace nibble::cuda
