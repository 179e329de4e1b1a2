// Rows in parallel; sums in order, so that the result does not depend on the threads.
#include "quant/host_quant_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "quant/gptq.h"
#include "quant/group_quant.h"
#include "quant/packed_weight.h"
#include "quant/refine.h"
#include "quant/rtn.h"

namespace nibble {
namespace {

constexpr size_t kRowsPerTask = 16;

// Calls edit(row, column, value) -> value for rows [first, end of weight), rounding to its dtype.
template <class Edit>
void edit_rows(const Tensor& weight, int64_t first, ThreadPool& pool, const Edit& edit) {
  const int64_t columns = weight.shape[1];
  const auto each = [&](auto* values) {
    using T = std::remove_pointer_t<decltype(values)>;
    const auto count = static_cast<size_t>(weight.shape[0] - first);
    pool.parallel_for(count, kRowsPerTask, [&](size_t begin, size_t end) {
      for (auto r = first + static_cast<int64_t>(begin); r < first + static_cast<int64_t>(end); ++r)
        for (int64_t c = 0; c < columns; ++c) {
          T& value = values[r * columns + c];
          value = T(static_cast<float>(edit(r, c, static_cast<double>(static_cast<float>(value)))));
        }
    });
  };
  switch (weight.dtype) {
    case DType::kBF16: return each(weight.as<BFloat16>());
    case DType::kF16: return each(weight.as<Float16>());
    default: return each(weight.as<float>());
  }
}

// All of a tensor as floats: itself where it holds them.
const float* floats_of(const Tensor& tensor, std::vector<float>& storage) {
  if (tensor.dtype == DType::kF32) return tensor.as<const float>();
  storage.resize(static_cast<size_t>(tensor.num_elements()));
  to_float(tensor, storage.data());
  return storage.data();
}

}  // namespace

void HostQuantOps::scale_columns(const Tensor& weight, std::span<const double> scales) {
  const double* s = scales.data();
  edit_rows(weight, 0, pool_, [s](int64_t, int64_t c, double w) { return w * s[c]; });
}

void HostQuantOps::divide_last_rows(const Tensor& weight, std::span<const double> scales) {
  const int64_t first = weight.shape[0] - static_cast<int64_t>(scales.size());
  edit_rows(weight, first, pool_, [&](int64_t r, int64_t, double w) {
    return w / scales[static_cast<size_t>(r - first)];
  });
}

void HostQuantOps::add_group_shares(const Tensor& weight, const QuantFormat& format,
                                    std::span<double> sums) {
  const int64_t columns = weight.shape[1];
  const int64_t group_size = columns / format.num_groups(columns);
  const DType dtype = weight.dtype;
  std::vector<float> row(static_cast<size_t>(columns));
  for (int64_t r = 0; r < weight.shape[0]; ++r) {
    to_float(weight.rows(r, r + 1), row.data());
    for (int64_t begin = 0; begin < columns; begin += group_size) {
      float largest = 0;
      for (int64_t c = begin; c < begin + group_size; ++c)
        largest = std::max(largest, std::fabs(row[static_cast<size_t>(c)]));
      const float bound = round_to(dtype, largest + 1e-6f);
      for (int64_t c = begin; c < begin + group_size; ++c)
        sums[static_cast<size_t>(c)] +=
            static_cast<double>(round_to(dtype, std::fabs(row[static_cast<size_t>(c)]) / bound));
    }
  }
}

bool HostQuantOps::all_finite(const Tensor& weight) {
  return nibble::all_finite(weight, pool_);
}

void HostQuantOps::round(const Tensor& weight, const QuantFormat& format, const RangeSearch& search,
                         std::span<const float> importance, RoundedWeight* rounded) {
  QuantizedWeight quantized = round_to_ranges(
      weight, format, find_ranges(search, weight, format, importance, pool_), pool_);
  if (rounded != nullptr) *rounded = pack_rounded(weight, quantized, format, pool_);
  dequantize_weight(quantized, format, weight, pool_);
}

bool HostQuantOps::trial_weight(const Tensor& weight, std::span<const double> scales,
                                std::span<const double> factors, const QuantFormat& format,
                                const RangeSearch& search, std::span<const float> importance,
                                const Tensor& out) {
  std::memcpy(out.data, weight.data, weight.num_bytes());
  scale_columns(out, scales);
  if (!all_finite(out)) return false;
  round(out, format, search, importance, nullptr);
  scale_columns(out, factors);
  return true;
}

void HostQuantOps::scale_gram(const Tensor& gram, std::span<const double> factors) {
  const double* f = factors.data();
  edit_rows(gram, 0, pool_,
            [f](int64_t r, int64_t c, double value) { return value * f[r] * f[c]; });
}

Result<RoundedWeight> HostQuantOps::compensate(const Tensor& weight, const Tensor& gram,
                                               const QuantFormat& format, const RangeSearch& search,
                                               std::span<const float> importance,
                                               const Compensation& compensation) {
  NB_TRY(QuantizedWeight quantized,
         gptq(weight, gram, format, search, importance, compensation.gptq, pool_));
  if (compensation.refinement)
    refine(weight, gram, format, *compensation.refinement, quantized, pool_);
  RoundedWeight rounded = pack_rounded(weight, quantized, format, pool_);
  dequantize_weight(quantized, format, weight, pool_);
  return rounded;
}

void HostQuantOps::add_moments(const Tensor& x, const Tensor& sums) {
  const int64_t columns = sums.shape[1];
  const int64_t tokens = x.num_elements() / columns;
  std::vector<float> storage;
  const float* values = floats_of(x, storage);
  auto* sum_abs = sums.as<double>();
  double* sum_squares = sum_abs + columns;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t c = 0; c < columns; ++c) {
      const auto value = static_cast<double>(values[t * columns + c]);
      sum_abs[c] += std::fabs(value);
      sum_squares[c] += value * value;
    }
}

