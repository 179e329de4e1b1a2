// The observer decides each group; then every weight goes to the nearest step of its group.
#include "quant/rtn.h"

namespace nibble {

Result<QuantizedWeight> round_to_nearest(const Tensor& weight, const QuantFormat& format,
                                         const Observer& observer,
                                         std::span<const float> importance, ThreadPool& pool) {
  if (!all_finite(weight, pool))
    return Error{ErrorCode::kInvalidArgument, "the weight holds NaN or infinity"};
  return round_to_ranges(weight, format, observer.observe(weight, format, importance, pool), pool);
}

QuantizedWeight round_to_ranges(const Tensor& weight, const QuantFormat& format,
                                const GroupRanges& ranges, ThreadPool& pool) {
  const int64_t columns = weight.shape[1];
  const int64_t num_groups = format.num_groups(columns);
  const int64_t group_size = columns / num_groups;
  QuantizedWeight result;
  result.parameters = parameters_from_ranges(ranges, weight.dtype, format);
  result.integers.resize(static_cast<size_t>(weight.num_elements()));
  pool.parallel_for(static_cast<size_t>(weight.shape[0]), 16, [&](size_t begin, size_t end) {
    std::vector<float> row(static_cast<size_t>(columns));
    for (size_t r = begin; r < end; ++r) {
      const auto at = static_cast<int64_t>(r);
      to_float(weight.rows(at, at + 1), row.data());
      for (int64_t g = 0; g < num_groups; ++g) {
        const auto group = static_cast<size_t>(at * num_groups + g);
        quantize_group(row.data() + g * group_size, group_size, result.parameters.scale[group],
                       result.parameters.zero_point[group], weight.dtype, format,
                       result.integers.data() + at * columns + g * group_size);
      }
    }
  });
  return result;
}

}  // namespace nibble
