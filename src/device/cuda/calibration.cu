// A block owns the columns or the part it sums, so that nothing depends on the order of blocks.
#include "device/cuda/calibration.h"

#include <algorithm>

#include "device/cuda/scalar.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// sums[i * columns + c] += over rows, what term(row, c, sum) adds to sum[i]. A block per 32
// columns.
template <class Term>
__global__ void column_sums_kernel(int64_t rows, int64_t columns, double* sums, Term term) {
  constexpr int kSums = Term::kSums;
  __shared__ double partial[kSums][kWarps][32];
  const auto lane = static_cast<int>(threadIdx.x % 32);
  const auto warp = static_cast<int>(threadIdx.x / 32);
  const int64_t column = int64_t{blockIdx.x} * 32 + lane;
  double sum[kSums] = {};
  if (column < columns) {
#pragma unroll 4
    for (int64_t row = warp; row < rows; row += kWarps) term(row, column, sum);
  }
#pragma unroll
  for (int i = 0; i < kSums; ++i) partial[i][warp][lane] = sum[i];
  __syncthreads();
  if (warp != 0 || column >= columns) return;
  for (int i = 0; i < kSums; ++i) {
    double total = 0;
    for (int w = 0; w < kWarps; ++w) total += partial[i][w][lane];
    sums[i * columns + column] += total;
  }
}

template <class Term>
void launch_column_sums(int64_t rows, int64_t columns, double* sums, Term term,
                        cudaStream_t stream) {
  if (rows == 0 || columns == 0) return;
  column_sums_kernel<<<static_cast<unsigned>((columns + 31) / 32), kThreads, 0, stream>>>(
      rows, columns, sums, term);
  NB_CUDA_LAUNCHED();
}

template <class T>
struct Moments {
  static constexpr int kSums = 2;
  const T* x;
  int64_t columns;
  __device__ void operator()(int64_t row, int64_t column, double* sum) const {
    const auto value = static_cast<double>(to_float(x[row * columns + column]));
    sum[0] += fabs(value);
    sum[1] += value * value;
  }
};

template <class T>
struct GroupShares {
  static constexpr int kSums = 1;
  const T* weight;
  const float* bounds;  // [rows, columns / group_size]
  int columns;
  int group_size;
  __device__ void operator()(int64_t row, int64_t column, double* sum) const {
    const float bound =
        bounds[row * (columns / group_size) + static_cast<int>(column) / group_size];
    const float w = fabsf(to_float(weight[row * columns + column]));
    sum[0] += static_cast<double>(rounded<T>(__fdiv_rn(w, bound)));
  }
};

// A matrix, or its transpose, in a product of n columns a row.
template <class T, bool kTransposed>
struct Factor {
  const T* values;
  int64_t n;
  __device__ float operator()(int64_t i, int64_t j) const {
    return to_float(kTransposed ? values[j * n + i] : values[i * n + j]);
  }
};

// A tile of 16 x 16 results a block.
constexpr int kTile = 16;

// out[i, j] (+)= sum over k of left(i, k) * right(k, j)
template <class Left, class Right>
__global__ void simple_product_kernel(int64_t m, int64_t n, int64_t k, Left left, Right right,
                                      float* out, bool accumulate) {
  const int64_t i = int64_t{blockIdx.y} * kTile + threadIdx.y;
  const int64_t j = int64_t{blockIdx.x} * kTile + threadIdx.x;
  if (i >= m || j >= n) return;
  float sum = 0;
  for (int64_t at = 0; at < k; ++at) sum += left(i, at) * right(at, j);
  float& to = out[i * n + j];
  to = accumulate ? to + sum : sum;
}

template <class Left, class Right>
void launch_simple_product(int64_t m, int64_t n, int64_t k, Left left, Right right, float* out,
                           bool accumulate, cudaStream_t stream) {
  if (m == 0 || n == 0) return;
  const dim3 grid(static_cast<unsigned>((n + kTile - 1) / kTile),
                  static_cast<unsigned>((m + kTile - 1) / kTile));
  simple_product_kernel<<<grid, dim3(kTile, kTile), 0, stream>>>(m, n, k, left, right, out,
                                                                 accumulate);
  NB_CUDA_LAUNCHED();
}