// As the product of the transposed input with itself.
void HostQuantOps::add_gram(const Tensor& x, const Tensor& gram) {
  const int64_t columns = gram.shape[1];
  const int64_t tokens = x.num_elements() / columns;
  if (tokens == 0) return;
  std::vector<float> storage;
  const float* values = floats_of(x, storage);
  std::vector<float> transposed(static_cast<size_t>(x.num_elements()));
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t c = 0; c < columns; ++c)
      transposed[static_cast<size_t>(c * tokens + t)] = values[t * columns + c];
  LinearWeight right;
  right.out_features = columns;
  right.in_features = tokens;
  right.dense = {transposed.data(), DType::kF32, {columns, tokens}};
  std::vector<float> product(static_cast<size_t>(columns * columns));
  ops_.linear(right.dense, right, {product.data(), DType::kF32, {columns, columns}});
  auto* to = gram.as<float>();
  for (size_t i = 0; i < product.size(); ++i) to[i] += product[i];
}

void HostQuantOps::add_squared_difference(const Tensor& a, const Tensor& b, double* sum) {
  std::vector<float> storage_a;
  std::vector<float> storage_b;
  const float* x = floats_of(a, storage_a);
  const float* y = floats_of(b, storage_b);
  for (int64_t i = 0; i < a.num_elements(); ++i) {
    const double difference = static_cast<double>(x[i]) - static_cast<double>(y[i]);
    *sum += difference * difference;
  }
}

double HostQuantOps::output_error(const Tensor& weight, const Tensor& trial, const Tensor& gram) {
  const int64_t columns = weight.shape[1];
  std::vector<float> difference(static_cast<size_t>(weight.num_elements()));
  std::vector<float> product(difference.size());
  std::vector<float> storage;
  to_float(weight, difference.data());
  const float* other = floats_of(trial, storage);
  for (size_t i = 0; i < difference.size(); ++i) difference[i] -= other[i];
  LinearWeight right;
  right.out_features = columns;
  right.in_features = columns;
  right.dense = gram;
  ops_.linear({difference.data(), DType::kF32, weight.shape}, right,
              {product.data(), DType::kF32, weight.shape});
  double sum = 0;
  for (size_t i = 0; i < product.size(); ++i)
    sum += static_cast<double>(difference[i]) * static_cast<double>(product[i]);
  return sum;
}

}  // namespace nibble
