// What the tiled attention kernels share: 64 rows of queries in panels of shared memory, the online
// softmax over a tile's scores, and the rows' results. Rows are (token, query head of the group)
// pairs, token by token.
//
// Accumulators have the shape that tensor_core.cuh gives them: a thread has two rows of them,
// [i][0..1] of the first and [i][2..3] of the second, and shares a row with three other lanes,
// whose numbers differ in the bits kFirst and kSecond.
#pragma once

#include <type_traits>

#include "device/cuda/attention_kernels.h"
#include "device/cuda/cache_types.cuh"
#include "device/cuda/tensor_core.cuh"

namespace nibble::cuda {

// A block's rows: query heads of `kv_head` for num_rows / group tokens from first_token on.
template <int kDim>
struct QueryRows {
  int64_t first_token;  // of the batch
  int num_rows;
  int kv_head;
  int group;
  int num_heads;

  // Of a row's first element in q and out.
  __device__ int64_t at(int row) const {
    return ((first_token + row / group) * num_heads + int64_t{kv_head} * group + row % group) *
           kDim;
  }
};

// A block's run of a sequence's new tokens.
template <int kDim>
struct QueryRun {
  QueryRows<kDim> rows;
  const int32_t* table;  // of the sequence's blocks
  int32_t context;       // cached tokens before the run's first
  int32_t visible;       // to its last
};

// Grid (num_kv_heads, items). Last items, which have more to read, first; false for those past the
// end of the list.
template <int kDim>
__device__ __forceinline__ bool find_run(const AttentionParams& params, const Tiling& tiling,
                                         QueryRun<kDim>* run) {
  const TilePlace place =
      find_tile(tiling, static_cast<int32_t>(gridDim.y) - 1 - static_cast<int32_t>(blockIdx.y));
  if (place.seq < 0) return false;
  const DeviceBatch& batch = params.batch;
  const int32_t seq_begin = batch.query_start[place.seq];
  const int32_t first_token = place.tile * tiling.tile_tokens;
  const int32_t num_tokens =
      min(tiling.tile_tokens, batch.query_start[place.seq + 1] - seq_begin - first_token);
  run->rows = {seq_begin + first_token, num_tokens * params.group, static_cast<int>(blockIdx.x),
               params.group, params.args.num_heads};
  run->table = batch.block_table + static_cast<int64_t>(place.seq) * batch.max_blocks;
  run->context = batch.context_len[place.seq] + first_token;
  run->visible = run->context + num_tokens;
  return true;
}

// Queries into panels of 64 rows, in the products' type M; zeros behind the last.
template <class M, int kDim, int kRows, int kThreads>
__device__ __forceinline__ void queries_to_panels(const AttentionLaunch& args,
                                                  const QueryRows<kDim>& of, uint8_t* panels) {
  constexpr int kPanelBytes = 64 * kPanelRowBytes;
  constexpr int kChunks = kDim / 8;
  for (int item = static_cast<int>(threadIdx.x); item < kRows * kChunks; item += kThreads) {
    const int row = item / kChunks;
    const int chunk = item % kChunks;
    uint4 eight = {0, 0, 0, 0};
    if (row < of.num_rows) {
      eight = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(args.q) + of.at(row) +
                                              chunk * 8);
      if (std::is_same_v<M, Half> && args.type == Scalar::kBF16) {
        uint32_t words[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
        for (uint32_t& word : words) {
          const float2 pair = unpack_pair<BFloat>(word);
          word = pack_pair<Half>(pair.x, pair.y);
        }
        eight = {words[0], words[1], words[2], words[3]};
      }
    }
    const int offset = row / 64 * (kDim / kPanelColumns) * kPanelBytes + chunk / 8 * kPanelBytes +
                       static_cast<int>(panel_offset(row % 64, chunk & 7));
    *reinterpret_cast<uint4*>(panels + offset) = eight;
  }
}

// Scores become weights relative to the largest score so far; what has been summed follows.
// `scale` makes scores powers of two. A row must have seen a finite score by the end of the first
// tile. total: of this lane's columns.
template <int kFirst, int kSecond, int kScores, int kOuts>
__device__ __forceinline__ void online_softmax(float (&s)[kScores][4], float (&o)[kOuts][4],
                                               float (&largest)[2], float (&total)[2],
                                               float scale) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float peak = -INFINITY;
#pragma unroll
    for (int n = 0; n < kScores; ++n) peak = fmaxf(peak, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
    peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, kFirst));
    peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, kSecond));
    peak = fmaxf(peak * scale, largest[half]);
    const float factor = exp2f(largest[half] - peak);
    largest[half] = peak;
    float sum = 0;
#pragma unroll
    for (int n = 0; n < kScores; ++n)
#pragma unroll
      for (int c = 2 * half; c < 2 * half + 2; ++c) {
        s[n][c] = exp2f(s[n][c] * scale - peak);
        sum += s[n][c];
      }
    total[half] = total[half] * factor + sum;
#pragma unroll
    for (int m = 0; m < kOuts; ++m) o[m][2 * half] *= factor, o[m][2 * half + 1] *= factor;
  }
}

// 16 bytes to shared memory.
__device__ __forceinline__ void store_shared(uint32_t address, const uint4& words) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(words.x),
               "r"(words.y), "r"(words.z), "r"(words.w)
               : "memory");
}

// Eight of 16 8-bit elements as f16: the lower half of them or the upper.
template <class C>
__device__ __forceinline__ uint4 widen_eight(const uint4& sixteen, int half) {
  const uint32_t first = half == 0 ? sixteen.x : sixteen.z;
  const uint32_t second = half == 0 ? sixteen.y : sixteen.w;
  return {widen_pair<C, 0>(first), widen_pair<C, 1>(first), widen_pair<C, 0>(second),
          widen_pair<C, 1>(second)};
}

// Two neighbouring elements of a result.
__device__ __forceinline__ void store_result_pair(const AttentionLaunch& args, int64_t at,
                                                  float first, float second) {
  *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(args.out) + at) =
      args.type == Scalar::kBF16 ? pack_pair<BFloat>(first, second)
                                 : pack_pair<Half>(first, second);
}

}  // namespace nibble::cuda
