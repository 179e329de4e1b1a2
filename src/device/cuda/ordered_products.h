// Products of matrices, taken off a third in the order of quant/ordered_products.h: product by
// product, each product and each difference rounded, so that the GPU's bits are the host's. For
// double precision on GPUs that have units for it. Plain C++17 without the tensor headers. All
// pointers are the device's; matrices are row-major.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace nibble::cuda {

// The first elements of two of its rows are `pitch` apart.
template <class T>
struct MatrixView {
  T* data;
  int64_t pitch;
  __host__ __device__ T* row(int64_t i) const { return data + i * pitch; }
};

struct OrderedProduct {
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t depth = 0;
  bool from_zero = false;     // c begins as zero, whatever it holds
  bool b_transposed = false;  // b is [columns, depth]
  // b[k][j] counts as zero where k + upper_from > j, and may hold anything there. -1: b is whole.
  int64_t upper_from = -1;
  // Unless null: only these rows of a and c, of which there are *num_listed, at most `rows`.
  const int32_t* listed = nullptr;
  const uint32_t* num_listed = nullptr;
};

// c[i][j] -= a[i][k] * b[k][j] for k = 0, 1, .. depth - 1; c is apart from a and b.
void launch_subtract_products(const OrderedProduct& product, const MatrixView<const float>& a,
                              const MatrixView<const float>& b, const MatrixView<float>& c,
                              cudaStream_t stream);
void launch_subtract_products(const OrderedProduct& product, const MatrixView<const double>& a,
                              const MatrixView<const float>& b, const MatrixView<double>& c,
                              cudaStream_t stream);
void launch_subtract_products(const OrderedProduct& product, const MatrixView<const double>& a,
                              const MatrixView<const double>& b, const MatrixView<double>& c,
                              cudaStream_t stream);

}  // namespace nibble::cuda
