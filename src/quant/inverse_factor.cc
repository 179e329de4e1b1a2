// H = R R' with R upper triangular (a Cholesky factor from the last column on), then U = R^-1.
//
// Both work in blocks, so that a matrix far larger than the caches passes through them once per
// block and not once per row, and so that the innermost loops run over neighbouring elements
// without a chain of additions.
#include "quant/inverse_factor.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace nibble {
namespace {

constexpr int64_t kBlock = 32;   // rows or columns that are finished together
constexpr int64_t kDepth = 512;  // elements of their rows that are multiplied before the next
constexpr int64_t kWidth = 256;  // columns of a task

using Row = std::array<double, kBlock>;
using Band = std::array<double, kWidth>;

// Compiled for several instruction sets, the best of which is taken at run time; none fuses
// multiplications and additions (-ffp-contract=off), so all give the same values.
#if defined(__x86_64__) && defined(__GNUC__)
#define NIBBLE_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define NIBBLE_CLONES
#endif

// sum[j] = sum over k < depth of row[k] block[k][j].
NIBBLE_CLONES void multiply_row(const double* row, const Row* block, int64_t depth, Row* sum) {
  Row acc{};
  for (int64_t k = 0; k < depth; ++k)
    for (size_t j = 0; j < kBlock; ++j) acc[j] += row[k] * block[k][j];
  *sum = acc;
}

// row -= factor * below
NIBBLE_CLONES void subtract_scaled(Band* row, double factor, const Band& below) {
  for (size_t c = 0; c < kWidth; ++c) (*row)[c] -= factor * below[c];
}

// The products of the rows [begin, end) with the finished columns behind `last`, taken off columns
// [first, last): a[i][j] -= sum over k >= last of a[i][k] a[j][k].
void subtract_finished(SquareMatrix& a, int64_t first, int64_t last, ThreadPool& pool) {
  const int64_t n = a.size();
  const int64_t width = last - first;
  std::vector<Row> block(static_cast<size_t>(kDepth));
  for (int64_t from = last; from < n; from += kDepth) {
    const int64_t depth = std::min(kDepth, n - from);
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t j = 0; j < kBlock; ++j)
        block[static_cast<size_t>(k)][static_cast<size_t>(j)] =
            j < width ? a.row(first + j)[from + k] : 0;
    pool.parallel_for(static_cast<size_t>(last), 16, [&](size_t begin, size_t end) {
      for (auto i = static_cast<int64_t>(begin); i < static_cast<int64_t>(end); ++i) {
        double* row = a.row(i);
        Row sum;
        multiply_row(row + from, block.data(), depth, &sum);
        for (int64_t j = 0; j < width; ++j) row[first + j] -= sum[static_cast<size_t>(j)];
      }
    });
  }
}

// In place, the lower triangle becoming zero; false when the matrix is not positive definite.
bool reverse_cholesky(SquareMatrix& a, ThreadPool& pool) {
  for (int64_t last = a.size(); last > 0; last -= std::min(kBlock, last)) {
    const int64_t first = std::max<int64_t>(0, last - kBlock);
    subtract_finished(a, first, last, pool);
    for (int64_t j = last; j-- > first;) {
      double* pivot = a.row(j);
      double sum = pivot[j];
      for (int64_t k = j + 1; k < last; ++k) sum -= pivot[k] * pivot[k];
      if (!(sum > 0) || !std::isfinite(sum)) return false;
      const double root = std::sqrt(sum);
      pivot[j] = root;
      for (int64_t i = 0; i < j; ++i) {
        double* row = a.row(i);
        double rest = row[j];
        for (int64_t k = j + 1; k < last; ++k) rest -= row[k] * pivot[k];
        row[j] = rest / root;
      }
      std::fill(pivot, pivot + j, 0.0);
    }
  }
  return true;
}

// Row i of the inverse from the rows below it, a block of rows and a band of columns at a time.
std::vector<float> inverse_of_upper(const SquareMatrix& r, ThreadPool& pool) {
  const int64_t n = r.size();
  std::vector<float> inverse(static_cast<size_t>(n * n));
  const int64_t bands = (n + kWidth - 1) / kWidth;
  // Columns do not depend on each other. The right bands are the long ones: they go first.
  pool.parallel_for(static_cast<size_t>(bands), 1, [&](size_t begin, size_t end) {
    for (size_t at = begin; at < end; ++at) {
      const int64_t left = (bands - 1 - static_cast<int64_t>(at)) * kWidth;
      const int64_t right = std::min(n, left + kWidth);
      std::vector<Band> u(static_cast<size_t>(right));
      for (int64_t last = right; last > 0; last -= std::min(kBlock, last)) {
        const int64_t first = std::max<int64_t>(0, last - kBlock);
        for (int64_t k = last; k < right; ++k) {
          for (int64_t i = first; i < last; ++i)
            subtract_scaled(&u[static_cast<size_t>(i)], r.row(i)[k], u[static_cast<size_t>(k)]);
        }
        for (int64_t i = last; i-- > first;) {
          Band& row = u[static_cast<size_t>(i)];
          for (int64_t k = i + 1; k < last; ++k)
            subtract_scaled(&row, r.row(i)[k], u[static_cast<size_t>(k)]);
          if (i >= left) row[static_cast<size_t>(i - left)] += 1;
          for (double& value : row) value /= r.row(i)[i];
        }
      }
      for (int64_t i = 0; i < right; ++i)
        for (int64_t c = std::max(i, left); c < right; ++c)
          inverse[static_cast<size_t>(i * n + c)] =
              static_cast<float>(u[static_cast<size_t>(i)][static_cast<size_t>(c - left)]);
    }
  });
  return inverse;
}

}  // namespace

std::vector<float> inverse_factor(SquareMatrix& h, ThreadPool& pool) {
  if (!reverse_cholesky(h, pool)) return {};
  return inverse_of_upper(h, pool);
}

}  // namespace nibble
