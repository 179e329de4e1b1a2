// The weight of a Linear, dense or group-quantized: views only.
#pragma once

#include <cstdint>

#include "tensor/quant_format.h"
#include "tensor/tensor.h"

namespace nibble {

// What a model's 16-bit Linears are held as: themselves, or in fewer bits without loss where the
// device has such a form (Device::prepare_compact).
enum class DenseStorage : uint8_t { kPlain, kCompact };

// The weight of y = x W', W of shape [out_features, in_features], in the layout its backend chose
// at load (Device::prepare_linear). Exactly one of `dense`, `compact` and `packed` is set.
struct LinearWeight {
  int64_t out_features = 0;
  int64_t in_features = 0;
  Tensor dense;  // [out, in] F32, BF16 or F16
  // BF16 without loss in 12 bits and a little, see device/cuda/compact.h; no other backend has it.
  struct Compact {
    Tensor words;  // I32 [out / 16, in / 64, 3, 32, 4], out rounded up
    Tensor rows;   // I32 [out rounded up to 16, 4]
    Tensor rest;   // I32 [capacity]
  } compact;
  // Group-quantized. The contract for all backends: value = (q - zero) * scale, the difference
  // exact, the product in f32, rounded once to the dtype of the scale. A model that decompresses to
  // 16 bits first computes with the same values.
  QuantFormat format;
  Tensor packed;  // ref/cpu: I32 [out, in * bits / 32], lowest bits first, each value + 2^(bits-1)
  Tensor scale;   // [out, num_groups] F32, BF16 or F16
  Tensor zero_point;  // I8 [out, num_groups]; empty when symmetric
  // By shape: a weight that is only counted has no memory.
  bool quantized() const { return packed.shape.rank() > 0; }
  bool compacted() const { return compact.words.shape.rank() > 0; }
  // Of memory.
  size_t num_bytes() const {
    if (compacted()) return bytes_read() + compact.rest.num_bytes();
    return bytes_read();
  }
  // What a product reads; of `compact.rest` that is next to nothing.
  size_t bytes_read() const {
    if (compacted()) return compact.words.num_bytes() + compact.rows.num_bytes();
    if (!quantized()) return dense.num_bytes();
    // A symmetric weight has no zero points: no shape, not a scalar.
    const size_t zeros = zero_point.shape.rank() > 0 ? zero_point.num_bytes() : 0;
    return packed.num_bytes() + scale.num_bytes() + zeros;
  }
};

}  // namespace nibble
