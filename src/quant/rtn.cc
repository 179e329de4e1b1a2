// Rows in parallel where the observer allows it: an early stop counts the whole weight, so the
// observer runs once and rounding is split.
#include "quant/rtn.h"

#include <atomic>
#include <cmath>

namespace nibble {

Result<PackedWeight> round_to_nearest(const Tensor& weight, const QuantFormat& format,
                                      const Observer& observer, ThreadPool& pool) {
  const int64_t rows = weight.shape[0];
  const int64_t columns = weight.shape[1];
  const int64_t num_groups = format.num_groups(columns);
  const int64_t group_size = columns / num_groups;

  std::atomic<bool> finite{true};
  pool.parallel_for(static_cast<size_t>(rows), 16, [&](size_t begin, size_t end) {
    std::vector<float> row(static_cast<size_t>(columns));
    for (size_t r = begin; r < end; ++r) {
      to_float(weight.rows(static_cast<int64_t>(r), static_cast<int64_t>(r) + 1), row.data());
      for (const float value : row)
        if (!std::isfinite(value)) finite = false;
    }
  });
  if (!finite) return Error{ErrorCode::kInvalidArgument, "the weight holds NaN or infinity"};

  const GroupParameters parameters =
      parameters_from_ranges(observer.observe(weight, format), weight.dtype, format);
  PackedWeight result;
  const int64_t width = packed_width(columns, format.num_bits);
  result.packed.resize(static_cast<size_t>(rows * width));
  std::vector<double> row_error(static_cast<size_t>(rows));
  std::vector<double> row_energy(static_cast<size_t>(rows));
  pool.parallel_for(static_cast<size_t>(rows), 16, [&](size_t begin, size_t end) {
    std::vector<float> row(static_cast<size_t>(columns));
    std::vector<int8_t> integers(static_cast<size_t>(columns));
    for (size_t r = begin; r < end; ++r) {
      to_float(weight.rows(static_cast<int64_t>(r), static_cast<int64_t>(r) + 1), row.data());
      for (int64_t c = 0; c < columns; ++c) {
        const size_t group =
            r * static_cast<size_t>(num_groups) + static_cast<size_t>(c / group_size);
        const float w = row[static_cast<size_t>(c)];
        const int8_t q = quantize_value(w, parameters.scale[group], parameters.zero_point[group],
                                        weight.dtype, format);
        integers[static_cast<size_t>(c)] = q;
        const double error =
            static_cast<double>(w) - dequantize_value(q, parameters.scale[group],
                                                      parameters.zero_point[group], weight.dtype);
        row_error[r] += error * error;
        row_energy[r] += static_cast<double>(w) * w;
      }
      pack_rows(
          integers, 1, columns, format.num_bits,
          {result.packed.data() + r * static_cast<size_t>(width), static_cast<size_t>(width)});
    }
  });

  if (weight.dtype == DType::kF32) {
    result.scale32 = parameters.scale;
  } else {
    for (const float scale : parameters.scale)
      result.scale16.push_back(weight.dtype == DType::kBF16 ? BFloat16(scale).bits
                                                            : Float16(scale).bits);
  }
  if (!format.symmetric) {
    result.zero_point.resize(static_cast<size_t>(packed_width(rows, format.num_bits) * num_groups));
    pack_columns(parameters.zero_point, rows, num_groups, format.num_bits, result.zero_point);
  }
  double error = 0;
  double energy = 0;
  for (size_t r = 0; r < row_error.size(); ++r) {
    error += row_error[r];
    energy += row_energy[r];
  }
  result.mean_squared_error = error / static_cast<double>(rows * columns);
  result.relative_error = energy > 0 ? std::sqrt(error / energy) : 0;
  return result;
}

}  // namespace nibble
