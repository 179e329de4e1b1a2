// Attention of few new tokens over a long cache: the cache is read once, at memory speed.
//
// A block handles one kv head, a few tokens of one sequence and one part ("split") of its context.
// Its rows are the query heads of the group times the tokens: 8 or 16, the N side of the products.
// Each of the four warps walks its own tiles of 16 cached tokens with its own cp.async ring and its
// own online softmax; warps meet only at the end. Scores S' = K Q' have cached tokens as rows and
// queries as columns; P, transposed within the warp, is the right operand of O' = V' P'.
//
// Fragments straight from the cache's rows. In mma.m16n8k16 lane (g = lane / 4, t = lane % 4) holds
// k = {2t, 2t+1, 2t+8, 2t+9} of row g and row g + 8. The order of the depth is free as long as both
// operands agree, so a lane takes 16 neighbouring bytes of its key rows and the same dims of q. The
// order of O's rows (head dims) is free too, so a lane takes 16 neighbouring bytes of four value
// rows (tokens 2t, 2t+1, 2t+8, 2t+9) and byte-permutes token pairs together. 8-bit caches are
// widened to f16 in registers, which is exact; products then run in f16.
// Bank conflicts: key row r keeps its 16-byte chunk c at c ^ 4(r & 1), value row r at
// c ^ 2((r >> 1) & 3); every quarter-warp load then touches all 32 banks once.
//
// Splits fill the card about once with two blocks per SM; what joins them is in attention_merge.cu.
#include <algorithm>
#include <type_traits>

#include "device/cuda/attention_kernels.h"
#include "device/cuda/attention_split.cuh"
#include "device/cuda/cache_types.cuh"
#include "device/cuda/launch.h"
#include "device/cuda/overlap.cuh"
#include "device/cuda/tensor_core.cuh"

// Before sm_80 the kernel has no body, and what it would use goes unused.
#pragma nv_diag_suppress 177

