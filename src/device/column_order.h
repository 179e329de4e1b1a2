// What the diagonal of a layer's second moments says to GPTQ and refinement on every device: which
// columns are reached by any input, which come first, and what dampening is measured by.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "tensor/tensor.h"

namespace nibble {

struct ColumnOrder {
  std::vector<int32_t> columns;  // by their turn
  std::vector<uint8_t> reached;  // [columns], 1 where the diagonal is positive
  double mean = 0;               // of the diagonal
};

// Of a square F32 matrix in host memory.
std::vector<float> diagonal_of(const Tensor& matrix);
double mean_of(std::span<const float> diagonal);

// The largest of the diagonal first if `act_order`, else as they lie. kInvalidArgument when the
// mean is not finite.
Result<ColumnOrder> column_order(std::span<const float> diagonal, bool act_order);

// What is added to the diagonal, in turns, until the matrix is positive definite: `dampening` of
// the mean, ten times as much, and so on up to ten means.
std::vector<double> dampings(const ColumnOrder& order, float dampening);
Error not_positive_definite();

}  // namespace nibble
