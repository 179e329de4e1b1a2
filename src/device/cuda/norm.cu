// RMSNorm and the gated norm. Short rows (heads of 64..256): a warp per row. Long rows: a block per
// row, kept in registers between the sum and the scaling when it fits, read again from the cache
// when it does not.
#include "device/cuda/elementwise.h"
#include "device/cuda/fixed_rows.cuh"
#include "device/cuda/launch.h"
#include "device/cuda/norm.cuh"
#include "device/cuda/overlap.cuh"
#include "device/cuda/scalar.cuh"

namespace nibble::cuda {
namespace {

constexpr int kBlock = 256;
constexpr int64_t kLongRow = 1024;

template <class T, class W>
__device__ __forceinline__ void finish_row(const NormLaunch& args, int64_t row, int thread,
                                           int num_threads, float sum) {
  const float scale = rsqrtf(sum / static_cast<float>(args.n) + args.eps);
  const T* x = static_cast<const T*>(args.x) + row * args.n;
  const W* weight = static_cast<const W*>(args.weight);
  T* out = static_cast<T*>(args.out) + row * args.n;
  if (args.gate == nullptr) {
    for (int64_t i = thread; i < args.n; i += num_threads)
      out[i] = normed<T>(to_float(x[i]), scale, weight[i], args.weight_offset);
  } else {
    const T* gate = static_cast<const T*>(args.gate) + row * args.n;
    for (int64_t i = thread; i < args.n; i += num_threads)
      out[i] = gated<T>(to_float(x[i]), scale, weight[i], gate[i]);
  }
}

template <class T>
__device__ __forceinline__ float partial_sum(const NormLaunch& args, int64_t row, int thread,
                                             int num_threads) {
  const T* x = static_cast<const T*>(args.x) + row * args.n;
  float sum = 0;
  for (int64_t i = thread; i < args.n; i += num_threads) {
    const float value = to_float(x[i]);
    sum += value * value;
  }
  return sum;
}

template <class T, class W>
__global__ void short_rows_kernel(const NormLaunch args) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int64_t row = (int64_t{blockIdx.x} * kBlock + threadIdx.x) / 32;
  if (row >= args.num_rows) return;
  const int lane = threadIdx.x % 32;
  finish_row<T, W>(args, row, lane, 32, warp_sum(partial_sum<T>(args, row, lane, 32)));
}

// Of blocks of up to kThreads threads, in whole warps.
template <int kThreads>
__device__ __forceinline__ float block_sum(float x) {
  __shared__ float sums[32];
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
  __syncthreads();
  if constexpr (kThreads > kBlock) {
    const unsigned lane = threadIdx.x % 32;
    return warp_sum(lane < blockDim.x / 32 ? sums[lane] : 0.0f);
  }
  float total = 0;
#pragma unroll
  for (int warp = 0; warp < kBlock / 32; ++warp) total += sums[warp];
  return total;
}

template <class T, class W>
__global__ void long_rows_kernel(const NormLaunch args) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int thread = threadIdx.x;
  const float sum = block_sum<kBlock>(partial_sum<T>(args, blockIdx.x, thread, kBlock));
  finish_row<T, W>(args, blockIdx.x, thread, kBlock, sum);
}