namespace nibble::cuda {
namespace {

constexpr int kTile = 16;  // cached tokens per warp and step
constexpr int kWarps = 4;

template <class C, int kDim>
struct DecodeShape {
  static constexpr int kRowBytes = kDim * static_cast<int>(sizeof(C));
  static constexpr int kChunks = kRowBytes / 16;
  static constexpr int kStageBytes = 2 * kTile * kRowBytes;  // keys and values of one warp
  static constexpr int kStages = kStageBytes >= 8192 ? 3 : 4;
  static constexpr int kSharedBytes = kWarps * kStages * kStageBytes;
  static constexpr bool kSwizzled = kRowBytes >= 128;
  static __device__ int key_chunk(int row, int chunk) {
    return kSwizzled ? chunk ^ ((row & 1) << 2) : chunk;
  }
  static __device__ int value_chunk(int row, int chunk) {
    return kSwizzled ? chunk ^ (((row >> 1) & 3) << 1) : chunk;
  }
};

// Grid (splits, num_kv_heads, items), 128 threads. kColumns groups of 8 rows.
template <class C, int kDim, int kColumns>
__global__ __launch_bounds__(32 * kWarps) void decode_kernel(AttentionParams params,
                                                             Tiling tiling) {
#if __CUDA_ARCH__ >= 800
  using M = ProductType<C>;
  using Shape = DecodeShape<C, kDim>;
  constexpr int kStages = Shape::kStages;
  constexpr int kRows = 8 * kColumns;
  constexpr bool kNarrow = sizeof(C) == 1;
  constexpr int kPerChunk = 16 / static_cast<int>(sizeof(C));  // elements
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ float stats[kWarps][kRows][2];
  let_next_kernel_start();
  const TilePlace place = find_tile(tiling, static_cast<int32_t>(blockIdx.z));
  const AttentionLaunch& args = params.args;
  const DeviceBatch& batch = params.batch;
  const int seq = max(place.seq, 0);
  const int32_t seq_begin = batch.query_start[seq];
  const int32_t first_token = place.tile * tiling.tile_tokens;  // within the sequence
  const int32_t num_tokens =
      min(tiling.tile_tokens, batch.query_start[seq + 1] - seq_begin - first_token);
  const int32_t context = batch.context_len[seq] + first_token;
  const int32_t visible = context + num_tokens;  // of the last token
  const int num_splits = static_cast<int>(gridDim.x);
  const SplitRange range = split_range(visible, num_splits, static_cast<int>(blockIdx.x));
  wait_for_previous_kernel();
  if (place.seq < 0 || range.begin >= range.end) return;

  const int tid = static_cast<int>(threadIdx.x);
  const int lane = tid & 31;
  const int warp = tid / 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int kv_head = static_cast<int>(blockIdx.y);
  const int num_rows = num_tokens * params.group;
  const auto query_row = [&](int row) {
    return (static_cast<int64_t>(seq_begin + first_token + row / params.group) * args.num_heads +
            kv_head * params.group + row % params.group) *
           kDim;
  };

  // Queries as right operands: row g of each column group, dims in the order the keys are read.
  uint32_t q[kColumns][kDim / 16][2];
#pragma unroll
  for (int column = 0; column < kColumns; ++column) {
    const int row = 8 * column + g;
    const bool valid = row < num_rows;
    const int64_t from = query_row(valid ? row : 0);
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      constexpr int kSteps = kPerChunk / 4;  // products per 16-byte chunk
      const int dim = step / kSteps * 4 * kPerChunk + t * kPerChunk + step % kSteps * 4;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float2 pair;
        if (args.type == Scalar::kBF16) {
          pair = unpack_pair<BFloat>(*reinterpret_cast<const uint32_t*>(
              static_cast<const BFloat*>(args.q) + from + dim + 2 * half));
        } else {
          pair = unpack_pair<Half>(*reinterpret_cast<const uint32_t*>(
              static_cast<const Half*>(args.q) + from + dim + 2 * half));
        }
        q[column][step][half] = valid ? pack_pair<M>(pair.x, pair.y) : 0;
      }
    }
  }
  // Last position that each of this lane's columns may see.
  int32_t last[kColumns][2];
#pragma unroll
  for (int column = 0; column < kColumns; ++column)
#pragma unroll
    for (int c = 0; c < 2; ++c)
      last[column][c] = context + min(8 * column + 2 * t + c, num_rows - 1) / params.group;

  const int32_t num_tiles = (range.end - range.begin + kTile - 1) / kTile;
  const int64_t row_elements = static_cast<int64_t>(args.num_kv_heads) * kDim;
  const int32_t* table = batch.block_table + static_cast<int64_t>(place.seq) * batch.max_blocks;
  const uint32_t ring =
      shared_address(shared) + static_cast<uint32_t>(warp * kStages * Shape::kStageBytes);
  // Cache row (in tokens) of the tile's token number lane % 16; tokens past the end repeat the
  // last.
  const auto cache_row = [&](int32_t tile) {
    const int32_t position = min(range.begin + tile * kTile + (lane & 15), range.end - 1);
    return cache_row_at(batch, table, position);
  };
  const auto load = [&](int stage, int32_t own_row) {
    const uint32_t keys = ring + static_cast<uint32_t>(stage * Shape::kStageBytes);
    const uint32_t values = keys + kTile * Shape::kRowBytes;
#pragma unroll
    for (int i = 0; i < kTile * Shape::kChunks / 32; ++i) {
      const int item = i * 32 + lane;
      const int row = item / Shape::kChunks;
      const int chunk = item % Shape::kChunks;
      const int64_t cached = __shfl_sync(0xffffffffu, own_row, row);
      const int64_t from =
          (cached * row_elements + kv_head * kDim) * static_cast<int64_t>(sizeof(C)) + chunk * 16;
      copy_async(
          keys + static_cast<uint32_t>(row * Shape::kRowBytes + Shape::key_chunk(row, chunk) * 16),
          static_cast<const uint8_t*>(args.k_cache) + from, true);
      copy_async(values + static_cast<uint32_t>(row * Shape::kRowBytes +
                                                Shape::value_chunk(row, chunk) * 16),
                 static_cast<const uint8_t*>(args.v_cache) + from, true);
    }
  };

