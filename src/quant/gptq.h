// GPTQ: columns are rounded one after the other, and what each rounding did to the layer's output
// is made good by the columns that are still to come. Same format and size as rounding to nearest.
// Source: Frantar et al., "GPTQ", arXiv:2210.17323, algorithm 1.
#pragma once

#include "quant/observer.h"
#include "quant/rtn.h"

namespace nibble {

struct GptqSettings {
  float dampening = 0.01f;  // added to the diagonal, as a part of its mean
  // Most important columns first. Group ranges then come from the weight as it was.
  bool act_order = true;
};

// weight [rows, columns] F32, BF16 or F16. hessian [columns, columns] F32: sum of x'x over the
// inputs of this weight; importance as in observer.h; a column that never saw a value is set to
// zero. kInvalidArgument when the weight or the hessian is not finite, or no dampening makes it
// positive definite.
Result<QuantizedWeight> gptq(const Tensor& weight, const Tensor& hessian, const QuantFormat& format,
                             const Observer& observer, std::span<const float> importance,
                             const GptqSettings& settings, ThreadPool& pool);

}  // namespace nibble
