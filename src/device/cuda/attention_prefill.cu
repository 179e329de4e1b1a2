// Attention of many new tokens with wgmma (sm_90a): FlashAttention-2's loop over a paged cache.
//
// A block handles one kv head and a run of one sequence's new tokens. Its 128 rows are (token,
// query head of the group) pairs, token by token, so the heads of a group share every key and value
// that is loaded and short chunks still fill the rows. It walks the cache in tiles of 64 tokens,
// two in shared memory: the next is loaded while this one is multiplied, one barrier per tile. Four
// warps own 64 rows: scores [64, 64] and the output [64, head_dim] stay in
// their f32 accumulators, and rounded probabilities are the left operand of the second product
// without leaving registers. Tiles wholly before the run's first token carry no mask.
// 16-bit caches go to shared memory by cp.async; 8-bit ones through registers, widened to f16
// (exactly) on the way. Blocks of later tokens, which have more to read, start first.
// 64 columns per wgmma with both operands in shared memory ask for its full bandwidth, which bounds
// the first product; a tile of 80 to 128 tokens would relieve it at the price of registers.
// Source: Dao, "FlashAttention-2", arXiv:2307.08691.
#include "device/cuda/attention_rows.cuh"
#include "device/cuda/cache_types.cuh"
#include "device/cuda/launch.h"
#include "device/cuda/tensor_core.cuh"

namespace nibble::cuda {
namespace {

constexpr int kTile = 64;  // cached tokens

template <int kDim>
struct PrefillShape {
  static constexpr int kGroups = 2;  // of four warps and 64 rows
  static constexpr int kThreads = 128 * kGroups;
  static constexpr int kRows = 64 * kGroups;
  static constexpr int kPanels = kDim / kPanelColumns;
  static constexpr int kPanelBytes = kTile * kPanelRowBytes;
  static constexpr int kTileBytes = kPanels * kPanelBytes;  // one tile of keys or of values
  static constexpr int kSharedBytes = kGroups * kTileBytes + 4 * kTileBytes;
};

// One tile of keys or values on its way from the cache to its panels. start() issues the loads;
// finish() completes those that went through registers.
template <class C, int kDim, int kThreads>
struct TileLoader {
  static constexpr bool kNarrow = sizeof(C) == 1;
  static constexpr int kChunks = kDim * static_cast<int>(sizeof(C)) / 16;  // per row
  static constexpr int kItems = kTile * kChunks / kThreads;
  uint4 held[kNarrow ? kItems : 1];

  __device__ void start(const void* cache, const int32_t* rows, int64_t row_elements, int column,
                        uint32_t panels) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int item = i * kThreads + static_cast<int>(threadIdx.x);
      const int row = item / kChunks;
      const int chunk = item % kChunks;
      const auto* from = static_cast<const uint8_t*>(cache) +
                         (rows[row] * row_elements + column) * static_cast<int64_t>(sizeof(C)) +
                         chunk * 16;
      if constexpr (kNarrow) {
        held[i] = *reinterpret_cast<const uint4*>(from);
      } else {
        copy_async(panels + static_cast<uint32_t>(chunk / 8 * kTile * kPanelRowBytes) +
                       panel_offset(row, chunk & 7),
                   from, true);
      }
    }
  }
  __device__ void finish(uint32_t panels) {
    if constexpr (kNarrow) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const int item = i * kThreads + static_cast<int>(threadIdx.x);
        const int row = item / kChunks;
        const int chunk = item % kChunks * 2;  // of 16-bit elements
#pragma unroll
        for (int half = 0; half < 2; ++half)
          store_shared(panels + static_cast<uint32_t>(chunk / 8 * kTile * kPanelRowBytes) +
                           panel_offset(row, (chunk & 7) + half),
                       widen_eight<C>(held[i], half));
      }
    }
  }
};

