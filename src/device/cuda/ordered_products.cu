// A block has a tile of c in registers while all of k passes through shared memory, two stages
// of it; the next one is read while a stage is used.
#include "device/cuda/ordered_products.h"

#include <type_traits>

#include "device/cuda/cuda_check.h"

namespace nibble::cuda {
namespace {

constexpr int kRows = 32;     // of c
constexpr int kColumns = 64;  // of c
constexpr int kDepth = 16;    // k of a stage
constexpr int kSide = 4;      // rows and columns of c a thread has
constexpr int kThreads = (kRows / kSide) * (kColumns / kSide);
constexpr int kPadding = 4;  // of rows of shared memory
// Elements of the operands that a thread moves per stage.
constexpr int kPiecesOfA = kRows * kDepth / kThreads;
constexpr int kPiecesOfB = kColumns * kDepth / kThreads;

__device__ __forceinline__ float less_product(float c, float a, float b) {
  return __fsub_rn(c, __fmul_rn(a, b));
}
__device__ __forceinline__ double less_product(double c, double a, double b) {
  return __dsub_rn(c, __dmul_rn(a, b));
}

// Where piece i of a thread lies: in a matrix whose rows go along k, and in one whose rows go
// across it.
struct AlongDepth {
  int k, other;
  __device__ explicit AlongDepth(int i)
      : k(static_cast<int>(threadIdx.x) % kDepth),
        other(static_cast<int>(threadIdx.x) / kDepth + i * (kThreads / kDepth)) {}
};
struct AcrossDepth {
  int k, other;
  __device__ explicit AcrossDepth(int i)
      : k(static_cast<int>(threadIdx.x) / kColumns + i * (kThreads / kColumns)),
        other(static_cast<int>(threadIdx.x) % kColumns) {}
};

template <class T, class B, bool kTransposed>
__global__ void __launch_bounds__(kThreads)
    subtract_products_kernel(OrderedProduct product, MatrixView<const T> a, MatrixView<const B> b,
                             MatrixView<T> c) {
  using PlaceOfB = std::conditional_t<kTransposed, AlongDepth, AcrossDepth>;
  struct alignas(sizeof(T) * kSide) Four {
    T values[kSide];
  };
  __shared__ __align__(32) T left[2][kDepth][kRows + kPadding];
  __shared__ __align__(32) T right[2][kDepth][kColumns + kPadding];
  const int64_t first_row = int64_t{blockIdx.y} * kRows;
  const int64_t first_column = int64_t{blockIdx.x} * kColumns;
  const int row = static_cast<int>(threadIdx.x) / (kColumns / kSide) * kSide;
  const int column = static_cast<int>(threadIdx.x) % (kColumns / kSide) * kSide;

  const int64_t num_rows = product.listed != nullptr ? *product.num_listed : product.rows;
  if (first_row >= num_rows) return;
  // Row i of the tile; null beyond the last.
  const auto row_of = [&](const auto& matrix, int i) {
    const int64_t at = first_row + i;
    if (at >= num_rows) return decltype(matrix.data){nullptr};
    return matrix.row(product.listed != nullptr ? product.listed[at] : at);
  };
  T* rows_of_c[kSide];
  const T* rows_of_a[kPiecesOfA];
#pragma unroll
  for (int i = 0; i < kSide; ++i) rows_of_c[i] = row_of(c, row + i);
#pragma unroll
  for (int i = 0; i < kPiecesOfA; ++i) rows_of_a[i] = row_of(a, AlongDepth(i).other);

  T sums[kSide][kSide];
#pragma unroll
  for (int i = 0; i < kSide; ++i)
#pragma unroll
    for (int j = 0; j < kSide; ++j) {
      const int64_t at = first_column + column + j;
      const bool inside = rows_of_c[i] != nullptr && at < product.columns;
      sums[i][j] = inside && !product.from_zero ? rows_of_c[i][at] : T{0};
    }

  int64_t depth = product.depth;
  if (product.upper_from >= 0)
    depth = max(int64_t{0}, min(depth, first_column + kColumns - product.upper_from));

  T left_pieces[kPiecesOfA];
  B right_pieces[kPiecesOfB];
  const auto read = [&](int64_t from) {
#pragma unroll
    for (int i = 0; i < kPiecesOfA; ++i) {
      const int64_t k = from + AlongDepth(i).k;
      left_pieces[i] = k < depth && rows_of_a[i] != nullptr ? rows_of_a[i][k] : T{0};
    }
#pragma unroll
    for (int i = 0; i < kPiecesOfB; ++i) {
      const PlaceOfB of_b(i);
      const int64_t k = from + of_b.k;
      const int64_t at = first_column + of_b.other;
      const bool there = k < depth && at < product.columns &&
                         (product.upper_from < 0 || k + product.upper_from <= at);
      right_pieces[i] = !there ? B{0} : kTransposed ? b.row(at)[k] : b.row(k)[at];
    }
  };
  // Whether some element of a that this thread moved is not zero.
  const auto store = [&](int stage) {
    bool any = false;
#pragma unroll
    for (int i = 0; i < kPiecesOfA; ++i) {
      const AlongDepth of_a(i);
      left[stage][of_a.k][of_a.other] = left_pieces[i];
      any |= left_pieces[i] != T{0};
    }
#pragma unroll
    for (int i = 0; i < kPiecesOfB; ++i) {
      const PlaceOfB of_b(i);
      right[stage][of_b.k][of_b.other] = static_cast<T>(right_pieces[i]);
    }
    return any;
  };

  if (depth > 0) read(0);
  int stage = 0;
  for (int64_t from = 0; from < depth; from += kDepth, stage ^= 1) {
    const bool any = __syncthreads_or(store(stage)) != 0;
    if (from + kDepth < depth) read(from + kDepth);
    if (!any) continue;
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      const Four of_rows = *reinterpret_cast<const Four*>(&left[stage][k][row]);
      const Four of_columns = *reinterpret_cast<const Four*>(&right[stage][k][column]);
#pragma unroll
      for (int i = 0; i < kSide; ++i)
#pragma unroll
        for (int j = 0; j < kSide; ++j)
          sums[i][j] = less_product(sums[i][j], of_rows.values[i], of_columns.values[j]);
    }
  }

#pragma unroll
  for (int i = 0; i < kSide; ++i)
#pragma unroll
    for (int j = 0; j < kSide; ++j) {
      const int64_t at = first_column + column + j;
      if (rows_of_c[i] != nullptr && at < product.columns) rows_of_c[i][at] = sums[i][j];
    }
}

template <class T, class B>
void launch(const OrderedProduct& product, const MatrixView<const T>& a,
            const MatrixView<const B>& b, const MatrixView<T>& c, cudaStream_t stream) {
  if (product.rows == 0 || product.columns == 0) return;
  const dim3 grid(static_cast<unsigned>((product.columns + kColumns - 1) / kColumns),
                  static_cast<unsigned>((product.rows + kRows - 1) / kRows));
  if (product.b_transposed) {
    subtract_products_kernel<T, B, true><<<grid, kThreads, 0, stream>>>(product, a, b, c);
  } else {
    subtract_products_kernel<T, B, false><<<grid, kThreads, 0, stream>>>(product, a, b, c);
  }
  NB_CUDA_LAUNCHED();
}

}  // namespace

void launch_subtract_products(const OrderedProduct& product, const MatrixView<const float>& a,
                              const MatrixView<const float>& b, const MatrixView<float>& c,
                              cudaStream_t stream) {
  launch(product, a, b, c, stream);
}

void launch_subtract_products(const OrderedProduct& product, const MatrixView<const double>& a,
                              const MatrixView<const float>& b, const MatrixView<double>& c,
                              cudaStream_t stream) {
  launch(product, a, b, c, stream);
}

void launch_subtract_products(const OrderedProduct& product, const MatrixView<const double>& a,
                              const MatrixView<const double>& b, const MatrixView<double>& c,
                              cudaStream_t stream) {
  launch(product, a, b, c, stream);
}

}  // namespace nibble::cuda
