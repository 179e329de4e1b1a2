// The arithmetic of one group, rounded after each step.
#include "quant/group_quant.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "quant/vector_widths.h"

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

// Rounding without a branch, so that loops over it become vector code. Finite or infinite values.
template <DType>
float rounded(float value);
template <>
[[gnu::always_inline]] inline float rounded<DType::kBF16>(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return std::bit_cast<float>((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000u);
}
template <>
[[gnu::always_inline]] inline float rounded<DType::kF16>(float value) {
  return round_f16(value);
}
template <>
[[gnu::always_inline]] inline float rounded<DType::kF32>(float value) {
  return value;
}

// To the nearest integer, ties to even, for |value| < 2^22: the sum has no room for a fraction.
[[gnu::always_inline]] inline float nearest_integer(float value) {
  return (value + 0x1.8p23f) - 0x1.8p23f;
}

template <DType kDType>
[[gnu::always_inline]] inline float grid_position_of(float w, float scale, float zero, float low,
                                                     float high) {
  const float shifted = rounded<kDType>(rounded<kDType>(w / scale) + zero);
  return nearest_integer(std::min(std::max(shifted, low), high));
}

template <DType kDType>
[[gnu::always_inline]] inline float value_of(float q, float scale, float zero) {
  return rounded<kDType>(rounded<kDType>(q - zero) * scale);
}

NIBBLE_VECTOR_WIDTHS void errors_bf16(const float* w, int64_t count, float scale, float zero,
                                      float low, float high, float* errors) {
  constexpr DType kDType = DType::kBF16;
  for (int64_t i = 0; i < count; ++i) {
    const float q = grid_position_of<kDType>(w[i], scale, zero, low, high);
    errors[i] = std::fabs(rounded<kDType>(value_of<kDType>(q, scale, zero) - w[i]));
  }
}

template <DType kDType>
void errors_of(const float* w, int64_t count, float scale, float zero, float low, float high,
               float* errors) {
  for (int64_t i = 0; i < count; ++i) {
    const float q = grid_position_of<kDType>(w[i], scale, zero, low, high);
    errors[i] = std::fabs(rounded<kDType>(value_of<kDType>(q, scale, zero) - w[i]));
  }
}

NIBBLE_VECTOR_WIDTHS void quantize_bf16(const float* w, int64_t count, float scale, float zero,
                                        float low, float high, int8_t* q) {
  for (int64_t i = 0; i < count; ++i)
    q[i] = static_cast<int8_t>(
        static_cast<int32_t>(grid_position_of<DType::kBF16>(w[i], scale, zero, low, high)));
}

template <DType kDType>
void quantize_of(const float* w, int64_t count, float scale, float zero, float low, float high,
                 int8_t* q) {
  for (int64_t i = 0; i < count; ++i)
    q[i] = static_cast<int8_t>(grid_position_of<kDType>(w[i], scale, zero, low, high));
}

NIBBLE_VECTOR_WIDTHS void dequantize_bf16(const int8_t* q, int64_t count, float scale, float zero,
                                          float* values) {
  for (int64_t i = 0; i < count; ++i)
    values[i] = value_of<DType::kBF16>(static_cast<float>(q[i]), scale, zero);
}

template <DType kDType>
void dequantize_of(const int8_t* q, int64_t count, float scale, float zero, float* values) {
  for (int64_t i = 0; i < count; ++i)
    values[i] = value_of<kDType>(static_cast<float>(q[i]), scale, zero);
}

}  // namespace

void quantize_group(const float* w, int64_t count, float scale, int8_t zero_point, DType dtype,
                    const QuantFormat& format, int8_t* q) {
  const auto zero = static_cast<float>(zero_point);
  const auto low = static_cast<float>(format.qmin());
  const auto high = static_cast<float>(format.qmax());
  switch (dtype) {
    case DType::kBF16: return quantize_bf16(w, count, scale, zero, low, high, q);
    case DType::kF16: return quantize_of<DType::kF16>(w, count, scale, zero, low, high, q);
    default: return quantize_of<DType::kF32>(w, count, scale, zero, low, high, q);
  }
}

void dequantize_group(const int8_t* q, int64_t count, float scale, int8_t zero_point, DType dtype,
                      float* values) {
  const auto zero = static_cast<float>(zero_point);
  switch (dtype) {
    case DType::kBF16: return dequantize_bf16(q, count, scale, zero, values);
    case DType::kF16: return dequantize_of<DType::kF16>(q, count, scale, zero, values);
    default: return dequantize_of<DType::kF32>(q, count, scale, zero, values);
  }
}

void rounding_errors(const float* w, int64_t count, float scale, int8_t zero_point, DType dtype,
                     const QuantFormat& format, float* errors) {
  const auto zero = static_cast<float>(zero_point);
  const auto low = static_cast<float>(format.qmin());
  const auto high = static_cast<float>(format.qmax());
  switch (dtype) {
    case DType::kBF16: return errors_bf16(w, count, scale, zero, low, high, errors);
    case DType::kF16: return errors_of<DType::kF16>(w, count, scale, zero, low, high, errors);
    default: return errors_of<DType::kF32>(w, count, scale, zero, low, high, errors);
  }
}

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
    for (int64_t g = 0; g < num_groups; ++g) {
      const auto group = static_cast<size_t>(r * num_groups + g);
      quantize_group(row.data() + g * group_size, group_size, parameters.scale[group],
                     parameters.zero_point[group], weight.dtype, format,
                     integers.data() + r * columns + g * group_size);
    }
  }
  return integers;
}

}  // namespace nibble
