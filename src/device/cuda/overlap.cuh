// Programmatic dependent launch (sm_90): a kernel may start while the one before it in the stream
// drains, and do what does not depend on it: fetch weights, which are constant after load. On older
// GPUs all of this is nothing.
#pragma once

#include "device/cuda/cuda_check.h"

namespace nibble::cuda {

// Before this returns, nothing that an earlier kernel writes may be read, and nothing that an
// earlier kernel reads may be written.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel's blocks start as soon as there is room. Harmless if it does not wait to.
__device__ __forceinline__ void let_next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Launches a kernel that calls wait_for_previous_kernel().
template <class... Parameters, class... Args>
void launch_overlapped(void (*kernel)(Parameters...), dim3 grid, unsigned threads,
                       size_t shared_bytes, cudaStream_t stream, int compute_capability,
                       Args... args) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = compute_capability >= 90 ? 1 : 0;
  NB_CUDA(cudaLaunchKernelEx(&config, kernel, args...));
}

}  // namespace nibble::cuda
