// Same-format refinement: changes integers and scales, one at a time, wherever the layer's output
// error falls. Starts from what rounding or GPTQ left; neither size nor format changes.
// Coordinate descent on E = (W - V) H (W - V)', row by row.
#pragma once

#include "device/quant_ops.h"
#include "quant/packed_weight.h"

namespace nibble {

struct RefineResult {
  double error_before = 0;  // E, dampened
  double error_after = 0;   // never more than before
};

// weight [rows, columns] F32, BF16 or F16; hessian [columns, columns] F32: sum of x'x. Changes
// `quantized` in place.
RefineResult refine(const Tensor& weight, const Tensor& hessian, const QuantFormat& format,
                    const RefineSettings& settings, QuantizedWeight& quantized, ThreadPool& pool);

}  // namespace nibble
