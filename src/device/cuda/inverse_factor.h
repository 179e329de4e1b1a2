// U of H^-1 = U'U on the GPU, by the blocks and in the order of quant/inverse_factor.cc: bit for
// bit what the host computes. Plain C++17 without the tensor headers. All pointers are the
// device's.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace nibble::cuda {

// Doubles of scratch that launch_inverse_factor() needs for n columns.
int64_t inverse_factor_scratch(int64_t n);

// u [n, n], of which the triangle above the diagonal and the diagonal are written, from the upper
// triangle of h [n, n], which is used up. *failed becomes 1, and u holds anything, when h is not
// positive definite.
void launch_inverse_factor(double* h, int64_t n, double* scratch, float* u, uint32_t* failed,
                           cudaStream_t stream);

}  // namespace nibble::cuda
