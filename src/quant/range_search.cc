// Shrinks the min-max range step by step and keeps, per group, the range with the smallest error.
#include "quant/range_search.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "base/log.h"

namespace nibble {
namespace {

float largest_finite(DType dtype) {
  switch (dtype) {
    case DType::kBF16: return 0x1.fep127f;
    case DType::kF16: return 65504.0f;
    default: return std::numeric_limits<float>::max();
  }
}

// |error|^2.4 in the weight's dtype. A 16-bit dtype has few values: they are all worked out once.
class ErrorPower {
 public:
  explicit ErrorPower(DType dtype) : dtype_(dtype), table_(table_of(dtype)) {}
  // By the bits of an error of this dtype; null for F32.
  static const float* table_of(DType dtype) {
    static const std::vector<float> kBf16 = table(DType::kBF16);
    static const std::vector<float> kF16 = table(DType::kF16);
    return dtype == DType::kBF16 ? kBf16.data() : dtype == DType::kF16 ? kF16.data() : nullptr;
  }
  // `error` is not negative and fits the dtype.
  float operator()(float error) const {
    switch (dtype_) {
      case DType::kBF16: return table_[BFloat16(error).bits];
      case DType::kF16: return table_[Float16(error).bits];
      default: return power(dtype_, error);
    }
  }

 private:
  static float power(DType dtype, float error) {
    const double exponent = static_cast<double>(round_to(dtype, 2.4f));
    return round_to(dtype, static_cast<float>(std::pow(static_cast<double>(error), exponent)));
  }
  static std::vector<float> table(DType dtype) {
    std::vector<float> values(size_t{1} << 15);
    for (size_t bits = 0; bits < values.size(); ++bits) {
      BFloat16 wide;
      Float16 narrow;
      wide.bits = narrow.bits = static_cast<uint16_t>(bits);
      values[bits] = power(dtype, dtype == DType::kBF16 ? float(wide) : float(narrow));
    }
    return values;
  }

  DType dtype_;
  const float* table_;
};

GroupRanges whole_ranges(const Tensor& weight, const QuantFormat& format, ThreadPool& pool) {
  const int64_t columns = weight.shape[1];
  const int64_t num_groups = format.num_groups(columns);
  const int64_t group_size = columns / num_groups;
  GroupRanges ranges;
  ranges.min.resize(static_cast<size_t>(weight.shape[0] * num_groups));
  ranges.max.resize(ranges.min.size());
  pool.parallel_for(static_cast<size_t>(weight.shape[0]), 16, [&](size_t begin, size_t end) {
    std::vector<float> row(static_cast<size_t>(columns));
    for (size_t r = begin; r < end; ++r) {
      to_float(weight.rows(static_cast<int64_t>(r), static_cast<int64_t>(r) + 1), row.data());
      for (int64_t g = 0; g < num_groups; ++g) {
        const auto first = row.begin() + g * group_size;
        const auto [low, high] = std::minmax_element(first, first + group_size);
        const size_t at = r * static_cast<size_t>(num_groups) + static_cast<size_t>(g);
        ranges.min[at] = *low;
        ranges.max[at] = *high;
      }
    }
  });
  return ranges;
}

// error_of(group values, group index, scale, zero point) -> what to minimise.
template <class ErrorOf>
GroupRanges search_ranges(const RangeSearch& search, const Tensor& weight,
                          const QuantFormat& format, ThreadPool& pool, const ErrorOf& error_of) {
  const DType dtype = weight.dtype;
  const int64_t group_size = weight.shape[1] / format.num_groups(weight.shape[1]);
  const auto count = static_cast<size_t>(weight.num_elements() / group_size);
  std::vector<float> values(static_cast<size_t>(weight.num_elements()));
  to_float(weight, values.data());
  const GroupRanges full = whole_ranges(weight, format, pool);
  GroupRanges kept = full;
  std::vector<float> best(count, largest_finite(dtype));

  int without_improvement = 0;
  for (int step = 0; step < search.num_steps; ++step) {
    const auto shrink = static_cast<float>(1.0 - static_cast<double>(step) / search.grid);
    std::atomic<bool> improved = false;
    pool.parallel_for(count, 64, [&](size_t begin, size_t end) {
      for (size_t g = begin; g < end; ++g) {
        const float low = round_to(dtype, full.min[g] * shrink);
        const float high = round_to(dtype, full.max[g] * shrink);
        float scale = 0;
        int8_t zero_point = 0;
        group_parameters(low, high, dtype, format, &scale, &zero_point);
        const float error =
            error_of(values.data() + static_cast<int64_t>(g) * group_size, g, scale, zero_point);
        if (!(error < best[g])) continue;
        best[g] = error;
        kept.min[g] = low;
        kept.max[g] = high;
        improved = true;
      }
    });
    without_improvement = improved ? 0 : without_improvement + 1;
    if (without_improvement >= search.patience) break;
  }
  return kept;
}

}  // namespace

RangeSearch power_search(DType weight_dtype) {
  return {.num_steps = 20,
          .grid = 100,
          .error = RangeError::kPower,
          .powers = ErrorPower::table_of(weight_dtype)};
}

RangeSearch importance_search() {
  return {.num_steps = 20, .grid = 20, .error = RangeError::kCubeImportance};
}

GroupRanges find_ranges(const RangeSearch& search, const Tensor& weight, const QuantFormat& format,
                        std::span<const float> shares, ThreadPool& pool) {
  if (search.num_steps == 0) return whole_ranges(weight, format, pool);
  const DType dtype = weight.dtype;
  const int64_t num_groups = format.num_groups(weight.shape[1]);
  const int64_t group_size = weight.shape[1] / num_groups;
  const auto errors_of = [&](const float* group, float scale, int8_t zero_point) {
    thread_local std::vector<float> errors;
    errors.resize(static_cast<size_t>(group_size));
    rounding_errors(group, group_size, scale, zero_point, dtype, format, errors.data());
    return std::span<const float>(errors);
  };
  if (search.error == RangeError::kPower) {
    const ErrorPower power(dtype);
    return search_ranges(search, weight, format, pool,
                         [&](const float* group, size_t, float scale, int8_t zero_point) {
                           float sum = 0;
                           for (const float error : errors_of(group, scale, zero_point))
                             sum += power(error);
                           return round_to(dtype, sum);
                         });
  }
  return search_ranges(search, weight, format, pool,
                       [&](const float* group, size_t g, float scale, int8_t zero_point) {
                         const float* share =
                             shares.data() + static_cast<int64_t>(g) % num_groups * group_size;
                         float sum = 0;
                         for (const float error : errors_of(group, scale, zero_point))
                           sum += *share++ * error * error * error;
                         return sum;
                       });
}

std::vector<float> importance_shares(std::span<const float> importance, int64_t columns) {
  std::vector<float> shares(static_cast<size_t>(columns), 1.0f);
  double sum = 0;
  bool usable = importance.size() == shares.size();
  for (const float value : importance) {
    usable &= std::isfinite(value) && value >= 0;
    sum += static_cast<double>(value);
  }
  if (!usable || !(sum > 0)) {
    log_warning("imatrix_mse: no importance for a weight of {} columns; all count the same",
                columns);
    return shares;
  }
  const auto mean = static_cast<float>(sum / static_cast<double>(columns));
  for (size_t c = 0; c < shares.size(); ++c) shares[c] = importance[c] / mean;
  return shares;
}

}  // namespace nibble
