// Everything row by row, in parallel.
#include "quant/packed_weight.h"

#include <atomic>
#include <cmath>

namespace nibble {
namespace {

constexpr size_t kRowsPerTask = 16;

// What the integers of row r stand for, a value for each of its columns.
void dequantize_row(const QuantizedWeight& quantized, int64_t r, int64_t num_groups, DType dtype,
                    std::span<float> values) {
  const auto columns = static_cast<int64_t>(values.size());
  const int64_t group_size = columns / num_groups;
  for (int64_t g = 0; g < num_groups; ++g) {
    const auto group = static_cast<size_t>(r * num_groups + g);
    dequantize_group(quantized.integers.data() + r * columns + g * group_size, group_size,
                     quantized.parameters.scale[group], quantized.parameters.zero_point[group],
                     dtype, values.data() + g * group_size);
  }
}

}  // namespace

bool all_finite(const Tensor& weight, ThreadPool& pool) {
  const int64_t columns = weight.shape[1];
  std::atomic<bool> finite{true};
  pool.parallel_for(static_cast<size_t>(weight.shape[0]), kRowsPerTask,
                    [&](size_t begin, size_t end) {
                      std::vector<float> row(static_cast<size_t>(columns));
                      for (size_t r = begin; r < end; ++r) {
                        const auto at = static_cast<int64_t>(r);
                        to_float(weight.rows(at, at + 1), row.data());
                        for (const float value : row)
                          if (!std::isfinite(value)) finite = false;
                      }
                    });
  return finite;
}

RoundedWeight pack_rounded(const Tensor& weight, const QuantizedWeight& quantized,
                           const QuantFormat& format, ThreadPool& pool) {
  const int64_t rows = weight.shape[0];
  const int64_t columns = weight.shape[1];
  const int64_t num_groups = format.num_groups(columns);
  const int64_t width = packed_width(columns, format.num_bits);
  RoundedWeight result;
  result.parameters = quantized.parameters;
  result.packed.resize(static_cast<size_t>(rows * width));
  std::vector<double> row_error(static_cast<size_t>(rows));
  std::vector<double> row_energy(static_cast<size_t>(rows));
  pool.parallel_for(static_cast<size_t>(rows), kRowsPerTask, [&](size_t begin, size_t end) {
    std::vector<float> row(static_cast<size_t>(columns));
    std::vector<float> values(row.size());
    for (size_t r = begin; r < end; ++r) {
      const auto at = static_cast<int64_t>(r);
      to_float(weight.rows(at, at + 1), row.data());
      const std::span<const int8_t> integers(
          quantized.integers.data() + r * static_cast<size_t>(columns),
          static_cast<size_t>(columns));
      dequantize_row(quantized, at, num_groups, weight.dtype, values);
      for (size_t c = 0; c < row.size(); ++c) {
        const auto w = static_cast<double>(row[c]);
        const double error = w - static_cast<double>(values[c]);
        row_error[r] += error * error;
        row_energy[r] += w * w;
      }
      pack_rows(
          integers, 1, columns, format.num_bits,
          {result.packed.data() + r * static_cast<size_t>(width), static_cast<size_t>(width)});
    }
  });

  for (size_t r = 0; r < row_error.size(); ++r) {
    result.squared_error += row_error[r];
    result.squared_sum += row_energy[r];
  }
  return result;
}

PackedWeight pack_weight(RoundedWeight rounded, DType dtype, const Shape& shape,
                         const QuantFormat& format) {
  const int64_t rows = shape[0];
  const int64_t num_groups = format.num_groups(shape[1]);
  PackedWeight result;
  result.packed = std::move(rounded.packed);
  if (dtype == DType::kF32) {
    result.scale32 = std::move(rounded.parameters.scale);
  } else {
    for (const float scale : rounded.parameters.scale)
      result.scale16.push_back(dtype == DType::kBF16 ? BFloat16(scale).bits : Float16(scale).bits);
  }
  if (!format.symmetric) {
    result.zero_point.resize(static_cast<size_t>(packed_width(rows, format.num_bits) * num_groups));
    pack_columns(rounded.parameters.zero_point, rows, num_groups, format.num_bits,
                 result.zero_point);
  }
  result.mean_squared_error = rounded.squared_error / static_cast<double>(shape.num_elements());
  result.relative_error =
      rounded.squared_sum > 0 ? std::sqrt(rounded.squared_error / rounded.squared_sum) : 0;
  return result;
}

void dequantize_weight(const QuantizedWeight& quantized, const QuantFormat& format,
                       const Tensor& out, ThreadPool& pool) {
  const int64_t columns = out.shape[1];
  const int64_t num_groups = format.num_groups(columns);
  pool.parallel_for(static_cast<size_t>(out.shape[0]), kRowsPerTask, [&](size_t begin, size_t end) {
    std::vector<float> row(static_cast<size_t>(columns));
    for (auto r = static_cast<int64_t>(begin); r < static_cast<int64_t>(end); ++r) {
      dequantize_row(quantized, r, num_groups, out.dtype, row);
      from_float(row.data(), out.rows(r, r + 1));
    }
  });
}

}  // namespace nibble