  float o[kColumns][kDim / 16][4] = {};
  float largest[kColumns][2];
  float total[kColumns][2];
#pragma unroll
  for (int column = 0; column < kColumns; ++column)
#pragma unroll
    for (int c = 0; c < 2; ++c) largest[column][c] = -INFINITY, total[column][c] = 0;

#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) {
    const int32_t tile = warp + stage * kWarps;
    if (tile < num_tiles) load(stage, cache_row(tile));
    copy_commit();
  }
  int32_t next = warp + (kStages - 1) * kWarps;  // the tile to load in the coming step
  int32_t next_row = next < num_tiles ? cache_row(next) : 0;
  int stage = 0;
  const float scale = args.softmax_scale * kLog2E;
  for (int32_t tile = warp; tile < num_tiles; tile += kWarps) {
    copy_wait<kStages - 2>();
    __syncwarp();
    if (next < num_tiles) load((stage + kStages - 1) % kStages, next_row);
    copy_commit();
    next += kWarps;
    next_row = next < num_tiles ? cache_row(next) : 0;
    const uint8_t* keys = shared + (warp * kStages + stage) * Shape::kStageBytes;
    const uint8_t* values = keys + kTile * Shape::kRowBytes;
    stage = (stage + 1) % kStages;

    float s[kColumns][4] = {};
#pragma unroll
    for (int part = 0; part < Shape::kChunks / 4; ++part) {
      const uint4 low = *reinterpret_cast<const uint4*>(keys + g * Shape::kRowBytes +
                                                        Shape::key_chunk(g, part * 4 + t) * 16);
      const uint4 high = *reinterpret_cast<const uint4*>(
          keys + (g + 8) * Shape::kRowBytes + Shape::key_chunk(g + 8, part * 4 + t) * 16);
      const uint32_t lows[4] = {low.x, low.y, low.z, low.w};
      const uint32_t highs[4] = {high.x, high.y, high.z, high.w};
      if constexpr (kNarrow) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint32_t a[4] = {widen_pair<C, 0>(lows[i]), widen_pair<C, 0>(highs[i]),
                                 widen_pair<C, 1>(lows[i]), widen_pair<C, 1>(highs[i])};
#pragma unroll
          for (int column = 0; column < kColumns; ++column)
            mma_16x8x16<M>(s[column], a, q[column][4 * part + i][0], q[column][4 * part + i][1]);
        }
      } else {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const uint32_t a[4] = {lows[2 * i], highs[2 * i], lows[2 * i + 1], highs[2 * i + 1]};
#pragma unroll
          for (int column = 0; column < kColumns; ++column)
            mma_16x8x16<M>(s[column], a, q[column][2 * part + i][0], q[column][2 * part + i][1]);
        }
      }
    }

    // Online softmax per column; rows g and g + 8 of the tile are this lane's.
    const int32_t position = range.begin + tile * kTile + g;
    uint32_t p[kColumns][2];
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
      float factor[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int32_t until = min(last[column][c], range.end - 1);
        float low = position <= until ? s[column][c] * scale : -INFINITY;
        float high = position + 8 <= until ? s[column][2 + c] * scale : -INFINITY;
        float peak = fmaxf(low, high);
        peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 4));
        peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 8));
        peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 16));
        peak = fmaxf(peak, largest[column][c]);
        const float base = peak == -INFINITY ? 0.0f : peak;  // all masked so far
        factor[c] = exp2f(largest[column][c] - base);
        low = exp2f(low - base);
        high = exp2f(high - base);
        largest[column][c] = peak;
        total[column][c] = total[column][c] * factor[c] + low + high;  // of this lane's rows
        s[column][c] = low;
        s[column][2 + c] = high;
      }
      if (__any_sync(0xffffffffu, factor[0] != 1.0f || factor[1] != 1.0f)) {
#pragma unroll
        for (int m = 0; m < kDim / 16; ++m) {
          o[column][m][0] *= factor[0], o[column][m][1] *= factor[1];
          o[column][m][2] *= factor[0], o[column][m][3] *= factor[1];
        }
      }
      p[column][0] = transpose_8x8(pack_pair<M>(s[column][0], s[column][1]));
      p[column][1] = transpose_8x8(pack_pair<M>(s[column][2], s[column][3]));
    }

    // Values: lane bytes of tokens 2t, 2t + 1, 2t + 8, 2t + 9.
    constexpr int kLaneBytes = Shape::kRowBytes / 8 < 16 ? Shape::kRowBytes / 8 : 16;
    constexpr int kWords = kLaneBytes / 4;
