// With H the dampened hessian, the factor U of H^-1 = U'U (upper triangular) holds all that the
// column loop needs. Rows of the weight are independent. What a block of columns leaves to those
// behind it is done at its end (section 3.3 of the paper), which changes no bit.
#include "quant/gptq.h"

#include <algorithm>

#include "device/column_order.h"
#include "quant/inverse_factor.h"
#include "quant/ordered_products.h"
#include "quant/owned_tensor.h"

namespace nibble {
namespace {

constexpr size_t kRowsOfTask = 64;  // of the weight; they share one pass over U
constexpr int64_t kBlock = 128;     // columns whose errors the others learn of together, at most

// U for the columns in their order.
Result<std::vector<float>> dampened_inverse(const Tensor& hessian, const ColumnOrder& order,
                                            float dampening, ThreadPool& pool) {
  const int64_t n = hessian.shape[0];
  const float* h = hessian.as<const float>();
  for (const double damp : dampings(order, dampening)) {
    SquareMatrix dampened(n);
    for (int64_t i = 0; i < n; ++i) {
      const float* from = h + order.columns[static_cast<size_t>(i)] * n;
      double* row = dampened.row(i);
      for (int64_t k = 0; k < n; ++k) row[k] = from[order.columns[static_cast<size_t>(k)]];
      row[i] = row[i] > 0 ? row[i] + damp : 1;
    }
    std::vector<float> u = inverse_factor(dampened, pool);
    if (!u.empty() || n == 0) return u;
  }
  return not_positive_definite();
}

class ColumnLoop {
 public:
  ColumnLoop(const Tensor& weight, const QuantFormat& format, const ColumnOrder& order,
             const std::vector<float>& u, ThreadPool& pool, QuantizedWeight& result)
      : weight_(weight),
        format_(format),
        order_(order.columns),
        u_(u),
        pool_(pool),
        result_(result),
        rows_(weight.shape[0]),
        columns_(weight.shape[1]),
        num_groups_(format.num_groups(columns_)),
        group_size_(columns_ / num_groups_),
        values_(static_cast<size_t>(rows_ * columns_)),
        errors_(static_cast<size_t>(rows_ * kBlock)) {
    each_rows([&](int64_t first, int64_t rows) { put_in_order(first, rows, order.reached); });
  }

  // With the ranges that `result` has.
  void run() {
    for (int64_t begin = 0; begin < columns_; begin += kBlock)
      round_block(begin, std::min(begin + kBlock, columns_));
  }
  // With ranges of what the loop has made of a group when it comes to it. Columns as they lie.
  void run(const RangeSearch& search, std::span<const float> shares) {
    for (int64_t group = 0; group < columns_; group += group_size_) {
      const int64_t end = group + group_size_;
      find_group_ranges(group, search, shares);
      for (int64_t begin = group; begin < end; begin += kBlock)
        round_block(begin, std::min(begin + kBlock, end));
    }
  }

 private:
  size_t parameter(int64_t row, int64_t column) const {
    return static_cast<size_t>(row * num_groups_ + column / group_size_);
  }
  template <class Body>
  void each_rows(const Body& body) {
    pool_.for_pieces(static_cast<size_t>(rows_), kRowsOfTask, [&](size_t begin, size_t end) {
      body(static_cast<int64_t>(begin), static_cast<int64_t>(end - begin));
    });
  }

  void put_in_order(int64_t first, int64_t rows, const std::vector<uint8_t>& reached) {
    std::vector<float> row(static_cast<size_t>(columns_));
    for (int64_t r = first; r < first + rows; ++r) {
      to_float(weight_.rows(r, r + 1), row.data());
      for (size_t c = 0; c < row.size(); ++c) {
        const auto from = static_cast<size_t>(order_[c]);
        // What no input ever reaches cannot matter, and must not stretch a group.
        values_[static_cast<size_t>(r) * row.size() + c] = reached[from] != 0 ? row[from] : 0;
      }
    }
  }

