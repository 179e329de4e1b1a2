// In double precision and in order, so that all devices agree.
#include "device/column_order.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace nibble {

std::vector<float> diagonal_of(const Tensor& matrix) {
  const int64_t n = matrix.shape[0];
  std::vector<float> diagonal(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i)
    diagonal[static_cast<size_t>(i)] = matrix.as<const float>()[i * n + i];
  return diagonal;
}

double mean_of(std::span<const float> diagonal) {
  double sum = 0;
  for (const float value : diagonal) sum += static_cast<double>(value);
  return sum / static_cast<double>(diagonal.size());
}

Result<ColumnOrder> column_order(std::span<const float> diagonal, bool act_order) {
  ColumnOrder order;
  order.mean = mean_of(diagonal);
  if (!diagonal.empty() && !std::isfinite(order.mean))
    return Error{ErrorCode::kInvalidArgument, "the calibration inputs hold NaN or infinity"};
  for (const float value : diagonal) order.reached.push_back(value > 0 ? 1 : 0);
  order.columns.resize(diagonal.size());
  std::iota(order.columns.begin(), order.columns.end(), 0);
  if (act_order)
    std::ranges::stable_sort(order.columns, [&](int32_t a, int32_t b) {
      return diagonal[static_cast<size_t>(a)] > diagonal[static_cast<size_t>(b)];
    });
  return order;
}

std::vector<double> dampings(const ColumnOrder& order, float dampening) {
  std::vector<double> all;
  for (double part = static_cast<double>(dampening); part <= 10; part *= 10)
    all.push_back(part * order.mean);
  return all;
}

Error not_positive_definite() {
  return {ErrorCode::kInvalidArgument,
          "the inputs' second moments are not positive definite even when dampened"};
}

}  // namespace nibble
