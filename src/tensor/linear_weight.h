// The weight of a Linear, dense or group-quantized: views only.
#pragma once

#include <cstdint>

#include "tensor/quant_format.h"
#include "tensor/tensor.h"

namespace nibble {

// The weight of y = x W', W of shape [out_features, in_features], in the layout its backend chose
// at load (Device::prepare_linear). Exactly one of `dense` and `packed` is set.
struct LinearWeight {
  int64_t out_features = 0;
  int64_t in_features = 0;
  Tensor dense;  // [out, in] F32, BF16 or F16
  // Group-quantized. The contract for all backends: value = (q - zero) * scale, the difference
  // exact, the product in f32, rounded once to the dtype of the scale. A model that decompresses to
  // 16 bits first computes with the same values.
  QuantFormat format;
  Tensor packed;  // ref/cpu: I32 [out, in * bits / 32], lowest bits first, each value + 2^(bits-1)
  Tensor scale;   // [out, num_groups] F32, BF16 or F16
  Tensor zero_point;  // I8 [out, num_groups]; empty when symmetric
  // By shape: a weight that is only counted has no memory.
  bool quantized() const { return packed.shape.rank() > 0; }
  size_t num_bytes() const {
    if (!quantized()) return dense.num_bytes();
    // A symmetric weight has no zero points: no shape, not a scalar.
    const size_t zeros = zero_point.shape.rank() > 0 ? zero_point.num_bytes() : 0;
    return packed.num_bytes() + scale.num_bytes() + zeros;
  }
};

}  // namespace nibble
