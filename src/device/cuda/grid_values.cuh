// The place of a weight on its group's grid and the value of a place, in the weight's type: value
// for value quant/group_quant.cc. No product and sum may contract.
#pragma once

#include "device/cuda/scalar.cuh"

namespace nibble::cuda {

template <class T>
__device__ __forceinline__ float grid_position(float w, float scale, float zero, float qmin,
                                               float qmax) {
  const float shifted = rounded<T>(__fadd_rn(rounded<T>(__fdiv_rn(w, scale)), zero));
  return rintf(fminf(fmaxf(shifted, qmin), qmax));
}

template <class T>
__device__ __forceinline__ float grid_value(float q, float scale, float zero) {
  return rounded<T>(__fmul_rn(rounded<T>(__fsub_rn(q, zero)), scale));
}

}  // namespace nibble::cuda
