// H = R R' with R upper triangular (a Cholesky factor from the last column on), then U = R^-1.
//
// Both go by blocks of columns, from the last to the first. What blocks owe each other are products
// of matrices (quant/ordered_products.h); within a block only its triangle is left, whose inverse
// makes the solving of triangular systems a product too. No result depends on the threads.
#include "quant/inverse_factor.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>

#include "quant/ordered_products.h"

namespace nibble {
namespace {

constexpr int64_t kBlock = 128;  // rows or columns that are finished together
constexpr size_t kRowsOfTask = 64;

// A block of the diagonal: rows and columns [first, last), row by row.
struct Triangle {
  int64_t first;
  int64_t last;
  std::vector<double> inverse;  // of R's triangle, upper
  int64_t size() const { return last - first; }
};

// Of rows [0, count), kRowsOfTask at a time: body(first, rows).
template <class Body>
void each_rows(int64_t count, ThreadPool& pool, Body body) {
  pool.for_pieces(static_cast<size_t>(count), kRowsOfTask, [&](size_t begin, size_t end) {
    body(static_cast<int64_t>(begin), static_cast<int64_t>(end - begin));
  });
}

// Columns [first, last) lose the products of the finished ones behind them: a[i][j] -= sum over
// k >= last of a[i][k] a[j][k].
void subtract_finished(SquareMatrix& a, int64_t first, int64_t last, ThreadPool& pool) {
  const int64_t depth = a.size() - last;
  const int64_t width = last - first;
  std::vector<double> turned(static_cast<size_t>(depth * width));
  each_rows(depth, pool, [&](int64_t begin, int64_t rows) {
    for (int64_t k = begin; k < begin + rows; ++k)
      for (int64_t j = 0; j < width; ++j)
        turned[static_cast<size_t>(k * width + j)] = a.row(first + j)[last + k];
  });
  each_rows(last, pool, [&](int64_t begin, int64_t rows) {
    subtract_products({a.row(begin) + last, a.size()}, {turned.data(), width},
                      {a.row(begin) + first, a.size()}, rows, depth, width);
  });
}

// The triangle of R in place of a block of the diagonal; false if there is none. Below the diagonal
// nothing is read, and what lies there stays.
bool factor_triangle(SquareMatrix& a, int64_t first, int64_t last) {
  for (int64_t j = last; j-- > first;) {
    double* pivot = a.row(j);
    double sum = pivot[j];
    for (int64_t k = j + 1; k < last; ++k) sum -= pivot[k] * pivot[k];
    if (!(sum > 0) || !std::isfinite(sum)) return false;
    const double root = std::sqrt(sum);
    pivot[j] = root;
    for (int64_t i = first; i < j; ++i) {
      double* row = a.row(i);
      double rest = row[j];
      for (int64_t k = j + 1; k < last; ++k) rest -= row[k] * pivot[k];
      row[j] = rest / root;
    }
  }
  return true;
}

Triangle inverse_of_triangle(const SquareMatrix& r, int64_t first, int64_t last) {
  Triangle triangle{first, last, {}};
  const int64_t size = triangle.size();
  triangle.inverse.resize(static_cast<size_t>(size * size));
  const auto row_of = [&](int64_t i) { return triangle.inverse.data() + i * size; };
  for (int64_t i = size; i-- > 0;) {
    double* row = row_of(i);
    row[i] = 1;
    for (int64_t k = i + 1; k < size; ++k)
      for (int64_t c = k; c < size; ++c) row[c] -= r.row(first + i)[first + k] * row_of(k)[c];
    for (int64_t c = i; c < size; ++c) row[c] /= r.row(first + i)[first + i];
  }
  return triangle;
}

// The rows above the triangle: x becomes x R_t'^-1 in its columns.
void solve_above(SquareMatrix& a, const Triangle& triangle, ThreadPool& pool) {
  const int64_t size = triangle.size();
  std::vector<double> turned(triangle.inverse.size());
  for (int64_t i = 0; i < size; ++i)
    for (int64_t k = 0; k < size; ++k)
      turned[static_cast<size_t>(k * size + i)] =
          triangle.inverse[static_cast<size_t>(i * size + k)];
  each_rows(triangle.first, pool, [&](int64_t begin, int64_t rows) {
    std::vector<double> negative(static_cast<size_t>(rows * size));
    for (int64_t r = 0; r < rows; ++r) {
      double* row = a.row(begin + r) + triangle.first;
      for (int64_t c = 0; c < size; ++c) negative[static_cast<size_t>(r * size + c)] = -row[c];
      std::fill_n(row, size, 0.0);
    }
    subtract_products({negative.data(), size}, {turned.data(), size},
                      {a.row(begin) + triangle.first, a.size()}, rows, size, size);
  });
}

// R in place of the upper triangle; the blocks of its diagonal, the last first. Empty when the
// matrix is not positive definite.
std::vector<Triangle> reverse_cholesky(SquareMatrix& a, ThreadPool& pool) {
  std::vector<Triangle> triangles;
  for (int64_t last = a.size(); last > 0; last -= std::min(kBlock, last)) {
    const int64_t first = std::max<int64_t>(0, last - kBlock);
    subtract_finished(a, first, last, pool);
    if (!factor_triangle(a, first, last)) return {};
    triangles.push_back(inverse_of_triangle(a, first, last));
    solve_above(a, triangles.back(), pool);
  }
  return triangles;
}

// Columns [left, right) of R^-1, from the rows of `triangles` that reach them, upwards: a block of
// rows is its triangle's inverse times what the rows below leave of the identity.
void invert_band(const SquareMatrix& r, std::span<const Triangle> triangles, int64_t left,
                 int64_t right, float* inverse) {
  const int64_t n = r.size();
  const int64_t width = right - left;
  std::vector<double> u(static_cast<size_t>(right * width));
  std::vector<double> rest(static_cast<size_t>(kBlock * width));
  std::vector<double> negative(static_cast<size_t>(kBlock * kBlock));
  for (const Triangle& triangle : triangles) {
    const int64_t size = triangle.size();
    std::ranges::fill(rest, 0.0);
    if (triangle.first == left)
      for (int64_t i = 0; i < size; ++i) rest[static_cast<size_t>(i * width + i)] = 1;
    subtract_products({r.row(triangle.first) + triangle.last, n},
                      MatrixRows<const double>{u.data() + triangle.last * width, width},
                      {rest.data(), width}, size, right - triangle.last, width);
    std::ranges::transform(triangle.inverse, negative.begin(), std::negate());
    subtract_products({negative.data(), size}, MatrixRows<const double>{rest.data(), width},
                      {u.data() + triangle.first * width, width}, size, size, width);
  }
  for (int64_t i = 0; i < right; ++i)
    for (int64_t c = std::max(i, left); c < right; ++c)
      inverse[i * n + c] = static_cast<float>(u[static_cast<size_t>(i * width + c - left)]);
}

std::vector<float> inverse_of_upper(const SquareMatrix& r, std::span<const Triangle> triangles,
                                    ThreadPool& pool) {
  std::vector<float> inverse(static_cast<size_t>(r.size() * r.size()));
  // Bands do not depend on each other. The right ones are the long ones: they go first.
  pool.parallel_for(triangles.size(), 1, [&](size_t begin, size_t end) {
    for (size_t at = begin; at < end; ++at)
      invert_band(r, triangles.subspan(at), triangles[at].first, triangles[at].last,
                  inverse.data());
  });
  return inverse;
}

}  // namespace

std::vector<float> inverse_factor(SquareMatrix& h, ThreadPool& pool) {
  const std::vector<Triangle> triangles = reverse_cholesky(h, pool);
  if (triangles.empty()) return {};
  return inverse_of_upper(h, triangles, pool);
}

}  // namespace nibble