// 16-bit rows of up to kVectors * 8 * kThreads, n % 8 == 0, 16-byte aligned, without gate: one
// read, the row stays in registers. Few rows take a thread per vector, and weights that are there
// when x comes: nothing else runs that could hide their latency.
template <class T, class W, int kVectors, int kThreads>
__global__ void __launch_bounds__(kThreads) register_rows_kernel(const NormLaunch args) {
  struct alignas(16) Vector {
    T values[8];
  };
  struct alignas(8 * sizeof(W) < 16 ? 8 * sizeof(W) : 16) Weights {
    W values[8];
  };
  let_next_kernel_start();
  const auto* all_weights = static_cast<const Weights*>(args.weight);
  constexpr bool kFew = kVectors == 1;
  Weights weights[kVectors];
  if (kFew && threadIdx.x < args.n / 8) weights[0] = all_weights[threadIdx.x];
  wait_for_previous_kernel();
  const auto* x =
      reinterpret_cast<const Vector*>(static_cast<const T*>(args.x) + int64_t{blockIdx.x} * args.n);
  const auto count = static_cast<int>(args.n / 8);
  Vector row[kVectors];
  float sum = 0;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int at = v * kThreads + static_cast<int>(threadIdx.x);
    if (at < count) {
      row[v] = x[at];
      if (args.addend != nullptr) {
        const Vector y = reinterpret_cast<const Vector*>(static_cast<const T*>(args.addend) +
                                                         int64_t{blockIdx.x} * args.n)[at];
#pragma unroll
        for (int j = 0; j < 8; ++j)
          row[v].values[j] = Round<T>::of(to_float(row[v].values[j]) + to_float(y.values[j]));
        const_cast<Vector*>(x)[at] = row[v];
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float value = to_float(row[v].values[j]);
        sum += value * value;
      }
    }
  }
  const float scale = rsqrtf(block_sum<kThreads>(sum) / static_cast<float>(args.n) + args.eps);
  auto* out = reinterpret_cast<Vector*>(static_cast<T*>(args.out) + int64_t{blockIdx.x} * args.n);
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int at = v * kThreads + static_cast<int>(threadIdx.x);
    if (at < count) {
      if (!kFew) weights[v] = all_weights[at];
      Vector result;
      float values[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        result.values[j] =
            normed<T>(to_float(row[v].values[j]), scale, weights[v].values[j], args.weight_offset);
        values[j] = to_float(result.values[j]);
      }
      out[at] = result;
      if (args.fixed.digits != nullptr)
        write_fixed(values, static_cast<int>(blockIdx.x), at, args.fixed);
    }
  }
}

template <class T, class W>
void launch(NormLaunch args, const Workspace& workspace, cudaStream_t stream) {
  const auto rows = static_cast<unsigned>(args.num_rows);
  const auto run = [&](void (*kernel)(NormLaunch), unsigned blocks, unsigned threads = kBlock) {
    launch_overlapped(kernel, blocks, threads, 0, stream, workspace.compute_capability, args);
  };
  const bool vectors = args.n >= kLongRow && args.gate == nullptr && args.n % 8 == 0 &&
                       aligned(args.x) && aligned(args.out) && aligned(args.addend) &&
                       aligned(args.weight);
  if constexpr (sizeof(T) == 2) {
    constexpr int kWide = 1024;
    if (vectors && args.num_rows <= workspace.num_sms && args.n <= 8 * kWide)
      return run(register_rows_kernel<T, W, 1, kWide>, rows,
                 static_cast<unsigned>((args.n / 8 + 31) / 32 * 32));
    if (vectors && args.n <= 4 * 8 * kBlock)
      return run(register_rows_kernel<T, W, 4, kBlock>, rows);
  }
  const auto fix = [&] {
    if (args.fixed.digits != nullptr)
      launch_fix_rows(args.out, args.type, args.fixed, workspace, stream);
  };
  if (args.addend != nullptr) {
    launch_binary({Binary::kAdd, args.x, args.addend, const_cast<void*>(args.x), args.type,
                   args.num_rows * args.n},
                  workspace, stream);
    args.addend = nullptr;
  }
  if (args.n < kLongRow) {
    const int64_t threads = args.num_rows * 32;
    run(short_rows_kernel<T, W>, blocks_of(threads, kBlock));
    return fix();
  }
  run(long_rows_kernel<T, W>, rows);
  fix();
}

}  // namespace

void launch_norm(const NormLaunch& args, const Workspace& workspace, cudaStream_t stream) {
  if (args.num_rows == 0 || args.n == 0) return;
  with_type(args.type, [&](auto type) {
    with_type(args.weight_type, [&](auto weight_type) {
      launch<typename decltype(type)::type, typename decltype(weight_type)::type>(args, workspace,
                                                                                  stream);
    });
  });
  NB_CUDA_LAUNCHED();
}

}  // namespace nibble::cuda
