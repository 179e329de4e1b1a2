// Reading and writing tensors of any float dtype as float; used by the reference ops only.
#pragma once

#include <vector>

#include "tensor/float8.h"
#include "tensor/tensor.h"

namespace nibble::ref {

// Calls body with a value of the C++ type that `dtype` names: F32, BF16 or F16.
template <class Body>
void with_float_type(DType dtype, Body body) {
  switch (dtype) {
    case DType::kF32: return body(float{});
    case DType::kBF16: return body(BFloat16{});
    case DType::kF16: return body(Float16{});
    default: NB_CHECK(false, "%s activations", dtype_name(dtype).data());
  }
}

// The same for what a KV cache may hold: the two 8-bit floats as well.
template <class Body>
void with_kv_type(DType dtype, Body body) {
  switch (dtype) {
    case DType::kF8E5M2: return body(Float8E5M2{});
    case DType::kF8E4M3: return body(Float8E4M3{});
    default: return with_float_type(dtype, body);
  }
}

// A whole tensor as floats. A scratch buffer per call site and thread grows once and is reused.
inline const float* floats_of(const Tensor& tensor, std::vector<float>& scratch) {
  if (tensor.dtype == DType::kF32) return static_cast<const float*>(tensor.data);
  const auto count = static_cast<size_t>(tensor.num_elements());
  if (scratch.size() < count) scratch.resize(count);
  to_float(tensor, scratch.data());
  return scratch.data();
}

}  // namespace nibble::ref