  // The columns of a group as they are now, rounded to the weight's dtype.
  OwnedTensor group_at(int64_t begin) const {
    OwnedTensor group(weight_.dtype, {rows_, group_size_});
    for (int64_t r = 0; r < rows_; ++r)
      from_float(values_.data() + r * columns_ + begin, group.view().rows(r, r + 1));
    return group;
  }

  void find_group_ranges(int64_t begin, const RangeSearch& search, std::span<const float> shares) {
    const OwnedTensor group = group_at(begin);
    QuantFormat whole = format_;
    whole.group_size = -1;
    const auto part = shares.empty() ? shares
                                     : shares.subspan(static_cast<size_t>(begin),
                                                      static_cast<size_t>(group_size_));
    const GroupParameters found = parameters_from_ranges(
        find_ranges(search, group.view(), whole, part, pool_), weight_.dtype, format_);
    for (int64_t r = 0; r < rows_; ++r) {
      const size_t at = parameter(r, begin);
      result_.parameters.scale[at] = found.scale[static_cast<size_t>(r)];
      result_.parameters.zero_point[at] = found.zero_point[static_cast<size_t>(r)];
    }
  }

  void round_block(int64_t begin, int64_t end) {
    each_rows([&](int64_t first, int64_t rows) {
      for (int64_t c = begin; c < end; ++c)
        for (int64_t r = first; r < first + rows; ++r) round_one(r, c, begin, end);
      subtract_products(
          {errors_.data() + first * kBlock, kBlock}, {u_.data() + begin * columns_ + end, columns_},
          {values_.data() + first * columns_ + end, columns_}, rows, end - begin, columns_ - end);
    });
  }

  // Column c of row r; its error goes to the columns behind it in the block [begin, end).
  void round_one(int64_t r, int64_t c, int64_t begin, int64_t end) {
    const int64_t column = order_[static_cast<size_t>(c)];
    const size_t at = parameter(r, column);
    const float scale = result_.parameters.scale[at];
    const int8_t zero_point = result_.parameters.zero_point[at];
    const float* factors = u_.data() + c * columns_;
    float* row = values_.data() + r * columns_;
    const int8_t q = quantize_value(row[c], scale, zero_point, weight_.dtype, format_);
    result_.integers[static_cast<size_t>(r * columns_ + column)] = q;
    const float error =
        (row[c] - dequantize_value(q, scale, zero_point, weight_.dtype)) / factors[c];
    for (int64_t k = c + 1; k < end; ++k) row[k] -= error * factors[k];
    errors_[static_cast<size_t>(r * kBlock + c - begin)] = error;
  }

  const Tensor& weight_;
  const QuantFormat& format_;
  const std::vector<int32_t>& order_;
  const std::vector<float>& u_;
  ThreadPool& pool_;
  QuantizedWeight& result_;
  int64_t rows_;
  int64_t columns_;
  int64_t num_groups_;
  int64_t group_size_;
  std::vector<float> values_;  // of the weight, in order, changing: [rows, columns]
  std::vector<float> errors_;  // of the block at work: [rows, kBlock]
};

}  // namespace

Result<QuantizedWeight> gptq(const Tensor& weight, const Tensor& hessian, const QuantFormat& format,
                             const RangeSearch& search, std::span<const float> shares,
                             const GptqSettings& settings, ThreadPool& pool) {
  NB_TRY(const ColumnOrder order, column_order(diagonal_of(hessian), settings.act_order));
  NB_TRY(const std::vector<float> u, dampened_inverse(hessian, order, settings.dampening, pool));
  QuantizedWeight result;
  result.integers.resize(static_cast<size_t>(weight.num_elements()));
  ColumnLoop loop(weight, format, order, u, pool, result);
  if (settings.act_order) {
    result.parameters = parameters_from_ranges(find_ranges(search, weight, format, shares, pool),
                                               weight.dtype, format);
    loop.run();
  } else {
    const int64_t num_groups = format.num_groups(weight.shape[1]);
    result.parameters.scale.resize(static_cast<size_t>(weight.shape[0] * num_groups));
    result.parameters.zero_point.resize(result.parameters.scale.size());
    loop.run(search, shares);
  }
  return result;
}

}  // namespace nibble
