// Launchers of the quantizer's arithmetic on weights [rows, columns]; contracts:
// device/quant_ops.h. Plain C++17 without the tensor headers, as scalar.h. All pointers are the
// device's.
#pragma once

#include <cuda_runtime.h>

#include "device/cuda/scalar.h"

namespace nibble::cuda {

struct WeightView {
  void* values;
  Scalar type;
  int64_t rows;
  int64_t columns;
};

// The integers of a group: num_bits of them, scales and zero points [rows, columns / group_size].
struct GridView {
  int64_t group_size;
  int num_bits;
  bool symmetric;
  float* scale;  // in the weight's dtype, widened
  int8_t* zero_point;
};

// to = from * scales by column, rounded; `not_finite`, unless null, becomes 1 where a value is not
// finite. `to` may be `from`.
void launch_scale_columns(const WeightView& from, const double* scales, const WeightView& to,
                          uint32_t* not_finite, cudaStream_t stream);
void launch_find_not_finite(const WeightView& weight, uint32_t* not_finite, cudaStream_t stream);
// Rows [first, rows): row first + i divided by scales[i].
void launch_divide_rows(const WeightView& weight, int64_t first, const double* scales,
                        cudaStream_t stream);

// bounds[row, group] = max |w| of the group + 1e-6, rounded.
void launch_group_bounds(const WeightView& weight, int64_t group_size, float* bounds,
                         cudaStream_t stream);

struct RangeSearchLaunch {
  int num_steps;  // at most 32
  int grid;
  int patience;
  bool by_importance;
  const float* powers;      // 16-bit weights, not by importance
  const float* importance;  // [columns], by importance
  uint32_t* improved;       // one word of scratch
};
// Fills the grid's scales and zero points.
void launch_find_ranges(const WeightView& weight, const RangeSearchLaunch& search,
                        const GridView& grid, cudaStream_t stream);

constexpr int kRoundingPartials = 1024;  // blocks of launch_round_rows() at most
// Rows [begin, end) of the weight become values of the grid: of `integers` [rows, columns], or,
// where that is null, the nearest. Integers go to packed [end - begin, words], lowest bits first,
// each + 2^(bits - 1). partials [kRoundingPartials, 2] gets, by block, the sums of (weight -
// value)^2 and weight^2; returns the number of blocks.
int launch_round_rows(const WeightView& weight, const GridView& grid, const int8_t* integers,
                      int64_t begin, int64_t end, int32_t* packed, double* partials,
                      cudaStream_t stream);
// Each value of the weight to its place on the grid, and that times factors by column, rounded
// each.
void launch_snap_to_grid(const WeightView& weight, const GridView& grid, const double* factors,
                         cudaStream_t stream);

}  // namespace nibble::cuda
