// The end of an attention block whose warps have each walked tiles of their own: their sums meet,
// and results are stored or left for the merge.
#pragma once

#include "device/cuda/attention_split.cuh"

namespace nibble::cuda {

// What weights are relative to: a row of nothing but -inf has sums of zero.
__device__ __forceinline__ float base_of(float peak) {
  return peak == -INFINITY ? 0.0f : peak;
}

// Of each warp and row the largest score and the sum of weights relative to it.
template <int kWarps, int kRows>
using WarpStats = float[kWarps][kRows][2];

// The largest score of a row over all warps.
template <int kWarps, int kRows>
__device__ __forceinline__ float peak_of(const WarpStats<kWarps, kRows>& stats, int row) {
  float peak = stats[0][row][0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) peak = fmaxf(peak, stats[w][row][0]);
  return peak;
}

// What a block of attend_*_kernel does: a token's query heads from first_query on in q and out, of
// which it is rows first_row .. + num_rows of the kv head's group; block x is the item, z the
// split.
struct BlockRows {
  int64_t first_query;
  int kv_head;
  int first_row;
  int num_rows;
  int rows_per_item;  // of the scratch memory
};

// sums[row][dim], relative to the peak over all warps, of which stats knows. The whole block.
template <int kDim, int kWarps, int kRows>
__device__ __forceinline__ void store_rows(const AttentionParams& params, const BlockRows& of,
                                           const WarpStats<kWarps, kRows>& stats,
                                           const float* sums) {
  const int num_splits = static_cast<int>(gridDim.z);
  Partial partial{};
  if (num_splits > 1)
    partial = partial_of(
        params.workspace.scratch,
        (static_cast<int64_t>(blockIdx.x) * params.args.num_kv_heads + of.kv_head) * num_splits +
            blockIdx.z,
        of.rows_per_item, kDim);
  for (int i = static_cast<int>(threadIdx.x); i < of.num_rows * kDim; i += 32 * kWarps) {
    const int row = i / kDim;
    const float peak = peak_of(stats, row);
    const float base = base_of(peak);
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += exp2f(stats[w][row][0] - base) * stats[w][row][1];
    if (num_splits > 1) {
      partial.values[of.first_row * kDim + i] = sums[i];
      float* of_row = partial.stats + 2 * (of.first_row + row);
      if (i % kDim == 0) of_row[0] = peak, of_row[1] = sum;
    } else {
      store_attended(params.args, of.first_query + i, sums[i] / sum);
    }
  }
}

}  // namespace nibble::cuda
