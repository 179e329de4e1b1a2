// With H the dampened hessian, the factor U of H^-1 = U'U (upper triangular) holds all that the
// column loop needs. Rows of the weight are independent.
#include "quant/gptq.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "quant/inverse_factor.h"

namespace nibble {
namespace {

constexpr size_t kRowsPerTask = 16;  // of the weight; they share one pass over U

// U for the columns in `order`.
Result<std::vector<float>> dampened_inverse(const Tensor& hessian,
                                            const std::vector<int64_t>& order, float dampening,
                                            ThreadPool& pool) {
  const int64_t n = hessian.shape[0];
  const float* h = hessian.as<const float>();
  double mean = 0;
  for (int64_t i = 0; i < n; ++i) mean += static_cast<double>(h[i * n + i]);
  mean /= static_cast<double>(n);
  if (!std::isfinite(mean))
    return Error{ErrorCode::kInvalidArgument, "the calibration inputs hold NaN or infinity"};
  for (double damp = static_cast<double>(dampening); damp <= 10; damp *= 10) {
    SquareMatrix dampened(n);
    for (int64_t i = 0; i < n; ++i) {
      const float* from = h + order[static_cast<size_t>(i)] * n;
      double* row = dampened.row(i);
      for (int64_t k = 0; k < n; ++k) row[k] = from[order[static_cast<size_t>(k)]];
      row[i] = row[i] > 0 ? row[i] + damp * mean : 1;
    }
    std::vector<float> u = inverse_factor(dampened, pool);
    if (!u.empty() || n == 0) return u;
  }
  return Error{ErrorCode::kInvalidArgument,
               "the inputs' second moments are not positive definite even when dampened"};
}

}  // namespace

Result<QuantizedWeight> gptq(const Tensor& weight, const Tensor& hessian, const QuantFormat& format,
                             const Observer& observer, std::span<const float> importance,
                             const GptqSettings& settings, ThreadPool& pool) {
  if (!all_finite(weight, pool))
    return Error{ErrorCode::kInvalidArgument, "the weight holds NaN or infinity"};
  const int64_t columns = weight.shape[1];
  const int64_t num_groups = format.num_groups(columns);
  const int64_t group_size = columns / num_groups;
  const float* h = hessian.as<const float>();
  const auto diagonal = [&](int64_t c) { return h[c * columns + c]; };
  std::vector<int64_t> order(static_cast<size_t>(columns));
  std::iota(order.begin(), order.end(), 0);
  if (settings.act_order)
    std::ranges::stable_sort(order,
                             [&](int64_t a, int64_t b) { return diagonal(a) > diagonal(b); });
  NB_TRY(const std::vector<float> u, dampened_inverse(hessian, order, settings.dampening, pool));

  QuantizedWeight result;
  GroupParameters& parameters = result.parameters;
  const auto num_parameters = static_cast<size_t>(weight.shape[0] * num_groups);
  if (settings.act_order) {
    parameters = parameters_from_ranges(observer.observe(weight, format, importance, pool),
                                        weight.dtype, format);
  } else {
    parameters.scale.resize(num_parameters);
    parameters.zero_point.resize(num_parameters);
  }
  result.integers.resize(static_cast<size_t>(weight.num_elements()));

  pool.parallel_for(
      static_cast<size_t>(weight.shape[0]), kRowsPerTask, [&](size_t begin, size_t end) {
        const auto first = static_cast<int64_t>(begin);
        const auto rows = static_cast<int64_t>(end) - first;
        // Columns in the order of the loop.
        std::vector<float> original(static_cast<size_t>(rows * columns));
        std::vector<float> w(original.size());
        std::vector<float> one_group(static_cast<size_t>(rows * group_size));
        to_float(weight.rows(first, first + rows), original.data());
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t c = 0; c < columns; ++c) {
            const int64_t from = order[static_cast<size_t>(c)];
            // What no input ever reaches cannot matter, and must not stretch a group.
            w[static_cast<size_t>(r * columns + c)] =
                diagonal(from) > 0 ? original[static_cast<size_t>(r * columns + from)] : 0;
          }
        for (int64_t c = 0; c < columns; ++c) {
          const int64_t column = order[static_cast<size_t>(c)];
          const int64_t group = column / group_size;
          if (!settings.act_order && c % group_size == 0) {
            for (int64_t r = 0; r < rows; ++r)
              for (int64_t k = 0; k < group_size; ++k)
                one_group[static_cast<size_t>(r * group_size + k)] =
                    round_to(weight.dtype, w[static_cast<size_t>(r * columns + c + k)]);
            const Tensor view{one_group.data(), DType::kF32, {rows, group_size}};
            QuantFormat whole = format;
            whole.group_size = -1;
            const auto part =
                importance.empty()
                    ? importance
                    : importance.subspan(static_cast<size_t>(c), static_cast<size_t>(group_size));
            const GroupParameters found = parameters_from_ranges(
                observer.observe(view, whole, part, pool), weight.dtype, format);
            for (int64_t r = 0; r < rows; ++r) {
              const auto at = static_cast<size_t>((first + r) * num_groups + group);
              parameters.scale[at] = found.scale[static_cast<size_t>(r)];
              parameters.zero_point[at] = found.zero_point[static_cast<size_t>(r)];
            }
          }
          const float* factors = u.data() + c * columns;
          for (int64_t r = 0; r < rows; ++r) {
            float* row = w.data() + r * columns;
            const auto at = static_cast<size_t>((first + r) * num_groups + group);
            const int8_t q = quantize_value(row[c], parameters.scale[at], parameters.zero_point[at],
                                            weight.dtype, format);
            result.integers[static_cast<size_t>((first + r) * columns + column)] = q;
            const float error =
                (row[c] - dequantize_value(q, parameters.scale[at], parameters.zero_point[at],
                                           weight.dtype)) /
                factors[c];
            for (int64_t k = c + 1; k < columns; ++k) row[k] -= error * factors[k];
          }
        }
      });
  return result;
}

}  // namespace nibble
