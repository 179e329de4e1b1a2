// Copies, activations, rotary embedding and the cache write: one pass over memory each. Vectors of
// 16 bytes where alignment allows; small operands (positions, tables) come from the cache.
#include "device/cuda/elementwise.h"

#include <algorithm>

#include "device/cuda/activation.cuh"
#include "device/cuda/fixed_rows.cuh"
#include "device/cuda/launch.h"
#include "device/cuda/overlap.cuh"
#include "device/cuda/scalar.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;

template <class From, class To>
__global__ void gather_kernel(const From* __restrict__ table, const int32_t* __restrict__ rows,
                              To* __restrict__ out, int64_t n) {
  const From* from = table + static_cast<int64_t>(rows[blockIdx.x]) * n;
  To* to = out + blockIdx.x * n;
  for (int64_t i = blockIdx.y * kThreads + threadIdx.x; i < n; i += gridDim.y * kThreads)
    to[i] = Round<To>::of(to_float(from[i]));
}

// One thread per vector of V.
template <class V>
__global__ void copy_rows_kernel(const char* __restrict__ from, char* __restrict__ to,
                                 int64_t num_rows, int64_t vectors_per_row, int64_t from_pitch,
                                 int64_t to_pitch) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= num_rows * vectors_per_row) return;
  const int64_t row = i / vectors_per_row;
  const int64_t column = i % vectors_per_row;
  reinterpret_cast<V*>(to + row * to_pitch)[column] =
      reinterpret_cast<const V*>(from + row * from_pitch)[column];
}

template <Binary operation, class T>
__device__ __forceinline__ T apply(T x, T y) {
  if (operation == Binary::kAdd) return Round<T>::of(to_float(x) + to_float(y));
  if (operation == Binary::kSigmoidMul) return sigmoid_mul(x, y);
  return silu_mul(x, y);
}

template <Binary operation, class T, int kWidth>
__global__ void binary_kernel(const T* x, const T* y, T* out, int64_t count, int64_t per_y,
                              const FixedRows fixed) {
  struct alignas(sizeof(T) * kWidth) Vector {
    T values[kWidth];
  };
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int64_t i = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth;
  if (i >= count) return;
  const Vector a = *reinterpret_cast<const Vector*>(x + i);
  Vector b;
  if (per_y == 1) {
    b = *reinterpret_cast<const Vector*>(y + i);
  } else {
    for (int j = 0; j < kWidth; ++j) b.values[j] = y[(i + j) / per_y];
  }
  Vector result;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) result.values[j] = apply<operation>(a.values[j], b.values[j]);
  *reinterpret_cast<Vector*>(out + i) = result;
  if constexpr (kWidth == 8) {
    if (fixed.digits == nullptr) return;
    float values[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) values[j] = to_float(result.values[j]);
    write_fixed(values, static_cast<int>(i / fixed.in_features), i % fixed.in_features / 8, fixed);
  }
}

// One thread per (token, frequency); the heads share its sine and cosine.
template <class T>
__global__ void rope_kernel(const RopeLaunch args) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= args.num_tokens * args.half) return;
  const int64_t t = index / args.half;
  const auto i = static_cast<int32_t>(index % args.half);
  int axis = 0;
  if (i % 3 == 1 && i < 3 * args.mrope_section[1]) axis = 1;
  if (i % 3 == 2 && i < 3 * args.mrope_section[2]) axis = 2;
  const float angle =
      static_cast<float>(args.positions[axis * args.num_tokens + t]) * args.inv_freq[i];
  const float c = rounded<T>(cosf(angle) * args.attention_scaling);
  const float s = rounded<T>(sinf(angle) * args.attention_scaling);
  for (int64_t h = blockIdx.y; h < args.num_heads; h += gridDim.y) {
    T* head = static_cast<T*>(args.x) + (t * args.num_heads + h) * args.head_dim;
    const float low = to_float(head[i]);
    const float high = to_float(head[i + args.half]);
    head[i] = Round<T>::of(rounded<T>(low * c) - rounded<T>(high * s));
    head[i + args.half] = Round<T>::of(rounded<T>(high * c) + rounded<T>(low * s));
  }
}

// One block per token and part of the row; the sequence is found by bisection of query_start.
template <class T, class C>
__global__ void kv_append_kernel(const KvAppendLaunch args) {
  const auto t = static_cast<int32_t>(blockIdx.x);
  if (t >= args.query_start[args.num_seqs]) return;  // a padded row
  int32_t low = 0;                                   // query_start[low] <= t < query_start[high]
  int32_t high = args.num_seqs;
  while (high - low > 1) {
    const int32_t middle = (low + high) / 2;
    if (args.query_start[middle] <= t) {
      low = middle;
    } else {
      high = middle;
    }
  }
  const int32_t position = args.context_len[low] + t - args.query_start[low];
  const int32_t block =
      args.block_table[static_cast<int64_t>(low) * args.max_blocks + position / args.block_size];
  const int64_t to =
      (static_cast<int64_t>(block) * args.block_size + position % args.block_size) * args.row;
  const int64_t from = t * args.row;
  for (int64_t i = blockIdx.y * kThreads + threadIdx.x; i < args.row; i += gridDim.y * kThreads) {
    static_cast<C*>(args.cache_k)[to + i] =
        Round<C>::of(to_float(static_cast<const T*>(args.k)[from + i]));
    static_cast<C*>(args.cache_v)[to + i] =
        Round<C>::of(to_float(static_cast<const T*>(args.v)[from + i]));
  }
}

}  // namespace