#pragma unroll
    for (int part = 0; part < Shape::kRowBytes / (8 * kLaneBytes); ++part) {
      uint32_t words[4][kWords];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = 2 * t + (i & 1) + (i >> 1) * 8;
        if constexpr (kLaneBytes == 16) {
          const uint4 loaded = *reinterpret_cast<const uint4*>(
              values + row * Shape::kRowBytes + Shape::value_chunk(row, part * 8 + g) * 16);
          words[i][0] = loaded.x, words[i][1] = loaded.y;
          words[i][2] = loaded.z, words[i][3] = loaded.w;
        } else {
          const uint2 loaded =
              *reinterpret_cast<const uint2*>(values + row * Shape::kRowBytes + g * kLaneBytes);
          words[i][0] = loaded.x, words[i][1] = loaded.y;
        }
      }
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        if constexpr (kNarrow) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {  // two dims of the word's four
            const uint32_t select = half == 0 ? 0x5140u : 0x7362u;
            const uint32_t first = __byte_perm(words[0][w], words[1][w], select);
            const uint32_t second = __byte_perm(words[2][w], words[3][w], select);
            const uint32_t a[4] = {widen_pair<C, 0>(first), widen_pair<C, 1>(first),
                                   widen_pair<C, 0>(second), widen_pair<C, 1>(second)};
#pragma unroll
            for (int column = 0; column < kColumns; ++column)
              mma_16x8x16<M>(o[column][(part * kWords + w) * 2 + half], a, p[column][0],
                             p[column][1]);
          }
        } else {
          const uint32_t a[4] = {__byte_perm(words[0][w], words[1][w], 0x5410),
                                 __byte_perm(words[0][w], words[1][w], 0x7632),
                                 __byte_perm(words[2][w], words[3][w], 0x5410),
                                 __byte_perm(words[2][w], words[3][w], 0x7632)};
#pragma unroll
          for (int column = 0; column < kColumns; ++column)
            mma_16x8x16<M>(o[column][part * kWords + w], a, p[column][0], p[column][1]);
        }
      }
    }
  }

  // Warps meet. The rings become [warp][row][dim] of partial outputs.
  copy_wait<0>();
  __syncthreads();
  auto* outputs = reinterpret_cast<float*>(shared);
  constexpr int kLaneBytes = Shape::kRowBytes / 8 < 16 ? Shape::kRowBytes / 8 : 16;
  constexpr int kLaneDims = kLaneBytes / static_cast<int>(sizeof(C));
#pragma unroll
  for (int column = 0; column < kColumns; ++column)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float sum = total[column][c];
      sum += __shfl_xor_sync(0xffffffffu, sum, 4);
      sum += __shfl_xor_sync(0xffffffffu, sum, 8);
      sum += __shfl_xor_sync(0xffffffffu, sum, 16);
      const int row = 8 * column + 2 * t + c;
      if (g == 0) stats[warp][row][0] = largest[column][c], stats[warp][row][1] = sum;
      float* to = outputs + (warp * kRows + row) * kDim;
