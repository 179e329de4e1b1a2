// GPTQ: columns are rounded one after the other, and what each rounding did to the layer's output
// is made good by the columns that are still to come. Same format and size as rounding to nearest.
// Source: Frantar et al., "GPTQ", arXiv:2210.17323, algorithm 1.
#pragma once

#include "base/result.h"
#include "quant/range_search.h"

namespace nibble {

// weight [rows, columns] F32, BF16 or F16, finite. hessian [columns, columns] F32: sum of x'x over
// the inputs of this weight; search and shares as find_ranges() takes them; a column that never saw
// a value is set to zero. kInvalidArgument when the hessian is not finite, or no dampening makes it
// positive definite.
Result<QuantizedWeight> gptq(const Tensor& weight, const Tensor& hessian, const QuantFormat& format,
                             const RangeSearch& search, std::span<const float> shares,
                             const GptqSettings& settings, ThreadPool& pool);

}  // namespace nibble
