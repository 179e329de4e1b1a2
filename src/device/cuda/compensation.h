// Launchers of GPTQ's column loop and of refinement: on the host quant/gptq.cc and quant/refine.cc,
// whose order of operations they keep, bit for bit. Plain C++17 without the tensor headers. All
// pointers are the device's.
#pragma once

#include <cuda_runtime.h>

#include "device/cuda/quantize.h"

namespace nibble::cuda {

constexpr int64_t kCompensationBlock = 128;  // columns whose changes the others learn of together

// gram[i, k] *= factors[i] * factors[k], [n, n].
void launch_scale_gram(float* gram, int64_t n, const double* factors, cudaStream_t stream);
void launch_diagonal(const float* gram, int64_t n, float* diagonal, cudaStream_t stream);
// to[i, k] = gram[order[i], order[k]], and on the diagonal `damp` more, or 1 where it is not
// positive.
void launch_dampened(const float* gram, int64_t n, const int32_t* order, double damp, double* to,
                     cudaStream_t stream);

// A weight and what it is rounded to.
struct RoundingView {
  WeightView weight;
  GridView grid;
  int8_t* integers;  // [rows, columns]
  // The same of some rows.
  RoundingView part(int64_t begin, int64_t end) const;
};

// Where ranges are found only when the loop has come to a group, columns in their own order.
struct GroupSearch {
  RangeSearchLaunch ranges;
  void* values;        // [rows, group_size] of the weight's type
  float* scale;        // [rows]
  int8_t* zero_point;  // [rows]
};

struct GptqLaunch {
  RoundingView rounding;   // integers are written; the grid holds ranges, or gets them by `search`
  const int32_t* order;    // [columns], the column whose turn is c-th
  const uint8_t* reached;  // [columns], by any input; the others become zero
  const float* u;          // [columns, columns], launch_inverse_factor()
  float* values;           // [rows, columns] of scratch
  float* errors;           // [rows, kCompensationBlock] of scratch
  const GroupSearch* search;  // null: the grid holds the ranges
};
void launch_gptq(const GptqLaunch& launch, cudaStream_t stream);

// max(kCompensationBlock, group_size): elements of `moves` and `products` for each row.
int64_t refinement_width(int64_t group_size);

struct RefinementLaunch {
  RoundingView rounding;  // integers and scales change
  const float* gram;      // [columns, columns]
  double damp;
  double* gradients;    // [rows, columns]
  double* moves;        // [rows, refinement_width()]
  double* products;     // the same
  int32_t* moved;       // [rows, kCompensationBlock]: columns of the block whose integers moved
  int32_t* num_moved;   // [rows]
  float* wanted;        // [rows]
  int32_t* taken;       // [rows]: those whose scale changed, of a group
  uint32_t* num_taken;  // [groups]
  uint8_t* active;      // [rows]: changed in the last sweep
  uint8_t* changed;     // [rows]: in this one
};
// Gradients of what rounding left; all rows active.
void launch_begin_refinement(const RefinementLaunch& launch, cudaStream_t stream);
// One pass over integers, then scales, of active rows; *any becomes 1 where one changed.
void launch_refinement_sweep(const RefinementLaunch& launch, uint32_t* any, cudaStream_t stream);

}  // namespace nibble::cuda
