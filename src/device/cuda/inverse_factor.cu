// H = R R' by blocks of columns from the last to the first, then U = R^-1 by blocks of rows from
// the last to the first, each over the block of R it no longer needs.
#include "device/cuda/inverse_factor.h"

#include <algorithm>

#include "device/cuda/cuda_check.h"
#include "device/cuda/ordered_products.h"

namespace nibble::cuda {
namespace {

constexpr int64_t kBlock = 128;  // as in quant/inverse_factor.cc: it is part of the result

// One block of threads, thread i for row i of the triangle and then for column i of its inverse.
// `turned` [size, size] gets R by columns, `inverse` by rows; the triangle in h becomes the
// inverse, `negative` [size, size] it with all signs turned.
__global__ void __launch_bounds__(kBlock)
    factor_triangle_kernel(MatrixView<double> h, int size, double* turned, double* inverse,
                           double* negative, uint32_t* failed) {
  const auto i = static_cast<int>(threadIdx.x);
  __shared__ double root;
  for (int k = 0; k < size; ++k)
    if (i <= k) turned[k * kBlock + i] = h.row(i)[k];
  __syncthreads();
  for (int j = size - 1; j >= 0; --j) {
    double rest = 0;
    if (i <= j) {
      rest = turned[j * kBlock + i];
#pragma unroll 8
      for (int k = j + 1; k < size; ++k)
        rest = __dsub_rn(rest, __dmul_rn(turned[k * kBlock + i], turned[k * kBlock + j]));
    }
    if (i == j) {
      if (!(rest > 0) || !isfinite(rest)) *failed = 1;
      root = __dsqrt_rn(rest);
    }
    __syncthreads();
    if (i <= j) turned[j * kBlock + i] = i == j ? root : __ddiv_rn(rest, root);
    __syncthreads();
  }
  if (i >= size) return;
  for (int row = size - 1; row >= 0; --row) {
    double value = row == i ? 1 : 0;
    if (row <= i) {
#pragma unroll 8
      for (int k = row + 1; k <= i; ++k)
        value = __dsub_rn(value, __dmul_rn(turned[k * kBlock + row], inverse[k * kBlock + i]));
      value = __ddiv_rn(value, turned[row * kBlock + row]);
      inverse[row * kBlock + i] = value;
      h.row(row)[i] = value;
    }
    negative[row * kBlock + i] = -value;
  }
}

__global__ void to_float_kernel(const double* from, int64_t n, float* to) {
  const int64_t row = blockIdx.x;
  const int64_t column = int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (column >= row && column < n)
    to[row * n + column] = static_cast<float>(from[row * n + column]);
}

int64_t num_blocks(int64_t n) {
  return (n + kBlock - 1) / kBlock;
}

}  // namespace

// The negative inverses of all triangles, a block's columns or rows, one triangle and its inverse.
int64_t inverse_factor_scratch(int64_t n) {
  return num_blocks(n) * kBlock * kBlock + n * kBlock + 2 * kBlock * kBlock;
}

void launch_inverse_factor(double* h, int64_t n, double* scratch, float* u, uint32_t* failed,
                           cudaStream_t stream) {
  double* negatives = scratch;
  double* strip = negatives + num_blocks(n) * kBlock * kBlock;
  double* turned = strip + n * kBlock;
  double* inverse = turned + kBlock * kBlock;
  const auto part = [&](int64_t row, int64_t column) {
    return MatrixView<double>{h + row * n + column, n};
  };
  const auto read = [](const MatrixView<double>& view) {
    return MatrixView<const double>{view.data, view.pitch};
  };
  const auto negative_of = [&](int64_t block) {
    return MatrixView<double>{negatives + block * kBlock * kBlock, kBlock};
  };
  NB_CUDA(cudaMemsetAsync(failed, 0, sizeof(*failed), stream));

  // R, but for its triangles on the diagonal, in whose place their inverses are.
  int64_t block = 0;
  for (int64_t last = n; last > 0; last -= std::min(kBlock, last), ++block) {
    const int64_t first = std::max<int64_t>(0, last - kBlock);
    const int64_t size = last - first;
    launch_subtract_products(
        {.rows = last, .columns = size, .depth = n - last, .b_transposed = true},
        read(part(0, last)), read(part(first, last)), part(0, first), stream);
    factor_triangle_kernel<<<1, kBlock, 0, stream>>>(part(first, first), static_cast<int>(size),
                                                     turned, inverse, negative_of(block).data,
                                                     failed);
    NB_CUDA_LAUNCHED();
    if (first == 0) break;
    NB_CUDA(cudaMemcpy2DAsync(strip, kBlock * sizeof(double), h + first,
                              static_cast<size_t>(n) * sizeof(double),
                              static_cast<size_t>(size) * sizeof(double),
                              static_cast<size_t>(first), cudaMemcpyDeviceToDevice, stream));
    launch_subtract_products(
        {.rows = first, .columns = size, .depth = size, .from_zero = true, .b_transposed = true},
        {strip, kBlock}, read(negative_of(block)), part(0, first), stream);
  }

  // U: a block of rows is its triangle's inverse times what the rows below leave of the identity.
  block = 0;
  for (int64_t last = n; last > 0; last -= std::min(kBlock, last), ++block) {
    const int64_t first = std::max<int64_t>(0, last - kBlock);
    const int64_t size = last - first;
    const MatrixView<double> rest{strip, n};
    launch_subtract_products(
        {.rows = size, .columns = n - last, .depth = n - last, .from_zero = true, .upper_from = 0},
        read(part(first, last)), read(part(last, last)), rest, stream);
    launch_subtract_products({.rows = size, .columns = n - last, .depth = size, .from_zero = true},
                             read(negative_of(block)), read(rest), part(first, last), stream);
  }
  const dim3 grid(static_cast<unsigned>(n), static_cast<unsigned>((n + 255) / 256));
  to_float_kernel<<<grid, 256, 0, stream>>>(h, n, u);
  NB_CUDA_LAUNCHED();
}

}  // namespace nibble::cuda
