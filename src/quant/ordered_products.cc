// A tile of c stays in registers while all of k passes: 4 rows and two vectors of 64 bytes. The
// part of b above it is copied together once, for all rows; of a, the columns that are zero in the
// four rows are left out.
#include "quant/ordered_products.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <vector>

#include "quant/vector_widths.h"

namespace nibble {
namespace {

constexpr int64_t kRows = 4;
constexpr int64_t kDepth = 256;  // of b that is copied together

// What the compiler spreads over the registers it has.
template <class T>
struct Vector;
template <>
struct Vector<float> {
  typedef float Type __attribute__((vector_size(64)));
};
template <>
struct Vector<double> {
  typedef double Type __attribute__((vector_size(64)));
};

template <class T>
struct alignas(64) TileRow {
  typename Vector<T>::Type halves[2];
  T* data() { return reinterpret_cast<T*>(halves); }
};
template <class T>
constexpr int64_t kWidth = sizeof(TileRow<T>) / sizeof(T);
template <class T>
struct Tile {
  TileRow<T> rows[kRows];
};

// One k: its row in the copy of b, and the elements of a.
template <class T>
struct Step {
  int64_t row;
  std::array<T, static_cast<size_t>(kRows)> factors;
};

template <class T>
[[gnu::always_inline]] inline void subtract_steps(const Step<T>* steps, int64_t count,
                                                  const TileRow<T>* b, Tile<T>* tile) {
  using V = typename Vector<T>::Type;
  V c[kRows][2];
  for (size_t i = 0; i < kRows; ++i)
    for (size_t h = 0; h < 2; ++h) c[i][h] = tile->rows[i].halves[h];
  for (int64_t s = 0; s < count; ++s) {
    const V left = b[steps[s].row].halves[0];
    const V right = b[steps[s].row].halves[1];
    for (size_t i = 0; i < kRows; ++i) {
      const T factor = steps[s].factors[i];
      c[i][0] -= factor * left;
      c[i][1] -= factor * right;
    }
  }
  for (size_t i = 0; i < kRows; ++i)
    for (size_t h = 0; h < 2; ++h) tile->rows[i].halves[h] = c[i][h];
}

// Columns [0, width) of some rows of b, together.
template <class T, class B>
[[gnu::always_inline]] inline void copy_rows(const MatrixRows<const B>& b, int64_t rows,
                                             int64_t width, TileRow<T>* to) {
  for (int64_t k = 0; k < rows; ++k) {
    const B* from = b.row(k);
    T* row = to[k].data();
    if (width == kWidth<T>) {
      for (int64_t j = 0; j < kWidth<T>; ++j) row[j] = from[j];
    } else {
      for (int64_t j = 0; j < width; ++j) row[j] = from[j];
    }
  }
}

NIBBLE_VECTOR_WIDTHS void subtract_tile(const Step<float>* steps, int64_t count,
                                        const TileRow<float>* b, Tile<float>* tile) {
  subtract_steps(steps, count, b, tile);
}
NIBBLE_VECTOR_WIDTHS void subtract_tile(const Step<double>* steps, int64_t count,
                                        const TileRow<double>* b, Tile<double>* tile) {
  subtract_steps(steps, count, b, tile);
}
NIBBLE_VECTOR_WIDTHS void copy_together(const MatrixRows<const float>& b, int64_t rows,
                                        int64_t width, TileRow<float>* to) {
  copy_rows(b, rows, width, to);
}
NIBBLE_VECTOR_WIDTHS void copy_together(const MatrixRows<const float>& b, int64_t rows,
                                        int64_t width, TileRow<double>* to) {
  copy_rows(b, rows, width, to);
}
NIBBLE_VECTOR_WIDTHS void copy_together(const MatrixRows<const double>& b, int64_t rows,
                                        int64_t width, TileRow<double>* to) {
  copy_rows(b, rows, width, to);
}

// Columns [0, depth) of kRows rows of a, but those that are zero in all of them. Returns how many.
template <class T>
int64_t list_steps(const std::array<const T*, static_cast<size_t>(kRows)>& rows, int64_t depth,
                   Step<T>* steps) {
  Step<T>* next = steps;
  for (int64_t k = 0; k < depth; ++k) {
    next->row = k;
    bool any = false;
    for (size_t i = 0; i < rows.size(); ++i) {
      next->factors[i] = rows[i][k];
      any |= rows[i][k] != 0;
    }
    next += any ? 1 : 0;
  }
  return next - steps;
}

template <class T, class B>
void subtract(const MatrixRows<const T>& a, const MatrixRows<const B>& b, const MatrixRows<T>& c,
              int64_t rows, int64_t depth, int64_t columns) {
  const int64_t quads = (rows + kRows - 1) / kRows;
  const int64_t longest = std::min(depth, kDepth);
  std::vector<Step<T>> steps(static_cast<size_t>(quads * longest));  // [quad][k]
  std::vector<int64_t> counts(static_cast<size_t>(quads));
  std::vector<TileRow<T>> right(static_cast<size_t>(longest));
  const std::vector<T> zeros(static_cast<size_t>(longest));
  for (int64_t from = 0; from < depth; from += kDepth) {
    const int64_t to = std::min(from + kDepth, depth);
    bool any = false;
    for (int64_t quad = 0; quad < quads; ++quad) {
      std::array<const T*, static_cast<size_t>(kRows)> of_quad;
      for (int64_t i = 0; i < kRows; ++i)
        of_quad[static_cast<size_t>(i)] =
            quad * kRows + i < rows ? a.row(quad * kRows + i) + from : zeros.data();
      int64_t& count = counts[static_cast<size_t>(quad)];
      count = list_steps(of_quad, to - from, steps.data() + quad * longest);
      any |= count > 0;
    }
    if (!any) continue;
    for (int64_t left = 0; left < columns; left += kWidth<T>) {
      const auto width = static_cast<size_t>(std::min(kWidth<T>, columns - left));
      copy_together(MatrixRows<const B>{b.row(from) + left, b.pitch}, to - from,
                    static_cast<int64_t>(width), right.data());
      for (int64_t quad = 0; quad < quads; ++quad) {
        const int64_t count = counts[static_cast<size_t>(quad)];
        if (count == 0) continue;
        Tile<T> tile{};
        const int64_t first = quad * kRows;
        const auto present = static_cast<size_t>(std::min(kRows, rows - first));
        for (size_t i = 0; i < present; ++i)
          std::copy_n(c.row(first + static_cast<int64_t>(i)) + left, width, tile.rows[i].data());
        subtract_tile(steps.data() + quad * longest, count, right.data(), &tile);
        for (size_t i = 0; i < present; ++i)
          std::copy_n(tile.rows[i].data(), width, c.row(first + static_cast<int64_t>(i)) + left);
      }
    }
  }
}

}  // namespace

void subtract_products(const MatrixRows<const float>& a, const MatrixRows<const float>& b,
                       const MatrixRows<float>& c, int64_t rows, int64_t depth, int64_t columns) {
  subtract(a, b, c, rows, depth, columns);
}

void subtract_products(const MatrixRows<const double>& a, const MatrixRows<const float>& b,
                       const MatrixRows<double>& c, int64_t rows, int64_t depth, int64_t columns) {
  subtract(a, b, c, rows, depth, columns);
}

void subtract_products(const MatrixRows<const double>& a, const MatrixRows<const double>& b,
                       const MatrixRows<double>& c, int64_t rows, int64_t depth, int64_t columns) {
  subtract(a, b, c, rows, depth, columns);
}

}  // namespace nibble
