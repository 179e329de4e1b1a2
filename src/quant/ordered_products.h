// Products of matrices, taken off a third in a fixed order: what an element loses, it loses product
// by product, each product and each difference rounded. So neither blocks nor threads nor
// instruction sets change a bit, and a loop that updates a whole row after each column may put its
// updates off to do many at once (the lazy batches of arXiv:2210.17323, section 3.3).
#pragma once

#include <cstdint>

namespace nibble {

// Rows of a row-major matrix, the first elements of two of them `pitch` apart.
template <class T>
struct MatrixRows {
  T* data;
  int64_t pitch;
  T* row(int64_t i) const { return data + i * pitch; }
};

// c[i][j] -= a[i][k] * b[k][j] for k = 0, 1, .. depth - 1, for all of c [rows, columns]; where
// a[i][k] is zero, b[k] is taken to be finite and nothing is done. The calling thread alone.
void subtract_products(const MatrixRows<const float>& a, const MatrixRows<const float>& b,
                       const MatrixRows<float>& c, int64_t rows, int64_t depth, int64_t columns);
// The same in double precision, where b is of float widened.
void subtract_products(const MatrixRows<const double>& a, const MatrixRows<const float>& b,
                       const MatrixRows<double>& c, int64_t rows, int64_t depth, int64_t columns);
void subtract_products(const MatrixRows<const double>& a, const MatrixRows<const double>& b,
                       const MatrixRows<double>& c, int64_t rows, int64_t depth, int64_t columns);

}  // namespace nibble
