// A quantized weight on its way to disk: integers and parameters, then packed words.
#pragma once

#include <vector>

#include "base/thread_pool.h"
#include "checkpoint/compressed_tensors.h"
#include "quant/group_quant.h"

namespace nibble {

// The disk layout.
struct PackedWeight {
  std::vector<int32_t> packed;      // [rows, packed_width(columns)]
  std::vector<uint16_t> scale16;    // [rows, groups] when the weight is 16-bit
  std::vector<float> scale32;       // [rows, groups] when it is F32
  std::vector<int32_t> zero_point;  // [packed_width(rows), groups]; empty when symmetric
  double mean_squared_error = 0;    // against the weight
  double relative_error = 0;        // sqrt(sum error^2 / sum weight^2)
};

// No NaN, no infinity. weight [rows, columns] F32, BF16 or F16.
bool all_finite(const Tensor& weight, ThreadPool& pool);

// Packs the integers, and measures the error against `weight`.
RoundedWeight pack_rounded(const Tensor& weight, const QuantizedWeight& quantized,
                           const QuantFormat& format, ThreadPool& pool);
// The rest of the disk layout, of a weight of this dtype and shape.
PackedWeight pack_weight(RoundedWeight rounded, DType dtype, const Shape& shape,
                         const QuantFormat& format);

// The values that the integers stand for, in the dtype and shape of `out`.
void dequantize_weight(const QuantizedWeight& quantized, const QuantFormat& format,
                       const Tensor& out, ThreadPool& pool);

}  // namespace nibble
