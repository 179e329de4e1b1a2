// The fastest way to only read memory that a plain kernel has: the bound of products of few tokens.
#include "device/cuda/read.h"

#include <cstdint>

#include "device/cuda/cuda_check.h"

namespace nibble::cuda {
namespace {

__global__ void __launch_bounds__(512)
    read_kernel(const uint4* __restrict__ data, size_t count, uint32_t* sink) {
  constexpr int kInFlight = 8;
  uint32_t mixed = 0;
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; i + (kInFlight - 1) * stride < count; i += kInFlight * stride) {
    uint4 part[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) part[j] = __ldcs(data + i + j * stride);
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) mixed ^= part[j].x ^ part[j].y ^ part[j].z ^ part[j].w;
  }
  for (; i < count; i += stride) mixed ^= data[i].x;
  if (mixed == 0x12345678u) *sink = mixed;  // keeps the reads alive
}

}  // namespace

void enqueue_read(const void* data, size_t bytes, const Workspace& workspace, cudaStream_t stream) {
  read_kernel<<<static_cast<unsigned>(workspace.num_sms * 4), 512, 0, stream>>>(
      static_cast<const uint4*>(data), bytes / 16, static_cast<uint32_t*>(workspace.scratch));
  NB_CUDA_LAUNCHED();
}

}  // namespace nibble::cuda
