// Scales, zero points and integers of one weight, with the rounding contract of compressed-tensors:
// every operation is rounded to the weight's dtype. Source: docs/reference/quantization-format.md.
#pragma once

#include <cstdint>
#include <vector>

#include "tensor/quant_format.h"
#include "tensor/quantized_weight.h"
#include "tensor/tensor.h"

namespace nibble {

// The range of each group, in the weight's dtype, widened to float. [rows, groups]
struct GroupRanges {
  std::vector<float> min, max;
};

// Rounds through `dtype` (F32, BF16 or F16).
float round_to(DType dtype, float value);

// One group's scale and zero point from its range. Scale 0 becomes the dtype's machine epsilon.
void group_parameters(float min, float max, DType dtype, const QuantFormat& format, float* scale,
                      int8_t* zero_point);
GroupParameters parameters_from_ranges(const GroupRanges& ranges, DType dtype,
                                       const QuantFormat& format);

// The integer of one weight, and the value it stands for.
int8_t quantize_value(float w, float scale, int8_t zero_point, DType dtype,
                      const QuantFormat& format);
float dequantize_value(int8_t q, float scale, int8_t zero_point, DType dtype);
// Rounds w to its grid without passing through an integer: keeps the sign of zero.
float fake_quantize_value(float w, float scale, int8_t zero_point, DType dtype,
                          const QuantFormat& format);

// The same over `count` weights that share a scale, a vector at a time.
void quantize_group(const float* w, int64_t count, float scale, int8_t zero_point, DType dtype,
                    const QuantFormat& format, int8_t* q);
void dequantize_group(const int8_t* q, int64_t count, float scale, int8_t zero_point, DType dtype,
                      float* values);
// |round(fake_quantize_value(w) - w)| of each.
void rounding_errors(const float* w, int64_t count, float scale, int8_t zero_point, DType dtype,
                     const QuantFormat& format, float* errors);

// Integers of a whole weight [rows, columns] (F32, BF16 or F16), row by row.
std::vector<int8_t> quantize_weight(const Tensor& weight, const GroupParameters& parameters,
                                    const QuantFormat& format);

}  // namespace nibble