__device__ double block_sum(double sum) {
  __shared__ double partial[kWarps];
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  double total = 0;
  for (int w = 0; w < kWarps; ++w) total += partial[w];
  return total;
}

template <PairSum kind, class T>
__global__ void pair_sum_kernel(const T* a, const T* b, int64_t count, double* partials) {
  double sum = 0;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
#pragma unroll 4
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    const auto x = static_cast<double>(to_float(a[i]));
    const auto y = static_cast<double>(to_float(b[i]));
    sum += kind == PairSum::kProduct ? x * y : (x - y) * (x - y);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

__global__ void add_partials_kernel(const double* partials, int count, double* result) {
  double sum = 0;
  for (int i = threadIdx.x; i < count; i += kThreads) sum += partials[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *result += sum;
}

template <class T>
__global__ void difference_kernel(const T* weight, const T* trial, int64_t count, float* to) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) to[i] = to_float(weight[i]) - to_float(trial[i]);
}

}  // namespace

void launch_moments(const WeightView& x, double* sums, cudaStream_t stream) {
  with_type(x.type, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_column_sums(x.rows, x.columns, sums,
                       Moments<T>{static_cast<const T*>(x.values), x.columns}, stream);
  });
}

void launch_group_shares(const WeightView& weight, int64_t group_size, const float* bounds,
                         double* sums, cudaStream_t stream) {
  with_type(weight.type, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_column_sums(
        weight.rows, weight.columns, sums,
        GroupShares<T>{static_cast<const T*>(weight.values), bounds,
                       static_cast<int>(weight.columns), static_cast<int>(group_size)},
        stream);
  });
}

void launch_gram(const WeightView& x, float* gram, cudaStream_t stream) {
  with_type(x.type, [&](auto type) {
    using T = typename decltype(type)::type;
    const T* values = static_cast<const T*>(x.values);
    launch_simple_product(x.columns, x.columns, x.rows, Factor<T, true>{values, x.columns},
                          Factor<T, false>{values, x.columns}, gram, true, stream);
  });
}

void launch_difference(const void* weight, const void* trial, Scalar type, int64_t count,
                       float* difference, cudaStream_t stream) {
  if (count == 0) return;
  with_type(type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    difference_kernel<<<static_cast<unsigned>((count + kThreads - 1) / kThreads), kThreads, 0,
                        stream>>>(static_cast<const T*>(weight), static_cast<const T*>(trial),
                                  count, difference);
    NB_CUDA_LAUNCHED();
  });
}

void launch_gram_product(const float* x, const float* gram, int64_t m, int64_t n, float* out,
                         cudaStream_t stream) {
  launch_simple_product(m, n, n, Factor<float, false>{x, n}, Factor<float, false>{gram, n}, out,
                        false, stream);
}

void launch_pair_sum(PairSum kind, const void* a, const void* b, Scalar type, int64_t count,
                     double* partials, double* result, cudaStream_t stream) {
  if (count == 0) return;
  const auto blocks =
      static_cast<int>(std::min<int64_t>((count + kThreads - 1) / kThreads, kPartialSums));
  with_type(type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto* x = static_cast<const T*>(a);
    const auto* y = static_cast<const T*>(b);
    if (kind == PairSum::kProduct) {
      pair_sum_kernel<PairSum::kProduct>
          <<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(x, y, count, partials);
    } else {
      pair_sum_kernel<PairSum::kSquaredDifference>
          <<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(x, y, count, partials);
    }
    NB_CUDA_LAUNCHED();
  });
  add_partials_kernel<<<1, kThreads, 0, stream>>>(partials, blocks, result);
  NB_CUDA_LAUNCHED();
}

}  // namespace nibble::cuda
