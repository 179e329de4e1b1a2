// Copies of whole pieces into shared memory, asked for by one thread, and the barriers that say
// when they have come (sm_90).
#pragma once

#include <cstdint>

namespace nibble::cuda {

__device__ __forceinline__ uint32_t barrier_address(uint64_t& barrier) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(&barrier));
}

// A phase of `barrier` ends after `arrivals` arrivals and the bytes expected in it.
__device__ __forceinline__ void init_barrier(uint64_t& barrier, uint32_t arrivals) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier_address(barrier)),
               "r"(arrivals)
               : "memory");
#endif
}
// After initializing, before a barrier of the block.
__device__ __forceinline__ void fence_barrier_init() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
__device__ __forceinline__ void arrive(uint64_t& barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier_address(barrier))
               : "memory");
#endif
}
// Arrives, and adds `bytes` to what the phase waits for.
__device__ __forceinline__ void expect_bytes(uint64_t& barrier, uint32_t bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier_address(barrier)),
      "r"(bytes)
      : "memory");
#endif
}
// Until the phase of this parity has ended; the one before the first, of parity 1, has.
__device__ __forceinline__ void wait_barrier(uint64_t& barrier, uint32_t parity) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}" ::"r"(barrier_address(barrier)),
      "r"(parity)
      : "memory");
#endif
}
// Both addresses and `bytes` are multiples of 16.
__device__ __forceinline__ void copy_bulk(void* shared, const void* from, uint32_t bytes,
                                          uint64_t& barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
      "l"(from), "r"(bytes), "r"(barrier_address(barrier))
      : "memory");
#endif
}

}  // namespace nibble::cuda
