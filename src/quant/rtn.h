// Round to nearest: each weight goes to the grid point its observer's range puts closest.
#pragma once

#include "quant/observer.h"
#include "quant/packed_weight.h"

namespace nibble {

// kInvalidArgument when the weight holds NaN or infinity. weight [rows, columns] F32, BF16 or F16;
// importance as in observer.h.
Result<QuantizedWeight> round_to_nearest(const Tensor& weight, const QuantFormat& format,
                                         const Observer& observer,
                                         std::span<const float> importance, ThreadPool& pool);

// The same for a finite weight whose ranges are known.
QuantizedWeight round_to_ranges(const Tensor& weight, const QuantFormat& format,
                                const GroupRanges& ranges, ThreadPool& pool);

}  // namespace nibble
