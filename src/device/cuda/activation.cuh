// Activations of the MLP and the attention gate, for every kernel that ends in one.
#pragma once

#include "device/cuda/scalar.cuh"

namespace nibble::cuda {

// Both round twice in 16-bit activations, where Hugging Face does.
template <class T>
__device__ __forceinline__ T silu_mul(T gate, T up) {
  const float g = to_float(gate);
  return Round<T>::of(rounded<T>(g * sigmoid(g)) * to_float(up));
}
template <class T>
__device__ __forceinline__ T sigmoid_mul(T x, T gate) {
  return Round<T>::of(to_float(x) * rounded<T>(sigmoid(to_float(gate))));
}

}  // namespace nibble::cuda
