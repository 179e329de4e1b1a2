// Round to nearest: each weight goes to the grid point its observer's range puts closest.
#pragma once

#include "base/thread_pool.h"
#include "checkpoint/compressed_tensors.h"
#include "quant/observer.h"

namespace nibble {

// A quantized weight in its disk layout.
struct PackedWeight {
  std::vector<int32_t> packed;      // [rows, packed_width(columns)]
  std::vector<uint16_t> scale16;    // [rows, groups] when the weight is 16-bit
  std::vector<float> scale32;       // [rows, groups] when it is F32
  std::vector<int32_t> zero_point;  // [packed_width(rows), groups]; empty when symmetric
  double mean_squared_error = 0;    // against the weight
  double relative_error = 0;        // sqrt(sum error^2 / sum weight^2)
};

// kInvalidArgument when the weight holds NaN or infinity. weight [rows, columns] F32, BF16 or F16.
Result<PackedWeight> round_to_nearest(const Tensor& weight, const QuantFormat& format,
                                      const Observer& observer, ThreadPool& pool);

}  // namespace nibble