void launch_gather(const GatherLaunch& args, cudaStream_t stream) {
  if (args.num_rows == 0 || args.n == 0) return;
  const dim3 grid(static_cast<unsigned>(args.num_rows), std::min(blocks_of(args.n, kThreads), 8u));
  with_type(args.table_type, [&](auto from) {
    with_type(args.out_type, [&](auto to) {
      using From = typename decltype(from)::type;
      using To = typename decltype(to)::type;
      gather_kernel<From, To><<<grid, kThreads, 0, stream>>>(
          static_cast<const From*>(args.table), args.rows, static_cast<To*>(args.out), args.n);
    });
  });
  NB_CUDA_LAUNCHED();
}

void launch_copy_rows(const CopyRowsLaunch& args, cudaStream_t stream) {
  if (args.num_rows == 0 || args.width_bytes == 0) return;
  const auto run = [&](auto vector) {
    using V = decltype(vector);
    const auto per_row = args.width_bytes / static_cast<int64_t>(sizeof(V));
    copy_rows_kernel<V><<<blocks_of(args.num_rows * per_row, kThreads), kThreads, 0, stream>>>(
        static_cast<const char*>(args.from), static_cast<char*>(args.to), args.num_rows, per_row,
        args.from_pitch_bytes, args.to_pitch_bytes);
  };
  const bool wide = aligned(args.from) && aligned(args.to) && args.width_bytes % 16 == 0 &&
                    args.from_pitch_bytes % 16 == 0 && args.to_pitch_bytes % 16 == 0;
  if (wide) {
    run(uint4{});
  } else {
    run(uint16_t{});  // the smallest activation
  }
  NB_CUDA_LAUNCHED();
}

namespace {

template <Binary operation>
void launch_binary_of(const BinaryLaunch& args, const Workspace& workspace, cudaStream_t stream) {
  with_type(args.type, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kWidth = 16 / sizeof(T);
    const auto* x = static_cast<const T*>(args.x);
    const auto* y = static_cast<const T*>(args.y);
    auto* out = static_cast<T*>(args.out);
    const bool wide =
        args.count % kWidth == 0 && aligned(x) && aligned(out) && (args.per_y != 1 || aligned(y));
    auto* kernel = wide ? binary_kernel<operation, T, kWidth> : binary_kernel<operation, T, 1>;
    launch_overlapped(kernel, blocks_of(wide ? args.count / kWidth : args.count, kThreads),
                      kThreads, 0, stream, workspace.compute_capability, x, y, out, args.count,
                      args.per_y, args.fixed);
    if (args.fixed.digits != nullptr && !(wide && kWidth == 8))
      launch_fix_rows(out, args.type, args.fixed, workspace, stream);
  });
}

}  // namespace

void launch_binary(const BinaryLaunch& args, const Workspace& workspace, cudaStream_t stream) {
  if (args.count == 0) return;
  switch (args.operation) {
    case Binary::kAdd: return launch_binary_of<Binary::kAdd>(args, workspace, stream);
    case Binary::kSigmoidMul: return launch_binary_of<Binary::kSigmoidMul>(args, workspace, stream);
    case Binary::kSiluMul: return launch_binary_of<Binary::kSiluMul>(args, workspace, stream);
  }
}

void launch_rope(const RopeLaunch& args, cudaStream_t stream) {
  if (args.num_tokens == 0 || args.num_heads == 0 || args.half == 0) return;
  const dim3 grid(blocks_of(args.num_tokens * args.half, kThreads),
                  static_cast<unsigned>(args.num_heads < 8 ? args.num_heads : 8));
  with_type(args.type, [&](auto type) {
    rope_kernel<typename decltype(type)::type><<<grid, kThreads, 0, stream>>>(args);
  });
  NB_CUDA_LAUNCHED();
}

void launch_kv_append(const KvAppendLaunch& args, cudaStream_t stream) {
  if (args.num_tokens == 0 || args.row == 0) return;
  const dim3 grid(static_cast<unsigned>(args.num_tokens),
                  std::min(blocks_of(args.row, kThreads), 4u));
  with_type(args.type, [&](auto type) {
    with_cache_type(args.cache_type, [&](auto cache) {
      kv_append_kernel<typename decltype(type)::type, typename decltype(cache)::type>
          <<<grid, kThreads, 0, stream>>>(args);
    });
  });
  NB_CUDA_LAUNCHED();
}

}  // namespace nibble::cuda
