// One value of a weight whose type is known at run time only: norms, convolutions, gates.
#pragma once

#include "device/cuda/scalar.cuh"

namespace nibble::cuda {

__device__ inline float load_as_float(const void* values, Scalar type, int64_t at) {
  switch (type) {
    case Scalar::kF32: return static_cast<const float*>(values)[at];
    case Scalar::kF16: return to_float(static_cast<const Half*>(values)[at]);
    default: return to_float(static_cast<const BFloat*>(values)[at]);
  }
}

}  // namespace nibble::cuda
