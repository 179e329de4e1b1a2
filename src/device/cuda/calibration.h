// Launchers of sums over activations and weights for the quantizer; contracts: device/quant_ops.h.
// Plain C++17 without the tensor headers. All pointers are the device's; every sum is in a fixed
// order.
#pragma once

#include <cuda_runtime.h>

#include "device/cuda/quantize.h"

namespace nibble::cuda {

// sums[0, c] += sum |x|, sums[1, c] += sum x^2 over rows.
void launch_moments(const WeightView& x, double* sums, cudaStream_t stream);
// sums[c] += sum over rows of |w| / bounds[row, group], rounded to the weight's type.
void launch_group_shares(const WeightView& weight, int64_t group_size, const float* bounds,
                         double* sums, cudaStream_t stream);

// gram [n, n] += x'x without cuBLASLt: for shapes that it does not take.
void launch_gram(const WeightView& x, float* gram, cudaStream_t stream);

// difference = weight - trial for `count` elements.
void launch_difference(const void* weight, const void* trial, Scalar type, int64_t count,
                       float* difference, cudaStream_t stream);
// out [m, n] = x [m, n] gram [n, n] without cuBLASLt.
void launch_gram_product(const float* x, const float* gram, int64_t m, int64_t n, float* out,
                         cudaStream_t stream);

// How two arrays of `count` elements become one number.
enum class PairSum { kSquaredDifference, kProduct };
constexpr int kPartialSums = 1024;  // doubles of scratch that launch_pair_sum needs
// *result += the sum.
void launch_pair_sum(PairSum kind, const void* a, const void* b, Scalar type, int64_t count,
                     double* partials, double* result, cudaStream_t stream);

}  // namespace nibble::cuda