// Grid (num_kv_heads, items).
template <class C, int kDim>
__global__ __launch_bounds__(PrefillShape<kDim>::kThreads,
                             1) void prefill_kernel(AttentionParams params, Tiling tiling) {
#if NIBBLE_HAS_WGMMA
  using M = ProductType<C>;
  using Shape = PrefillShape<kDim>;
  constexpr int kPanels = Shape::kPanels;
  extern __shared__ __align__(1024) uint8_t shared[];
  __shared__ int32_t rows[2][kTile];  // cache rows of the tiles in flight

  QueryRun<kDim> run;
  if (!find_run(params, tiling, &run)) return;
  const QueryRows<kDim>& query_rows = run.rows;
  const AttentionLaunch& args = params.args;
  const DeviceBatch& batch = params.batch;
  const int32_t num_tiles = (run.visible + kTile - 1) / kTile;

  const int tid = static_cast<int>(threadIdx.x);
  const int lane = tid & 31;
  const int g = lane / 4;
  const int t = lane % 4;
  const int part = tid / 128;               // which 64 rows
  const int first_row = tid / 32 % 4 * 16;  // of the warp, within the part
  const int column = query_rows.kv_head * kDim;
  const int64_t row_elements = static_cast<int64_t>(args.num_kv_heads) * kDim;
  const uint32_t queries = shared_address(shared);
  const uint32_t keys = queries + Shape::kGroups * Shape::kTileBytes;
  const uint32_t values = keys + 2 * Shape::kTileBytes;

  const auto find_rows = [&](int32_t tile) {
    if (tid < kTile && tile < num_tiles) {
      const int32_t position = min(tile * kTile + tid, run.visible - 1);
      rows[tile & 1][tid] = cache_row_at(batch, run.table, position);
    }
  };
  find_rows(0);
  find_rows(1);
  queries_to_panels<M, kDim, Shape::kRows, Shape::kThreads>(args, query_rows, shared);
  __syncthreads();
  TileLoader<C, kDim, Shape::kThreads> loader;
  loader.start(args.k_cache, rows[0], row_elements, column, keys);
  loader.finish(keys);
  loader.start(args.v_cache, rows[0], row_elements, column, values);
  loader.finish(values);
  copy_commit();

  float o[8 * kPanels][4] = {};
  float largest[2] = {-INFINITY, -INFINITY};
  float total[2] = {};
  int32_t last[2];  // position that rows first_row + g and + 8 may see last
#pragma unroll
  for (int half = 0; half < 2; ++half)
    last[half] = run.context +
                 min(part * 64 + first_row + g + 8 * half, query_rows.num_rows - 1) / params.group;
  const float scale = args.softmax_scale * kLog2E;
  const uint32_t own_queries = queries + static_cast<uint32_t>(part * Shape::kTileBytes);

  for (int32_t tile = 0; tile < num_tiles; ++tile) {
    const uint32_t buffer = static_cast<uint32_t>(tile & 1) * Shape::kTileBytes;
    const uint32_t next = Shape::kTileBytes - buffer;
    const bool has_next = tile + 1 < num_tiles;
    copy_wait<0>();
    fence_for_tensor_cores();
    __syncthreads();  // this tile is there, and nobody reads the one before

    float s[8][4] = {};
    pin(s);
    wgmma_begin();
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      const uint32_t at = static_cast<uint32_t>(step / 4 * Shape::kPanelBytes + step % 4 * 32);
      wgmma<M>(s, panel_descriptor(own_queries + at), panel_descriptor(keys + buffer + at));
    }
    wgmma_commit();
    if (has_next) {
      loader.start(args.k_cache, rows[(tile + 1) & 1], row_elements, column, keys + next);
      if constexpr (!decltype(loader)::kNarrow)
        loader.start(args.v_cache, rows[(tile + 1) & 1], row_elements, column, values + next);
    }
    copy_commit();
    wgmma_wait<0>();
    pin(s);
    if constexpr (decltype(loader)::kNarrow) {
      if (has_next) {
        loader.finish(keys + next);
        loader.start(args.v_cache, rows[(tile + 1) & 1], row_elements, column, values + next);
      }
    }

    if (tile * kTile + kTile - 1 > run.context) {  // the first token does not see all of it
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c)
          if (tile * kTile + 8 * n + 2 * t + (c & 1) > last[c >> 1]) s[n][c] = -INFINITY;
    }
    // Every row sees position 0.
    online_softmax<1, 2>(s, o, largest, total, scale);
    uint32_t p[4][4];
#pragma unroll
    for (int step = 0; step < 4; ++step) left_operand<M>(p[step], s[2 * step], s[2 * step + 1]);
    pin(o);
    wgmma_begin();
#pragma unroll
    for (int step = 0; step < 4; ++step)
#pragma unroll
      for (int panel = 0; panel < kPanels; ++panel)
        multiply_step<M, true, Right::kRowsAreDepth>(
            o + 8 * panel, p[step],
            values + buffer + static_cast<uint32_t>(panel * Shape::kPanelBytes), step);
    wgmma_commit();
    if (decltype(loader)::kNarrow && has_next) loader.finish(values + next);
    // Everyone is past this step's barrier, so the rows of this tile have been read by all.
    find_rows(tile + 2);
    wgmma_wait<0>();
    pin(o);
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    total[half] += __shfl_xor_sync(0xffffffffu, total[half], 1);
    total[half] += __shfl_xor_sync(0xffffffffu, total[half], 2);
    const int row = part * 64 + first_row + g + 8 * half;
    if (row >= query_rows.num_rows) continue;
    const float norm = 1.0f / total[half];
    const int64_t at = query_rows.at(row) + 2 * t;
#pragma unroll
    for (int m = 0; m < 8 * kPanels; ++m)
      store_result_pair(args, at + 8 * m, o[m][2 * half] * norm, o[m][2 * half + 1] * norm);
  }
#endif
}

template <class C, int kDim>
void launch_kernel(const AttentionParams& params, int32_t longer_than, cudaStream_t stream) {
  using Shape = PrefillShape<kDim>;
  const int32_t tokens = Shape::kRows / params.group;
  const Tiling tiling{params.batch.query_start, params.batch.num_seqs, tokens, longer_than};
  const int32_t num_items = params.batch.num_tokens / tokens + params.batch.num_seqs;
  auto* kernel = prefill_kernel<C, kDim>;
  allow_shared_memory(kernel, Shape::kSharedBytes);
  kernel<<<dim3(static_cast<unsigned>(params.args.num_kv_heads), static_cast<unsigned>(num_items)),
           Shape::kThreads, Shape::kSharedBytes, stream>>>(params, tiling);
  NB_CUDA_LAUNCHED();
}

}  // namespace

bool prefill_supports(const AttentionParams& params) {
  return decode_supports(params) &&
         with_kv_shape(params.args.cache_type, params.args.head_dim, [&](auto cache, auto dim) {
           return compiled_for_hopper(prefill_kernel<typename decltype(cache)::type, dim>,
                                      params.workspace);
         });
}

void launch_prefill(const AttentionParams& params, int32_t longer_than, cudaStream_t stream) {
  with_kv_shape(params.args.cache_type, params.args.head_dim, [&](auto cache, auto dim) {
    launch_kernel<typename decltype(cache)::type, dim>(params, longer_than, stream);
  });
}

}  // namespace nibble::cuda