#pragma unroll
      for (int m = 0; m < kDim / 16; ++m) {
        const int dim = (m / (kLaneDims / 2) * 8 + g) * kLaneDims + m % (kLaneDims / 2) * 2;
        *reinterpret_cast<float2*>(to + dim) = {o[column][m][c], o[column][m][2 + c]};
      }
    }
  __syncthreads();
  const Partial partial =
      num_splits > 1 ? partial_of(params.workspace.scratch,
                                  (static_cast<int64_t>(blockIdx.z) * args.num_kv_heads + kv_head) *
                                          num_splits +
                                      blockIdx.x,
                                  kRows, kDim)
                     : Partial{};
  for (int i = tid; i < num_rows * kDim; i += 32 * kWarps) {
    const int row = i / kDim;
    const int dim = i % kDim;
    float peak = -INFINITY;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) peak = fmaxf(peak, stats[w][row][0]);
    const float base = peak == -INFINITY ? 0.0f : peak;
    float value = 0;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float weight = exp2f(stats[w][row][0] - base);
      value += weight * outputs[(w * kRows + row) * kDim + dim];
      sum += weight * stats[w][row][1];
    }
    if (num_splits > 1) {
      partial.values[i] = value;
      if (dim == 0) partial.stats[2 * row] = peak, partial.stats[2 * row + 1] = sum;
    } else {
      store_attended(args, query_row(row) + dim, value / sum);
    }
  }
#endif
}

template <class C, int kDim, int kColumns>
AttentionEnd launch_shape(const AttentionParams& params, const Tiling& tiling, int32_t num_items,
                          cudaStream_t stream) {
  const AttentionLaunch& args = params.args;
  constexpr int kRows = 8 * kColumns;
  const int splits =
      splits_of(params, num_items, 2 * params.workspace.num_sms / args.num_kv_heads, kRows);

  auto* kernel = decode_kernel<C, kDim, kColumns>;
  constexpr size_t kShared =
      std::max(DecodeShape<C, kDim>::kSharedBytes, kWarps * kRows * kDim * 4);
  allow_shared_memory(kernel, kShared);
  const auto kv_heads = static_cast<unsigned>(args.num_kv_heads);
  const auto items = static_cast<unsigned>(num_items);
  launch_overlapped(kernel, dim3(static_cast<unsigned>(splits), kv_heads, items), 32 * kWarps,
                    kShared, stream, params.workspace.compute_capability, params, tiling);
  return end_splits(params, tiling, num_items, splits, kRows, stream);
}

template <class C, int kDim>
AttentionEnd launch_columns(const AttentionParams& params, int32_t at_most, cudaStream_t stream) {
  // As many tokens as sequences, which is one each unless some have none: an item per token.
  // Otherwise items of several tokens.
  const DeviceBatch& batch = params.batch;
  const int32_t tokens = batch.num_tokens == batch.num_seqs ? 1 : std::max(1, 16 / params.group);
  const Tiling tiling{batch.query_start, batch.num_seqs, tokens, 0, at_most};
  const auto num_items = static_cast<int32_t>(
      std::min(int64_t{batch.num_seqs} * ((at_most - 1) / tokens + 1), int64_t{batch.num_tokens}));
  return tokens * params.group <= 8 ? launch_shape<C, kDim, 1>(params, tiling, num_items, stream)
                                    : launch_shape<C, kDim, 2>(params, tiling, num_items, stream);
}

}  // namespace

bool decode_supports(const AttentionParams& params) {
  const AttentionLaunch& args = params.args;
  // Products over a bf16 cache run in bf16, which would round f16 queries.
  const bool types =
      args.type == Scalar::kBF16 || (args.type == Scalar::kF16 && args.cache_type != Scalar::kBF16);
  return has_kv_shape(args.cache_type, args.head_dim) && types && params.group <= 16 &&
         params.workspace.compute_capability >= 80;
}

AttentionEnd launch_decode(const AttentionParams& params, int32_t at_most, cudaStream_t stream) {
  return with_kv_shape(params.args.cache_type, params.args.head_dim, [&](auto cache, auto dim) {
    return launch_columns<typename decltype(cache)::type, dim>(params, at_most, stream);
  });
}

}  // namespace nibble::cuda
