// Attention blocks of one token, some query heads of one kv head and one split of the context,
// whose warps each walk tiles of their own: which part a block has, how it loads, how the warps'
// sums meet and are stored or left for the merge, and the launch.
#pragma once

#include "device/cuda/attention_split.cuh"
#include "device/cuda/overlap.cuh"

namespace nibble::cuda {

// What a block does. Block x is the item, z the split.
struct TokenItem {
  SplitRange range;      // of the context
  const int32_t* table;  // of the sequence's blocks
  int64_t first_query;   // of the block's rows in q and out
  int kv_head;
  int first_row;  // in the kv head's group
  int num_rows;
};

// Grid (tokens, num_kv_heads * parts of a group, splits). Lets the next kernel start and waits for
// the one before; false where there is nothing to do.
template <int kRows, int kDim>
__device__ __forceinline__ bool find_token_item(const AttentionParams& params, const Tiling& tiling,
                                                TokenItem* item) {
  let_next_kernel_start();
  const TilePlace place = find_tile(tiling, static_cast<int32_t>(blockIdx.x));
  const AttentionLaunch& args = params.args;
  const DeviceBatch& batch = params.batch;
  const int seq = max(place.seq, 0);
  const int32_t visible = batch.context_len[seq] + place.tile + 1;
  item->range = split_range(visible, static_cast<int>(gridDim.z), static_cast<int>(blockIdx.z));
  wait_for_previous_kernel();
  if (place.seq < 0 || item->range.begin >= item->range.end) return false;
  item->table = batch.block_table + static_cast<int64_t>(place.seq) * batch.max_blocks;
  item->kv_head = static_cast<int>(blockIdx.y) % args.num_kv_heads;
  item->first_row = static_cast<int>(blockIdx.y) / args.num_kv_heads * kRows;
  item->num_rows = min(kRows, params.group - item->first_row);
  const int64_t token = batch.query_start[seq] + place.tile;
  item->first_query = (token * args.num_heads + static_cast<int64_t>(item->kv_head) * params.group +
                       item->first_row) *
                      kDim;
  return true;
}

// So many bytes, aligned to themselves.
template <int kBytes>
__device__ __forceinline__ void load_bytes(const uint8_t* from, uint32_t (&words)[kBytes / 4]) {
  if constexpr (kBytes == 16) {
    const uint4 loaded = *reinterpret_cast<const uint4*>(from);
    words[0] = loaded.x, words[1] = loaded.y, words[2] = loaded.z, words[3] = loaded.w;
  } else if constexpr (kBytes == 8) {
    const uint2 loaded = *reinterpret_cast<const uint2*>(from);
    words[0] = loaded.x, words[1] = loaded.y;
  } else {
    words[0] = *reinterpret_cast<const uint32_t*>(from);
  }
}

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

// sums[row][dim], relative to the peak over all warps, of which stats knows. The whole block.
template <int kDim, int kWarps, int kRows>
__device__ __forceinline__ void store_rows(const AttentionParams& params, const TokenItem& of,
                                           const WarpStats<kWarps, kRows>& stats,
                                           const float* sums) {
  const int num_splits = static_cast<int>(gridDim.z);
  Partial partial{};
  if (num_splits > 1)
    partial = partial_of(
        params.workspace.scratch,
        (static_cast<int64_t>(blockIdx.x) * params.args.num_kv_heads + of.kv_head) * num_splits +
            blockIdx.z,
        params.group, kDim);
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

// `kernel` for blocks of `rows` query heads, so many of them at once on a multiprocessor, over
// sequences with at most `at_most` new tokens.
template <class Kernel>
AttentionEnd launch_by_token(Kernel* kernel, int rows, int blocks_per_sm, int threads,
                             const AttentionParams& params, int32_t at_most, cudaStream_t stream) {
  const int32_t tokens = params.batch.num_tokens;
  const int blocks = params.args.num_kv_heads * ((params.group + rows - 1) / rows);
  const int places = blocks_per_sm * params.workspace.num_sms;
  const int splits = splits_of(params, tokens, places / blocks, params.group);
  const Tiling tiling{params.batch.query_start, params.batch.num_seqs, 1, 0, at_most};
  launch_overlapped(kernel,
                    dim3(static_cast<unsigned>(tokens), static_cast<unsigned>(blocks),
                         static_cast<unsigned>(splits)),
                    static_cast<unsigned>(threads), 0, stream, params.workspace.compute_capability,
                    params, tiling);
  return end_splits(params, tiling, tokens, splits, params.group, stream);
}

}  // namespace nibble::cuda
