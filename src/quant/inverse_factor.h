// What GPTQ needs of the second moments H of a layer's inputs: U with H^-1 = U'U, upper triangular.
// Source: Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ", arXiv:2210.17323, section 3.3.
#pragma once

#include <vector>

#include "base/thread_pool.h"

namespace nibble {

// A square matrix of doubles, row by row.
class SquareMatrix {
 public:
  explicit SquareMatrix(int64_t size) : size_(size), values_(static_cast<size_t>(size * size)) {}
  double* row(int64_t i) { return values_.data() + i * size_; }
  const double* row(int64_t i) const { return values_.data() + i * size_; }
  int64_t size() const { return size_; }

 private:
  int64_t size_;
  std::vector<double> values_;
};

// U [n, n] in float32 of the symmetric matrix `h`, of which the upper triangle is read; h is used
// up. Empty when h is not positive definite. Takes n^3 / 3 multiplications; besides the result 1 KB
// for each of n and of each thread as much again.
std::vector<float> inverse_factor(SquareMatrix& h, ThreadPool& pool);

}  // namespace nibble
