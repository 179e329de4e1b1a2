// The arithmetic of one group, rounded after each step.
#include "quant/group_quant.h"

#include <algorithm>
#include <cmath>

namespace nibble {
namespace {

float machine_epsilon(DType dtype) {
  switch (dtype) {
    case DType::kBF16: return 0x1p-7f;
    case DType::kF16: return 0x1p-10f;
    default: return 0x1p-23f;
  }
}

// t = round(w / scale), then round(t + zero), then to the nearest integer, ties to even.
float grid_position(float w, float scale, int8_t zero_point, DType dtype,
                    const QuantFormat& format) {
  const float divided = round_to(dtype, w / scale);
  const float shifted = round_to(dtype, divided + static_cast<float>(zero_point));
  const float clamped =
      std::clamp(shifted, static_cast<float>(format.qmin()), static_cast<float>(format.qmax()));
  return std::nearbyint(clamped);
}

}  // namespace

float round_to(DType dtype, float value) {
  switch (dtype) {
    case DType::kBF16: return round_bf16(value);
    case DType::kF16: return round_f16(value);
    default: return value;
  }
}

void group_parameters(float min, float max, DType dtype, const QuantFormat& format, float* scale,
                      int8_t* zero_point) {
  min = std::min(min, 0.0f);
  max = std::max(max, 0.0f);
  const auto num_steps = static_cast<float>((1 << format.num_bits) - 1);  // 15
  if (format.symmetric) {
    const float magnitude = std::max(std::fabs(min), std::fabs(max));
    *scale = round_to(dtype, magnitude / (num_steps / 2.0f));
    *zero_point = 0;
  } else {
    *scale = round_to(dtype, round_to(dtype, max - min) / num_steps);
    const float ratio = round_to(dtype, min / *scale);
    const float zero = round_to(dtype, static_cast<float>(format.qmin()) - ratio);
    const float clamped =
        std::clamp(zero, static_cast<float>(format.qmin()), static_cast<float>(format.qmax()));
    *zero_point = std::isnan(clamped) ? int8_t{0} : static_cast<int8_t>(std::nearbyint(clamped));
  }
  if (*scale == 0.0f) *scale = machine_epsilon(dtype);
}

GroupParameters parameters_from_ranges(const GroupRanges& ranges, DType dtype,
                                       const QuantFormat& format) {
  GroupParameters parameters;
  parameters.scale.resize(ranges.min.size());
  parameters.zero_point.resize(ranges.min.size());
  for (size_t g = 0; g < ranges.min.size(); ++g)
    group_parameters(ranges.min[g], ranges.max[g], dtype, format, &parameters.scale[g],
                     &parameters.zero_point[g]);
  return parameters;
}

int8_t quantize_value(float w, float scale, int8_t zero_point, DType dtype,
                      const QuantFormat& format) {
  return static_cast<int8_t>(grid_position(w, scale, zero_point, dtype, format));
}

float dequantize_value(int8_t q, float scale, int8_t zero_point, DType dtype) {
  const float difference = round_to(dtype, static_cast<float>(q - zero_point));
  return round_to(dtype, difference * scale);
}

float fake_quantize_value(float w, float scale, int8_t zero_point, DType dtype,
                          const QuantFormat& format) {
  const float q = grid_position(w, scale, zero_point, dtype, format);
  return round_to(dtype, round_to(dtype, q - static_cast<float>(zero_point)) * scale);
}

std::vector<int8_t> quantize_weight(const Tensor& weight, const GroupParameters& parameters,
                                    const QuantFormat& format) {
  const int64_t rows = weight.shape[0];
  const int64_t columns = weight.shape[1];
  const int64_t num_groups = format.num_groups(columns);
  const int64_t group_size = columns / num_groups;
  std::vector<int8_t> integers(static_cast<size_t>(rows * columns));
  std::vector<float> row(static_cast<size_t>(columns));
  for (int64_t r = 0; r < rows; ++r) {
    to_float(weight.rows(r, r + 1), row.data());
    for (int64_t c = 0; c < columns; ++c) {
      const auto group = static_cast<size_t>(r * num_groups + c / group_size);
      integers[static_cast<size_t>(r * columns + c)] =
          quantize_value(row[static_cast<size_t>(c)], parameters.scale[group],
                         parameters.zero_point[group], weight.dtype, format);
    }
  }
  return integers;
}

}  // namespace nibble
