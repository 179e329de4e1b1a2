// Greedy choice over a large vocabulary: each row in kArgmaxParts parts, one block each, then one
// warp per row. Bound by one read of the logits. A part carries its maximum, the index and the sum
// of exp(x - maximum), so that the log probability needs no second pass.
#include "device/cuda/sampling.h"

#include "device/cuda/scalar.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kAhead = 8;  // values a thread asks for at once

struct alignas(16) Part {
  float largest;
  int32_t index;
  float sum;  // of exp(x - largest)
  float unused;
};

__device__ inline Part merge(const Part& a, const Part& b) {
  const bool second = b.largest > a.largest || (b.largest == a.largest && b.index < a.index);
  Part best = second ? b : a;
  const Part& other = second ? a : b;
  if (other.largest > -INFINITY) best.sum += other.sum * expf(other.largest - best.largest);
  return best;
}

__device__ inline Part warp_merge(Part part) {
  for (int offset = 16; offset > 0; offset >>= 1) {
    const Part other{__shfl_xor_sync(0xffffffffu, part.largest, offset),
                     __shfl_xor_sync(0xffffffffu, part.index, offset),
                     __shfl_xor_sync(0xffffffffu, part.sum, offset), 0};
    part = merge(part, other);
  }
  return part;
}

// Grid (kArgmaxParts, num_rows).
__global__ void part_kernel(ArgmaxLaunch args, Part* parts) {
  const int per_part = (args.vocab_size + kArgmaxParts - 1) / kArgmaxParts;
  const int begin = static_cast<int>(blockIdx.x) * per_part;
  const int end = min(args.vocab_size, begin + per_part);
  const float* row = args.logits + static_cast<int64_t>(blockIdx.y) * args.vocab_size;
  Part own{-INFINITY, INT32_MAX, 0, 0};
  for (int first = begin + static_cast<int>(threadIdx.x); first < end; first += kThreads * kAhead) {
    float x[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int at = first + i * kThreads;
      x[i] = at < end ? row[at] : -INFINITY;
      if (!(x[i] > -INFINITY)) x[i] = -INFINITY;  // NaN is not chosen
    }
    Part part{-INFINITY, INT32_MAX, 0, 0};
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (x[i] > part.largest) part.largest = x[i], part.index = first + i * kThreads;
    if (part.largest > -INFINITY) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
        part.sum += x[i] == part.largest ? 1.0f : expf(x[i] - part.largest);
    }
    own = merge(own, part);
  }
  own = warp_merge(own);
  __shared__ Part warps[kThreads / 32];
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = own;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  own = threadIdx.x < kThreads / 32 ? warps[threadIdx.x] : Part{-INFINITY, INT32_MAX, 0, 0};
  own = warp_merge(own);
  if (threadIdx.x == 0) parts[blockIdx.y * kArgmaxParts + blockIdx.x] = own;
}

// A warp per row.
__global__ void choose_kernel(ArgmaxLaunch args, const Part* parts) {
  const int lane = static_cast<int>(threadIdx.x);
  Part own = lane < kArgmaxParts ? parts[blockIdx.x * kArgmaxParts + static_cast<unsigned>(lane)]
                                 : Part{-INFINITY, INT32_MAX, 0, 0};
  own = warp_merge(own);
  if (lane != 0) return;
  args.ids[blockIdx.x] = own.index == INT32_MAX ? -1 : own.index;
  if (args.logprobs != nullptr) args.logprobs[blockIdx.x] = -logf(own.sum);
}

}  // namespace

void launch_argmax(const ArgmaxLaunch& args, const Workspace& workspace, cudaStream_t stream) {
  if (args.num_rows == 0) return;
  auto* parts = static_cast<Part*>(workspace.scratch);
  const auto rows = static_cast<unsigned>(args.num_rows);
  part_kernel<<<dim3(kArgmaxParts, rows), kThreads, 0, stream>>>(args, parts);
  NB_CUDA_LAUNCHED();
  choose_kernel<<<rows, 32, 0, stream>>>(args, parts);
  NB_CUDA_LAUNCHED();
}

}  // namespace nibble::cuda
