// The last steps of the norms, for every kernel that ends in one.
#pragma once

#include "device/cuda/scalar.cuh"

namespace nibble::cuda {

template <class T, class W>
__device__ __forceinline__ T normed(float x, float scale, W weight, float offset) {
  return Round<T>::of(x * scale * (to_float(weight) + offset));
}
// Three roundings in 16-bit activations, where Hugging Face has them.
template <class T, class W>
__device__ __forceinline__ T gated(float x, float scale, W weight, T gate) {
  const float weighted = rounded<T>(to_float(weight) * rounded<T>(x * scale));
  const float g = to_float(gate);
  return Round<T>::of(weighted * (g * sigmoid(g)));
}

}  // namespace nibble::cuda
