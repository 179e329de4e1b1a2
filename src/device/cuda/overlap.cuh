// Programmatic dependent launch (sm_90): a kernel may start while the one before it in the stream
// drains, and do what does not depend on it: fetch weights, which are constant after load. On older
// GPUs all of this is nothing.
#pragma once

#include "device/cuda/cuda_check.h"

namespace nibble::cuda {

// Before this returns, nothing that an earlier kernel writes may be read, and nothing that an
// earlier kernel reads may be written. Weights may, positions and the arrays of a DeviceBatch: only
// copies write them, and a copy waits for all kernels before it and holds up all after it. So may
// the states of linear attention: one operation of a step writes those of a layer, and each step
// begins with such copies. Whoever repeats an operation on the same states must copy in between.
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

// Launches a kernel that calls wait_for_previous_kernel(), in clusters of `cluster` blocks, which
// only sm_90 has; 1 for none.
template <class... Parameters, class... Args>
void launch_overlapped_clusters(void (*kernel)(Parameters...), dim3 grid, unsigned cluster,
                                dim3 threads, size_t shared_bytes, cudaStream_t stream,
                                int compute_capability, Args... args) {
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = compute_capability < 90 ? 0 : cluster == 1 ? 1 : 2;
  NB_CUDA(cudaLaunchKernelEx(&config, kernel, args...));
}

// The same without clusters.
template <class... Parameters, class... Args>
void launch_overlapped(void (*kernel)(Parameters...), dim3 grid, dim3 threads, size_t shared_bytes,
                       cudaStream_t stream, int compute_capability, Args... args) {
  launch_overlapped_clusters(kernel, grid, 1, threads, shared_bytes, stream, compute_capability,
                             args...);
}

}  // namespace nibble::cuda
