// With H the dampened hessian, the factor U of H^-1 = U'U (upper triangular) holds all that the
// column loop needs. Rows of the weight are independent. What a block of columns leaves to those
// behind it is done at its end (section 3.3 of the paper), which changes no bit.
#include "quant/gptq.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "quant/inverse_factor.h"
#include "quant/ordered_products.h"

namespace nibble {
namespace {

constexpr size_t kRowsOfTask = 64;  // of the weight; they share one pass over U
constexpr int64_t kBlock = 128;     // columns whose errors the others learn of together, at most

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

// The column loop, over some rows at a time.
struct ColumnLoop {
  const Tensor& weight;
  const QuantFormat& format;
  const Observer& observer;
  std::span<const float> importance;
  bool act_order;
  const std::vector<int64_t>& order;  // of columns
  std::vector<bool> reached;          // by any input, [columns]
  std::vector<float> u;
  ThreadPool& pool;
  QuantizedWeight& result;

  int64_t columns() const { return weight.shape[1]; }
  int64_t num_groups() const { return format.num_groups(columns()); }
  int64_t group_size() const { return columns() / num_groups(); }
  size_t parameter(int64_t row, int64_t column) const {
    return static_cast<size_t>(row * num_groups() + column / group_size());
  }

  // Rows in the order of the loop.
  std::vector<float> ordered_rows(int64_t first, int64_t rows) const {
    std::vector<float> w(static_cast<size_t>(rows * columns()));
    std::vector<float> row(static_cast<size_t>(columns()));
    for (int64_t r = 0; r < rows; ++r) {
      to_float(weight.rows(first + r, first + r + 1), row.data());
      for (size_t c = 0; c < row.size(); ++c) {
        const auto from = static_cast<size_t>(order[c]);
        // What no input ever reaches cannot matter, and must not stretch a group.
        w[static_cast<size_t>(r) * row.size() + c] = reached[from] ? row[from] : 0;
      }
    }
    return w;
  }

  // Finds the ranges of the group that begins at column c, of what the loop has made of it.
  void observe(int64_t first, int64_t rows, int64_t c, const std::vector<float>& w) const {
    const int64_t size = group_size();
    std::vector<float> group(static_cast<size_t>(rows * size));
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t k = 0; k < size; ++k)
        group[static_cast<size_t>(r * size + k)] =
            round_to(weight.dtype, w[static_cast<size_t>(r * columns() + c + k)]);
    const Tensor view{group.data(), DType::kF32, {rows, size}};
    QuantFormat whole = format;
    whole.group_size = -1;
    const auto part = importance.empty()
                          ? importance
                          : importance.subspan(static_cast<size_t>(c), static_cast<size_t>(size));
    const GroupParameters found =
        parameters_from_ranges(observer.observe(view, whole, part, pool), weight.dtype, format);
    for (int64_t r = 0; r < rows; ++r) {
      const size_t at = parameter(first + r, c);
      result.parameters.scale[at] = found.scale[static_cast<size_t>(r)];
      result.parameters.zero_point[at] = found.zero_point[static_cast<size_t>(r)];
    }
  }

  // Where the block that begins there ends: groups begin with blocks, or lie in one.
  int64_t block_end(int64_t begin) const {
    const int64_t size = group_size();
    const int64_t end = size < kBlock ? begin + kBlock / size * size
                                      : std::min(begin + kBlock, (begin / size + 1) * size);
    return std::min(end, columns());
  }

  void round_rows(int64_t first, int64_t rows) const {
    std::vector<float> w = ordered_rows(first, rows);
    std::vector<float> errors(static_cast<size_t>(rows * kBlock));
    for (int64_t begin = 0; begin < columns();) {
      const int64_t end = block_end(begin);
      for (int64_t c = begin; c < end; ++c) {
        if (!act_order && c % group_size() == 0) observe(first, rows, c, w);
        const int64_t column = order[static_cast<size_t>(c)];
        const size_t first_parameter = parameter(first, column);
        const auto parameters_of_row = static_cast<size_t>(num_groups());
        const float* factors = u.data() + c * columns();
        for (int64_t r = 0; r < rows; ++r) {
          float* row = w.data() + r * columns();
          const size_t at = first_parameter + static_cast<size_t>(r) * parameters_of_row;
          const float scale = result.parameters.scale[at];
          const int8_t zero_point = result.parameters.zero_point[at];
          const int8_t q = quantize_value(row[c], scale, zero_point, weight.dtype, format);
          result.integers[static_cast<size_t>((first + r) * columns() + column)] = q;
          const float error =
              (row[c] - dequantize_value(q, scale, zero_point, weight.dtype)) / factors[c];
          for (int64_t k = c + 1; k < end; ++k) row[k] -= error * factors[k];
          errors[static_cast<size_t>(r * kBlock + c - begin)] = error;
        }
      }
      subtract_products({errors.data(), kBlock}, {u.data() + begin * columns() + end, columns()},
                        {w.data() + end, columns()}, rows, end - begin, columns() - end);
      begin = end;
    }
  }
};

}  // namespace

Result<QuantizedWeight> gptq(const Tensor& weight, const Tensor& hessian, const QuantFormat& format,
                             const Observer& observer, std::span<const float> importance,
                             const GptqSettings& settings, ThreadPool& pool) {
  if (!all_finite(weight, pool))
    return Error{ErrorCode::kInvalidArgument, "the weight holds NaN or infinity"};
  const int64_t columns = weight.shape[1];
  const float* h = hessian.as<const float>();
  const auto diagonal = [&](int64_t c) { return h[c * columns + c]; };
  std::vector<int64_t> order(static_cast<size_t>(columns));
  std::iota(order.begin(), order.end(), 0);
  if (settings.act_order)
    std::ranges::stable_sort(order,
                             [&](int64_t a, int64_t b) { return diagonal(a) > diagonal(b); });
  NB_TRY(std::vector<float> u, dampened_inverse(hessian, order, settings.dampening, pool));

  QuantizedWeight result;
  GroupParameters& parameters = result.parameters;
  const auto num_parameters = static_cast<size_t>(weight.shape[0] * format.num_groups(columns));
  if (settings.act_order) {
    parameters = parameters_from_ranges(observer.observe(weight, format, importance, pool),
                                        weight.dtype, format);
  } else {
    parameters.scale.resize(num_parameters);
    parameters.zero_point.resize(num_parameters);
  }
  result.integers.resize(static_cast<size_t>(weight.num_elements()));

  std::vector<bool> reached(static_cast<size_t>(columns));
  for (int64_t c = 0; c < columns; ++c) reached[static_cast<size_t>(c)] = diagonal(c) > 0;
  const ColumnLoop loop{.weight = weight,
                        .format = format,
                        .observer = observer,
                        .importance = importance,
                        .act_order = settings.act_order,
                        .order = order,
                        .reached = std::move(reached),
                        .u = std::move(u),
                        .pool = pool,
                        .result = result};
  pool.for_pieces(static_cast<size_t>(weight.shape[0]), kRowsOfTask, [&](size_t begin, size_t end) {
    loop.round_rows(static_cast<int64_t>(begin), static_cast<int64_t>(end - begin));
  });
  return result;
}

}  // namespace nibble
