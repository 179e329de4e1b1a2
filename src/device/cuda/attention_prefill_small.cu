// Attention of many new tokens in 48 KiB of shared memory and without asynchronous copies, for
// every GPU without wgmma, from sm_70 on.
//
// As in attention_prefill.cu, but a block has 64 rows of queries, four warps 16 each, and scores
// and output stay in f32 accumulators. Here tiles have 32 cached tokens, keys and values take turns
// in one buffer, and what comes next waits in registers until the buffer is free: four barriers a
// tile, two blocks to a multiprocessor.
//
// Two sets of products. RowsOf16: mma.m16n8k16, which is two m16n8k8 on sm_75. Quads: m8n8k4 of
// sm_70 (quads.cuh).
//
// Source: Dao, "FlashAttention-2", arXiv:2307.08691.
#include <type_traits>

#include "device/cuda/attention_rows.cuh"
#include "device/cuda/cache_types.cuh"
#include "device/cuda/quads.cuh"
#include "device/cuda/tensor_core.cuh"

namespace nibble::cuda {
namespace {

constexpr int kTile = 32;  // cached tokens
constexpr int kThreads = 128;
constexpr int kRows = 64;
constexpr int kKvPanelBytes = kTile * kPanelRowBytes;
constexpr int kQueryPanelBytes = kRows * kPanelRowBytes;

__device__ __forceinline__ uint4 load_shared(uint32_t address) {
  uint4 words;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "r"(address));
  return words;
}

// A warp's products with 16 rows. Of its two rows a thread has row(half); s[n][c] is the score of
// token(n, c & 1) in the tile, o[m][c] the output's dim(m) + (c & 1), both of row(c / 2).
template <class M, int kDim>
struct RowsOf16 {
  static constexpr int kFirst = 1, kSecond = 2;  // bits of the lanes that share a row
  static constexpr int kFromArch = std::is_same_v<M, BFloat> ? 800 : 750, kBelowArch = 10000;
  int lane = static_cast<int>(threadIdx.x) & 31;

  __device__ int row(int half) const { return lane / 4 + 8 * half; }
  __device__ int token(int n, int c) const { return 8 * n + 2 * (lane % 4) + c; }
  __device__ int dim(int m) const { return 8 * m + 2 * (lane % 4); }

  __device__ __forceinline__ void scores(float (&s)[4][4], uint32_t queries, int first_row,
                                         uint32_t keys) const {
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      uint32_t a[4];
      load_left(a, queries + static_cast<uint32_t>(step / 4 * kQueryPanelBytes), first_row,
                step & 3);
      multiply_step<M, false, Right::kRowsAreColumns>(
          s, a, keys + static_cast<uint32_t>(step / 4 * kKvPanelBytes), step & 3, kTile / 16);
    }
  }
  __device__ __forceinline__ void outputs(float (&o)[kDim / 8][4], const float (&s)[4][4],
                                          uint32_t values) const {
#pragma unroll
    for (int step = 0; step < kTile / 16; ++step) {
      uint32_t a[4];
      left_operand<M>(a, s[2 * step], s[2 * step + 1]);
#pragma unroll
      for (int panel = 0; panel < kDim / kPanelColumns; ++panel)
        multiply_step<M, false, Right::kRowsAreDepth>(
            o + 8 * panel, a, values + static_cast<uint32_t>(panel * kKvPanelBytes), step);
    }
  }
};

// The same with quad pairs: two of them have eight of the rows, and of those two each has half of
// the tile's tokens in the first product, half of the dims in the second.
template <int kDim>
struct Quads {
  static constexpr int kFirst = 2, kSecond = 8;
  static constexpr int kFromArch = 700, kBelowArch = 800;
  QuadLane lane;
  int rows = lane.pair & 1;
  int columns = lane.pair >> 1;

  // Rows of a quad lie together, so that loads of both quads that follow meet no bank twice.
  __device__ int row(int half) const {
    return 8 * lane.upper + 4 * rows + (lane.member & 1) + 2 * half;
  }
  __device__ int token(int n, int c) const {
    return n / 2 * 16 + 8 * columns + lane.column(n % 2) + c;
  }
  // A piece of 16 dims is four groups m: loads give a thread eight dims, four for each of two
  // products, whose columns are those of both quads.
  __device__ int dim(int m) const {
    return kDim / 2 * columns + m / 4 * 16 + m % 2 * 8 + m / 2 % 2 * 4 + (lane.member & 2);
  }

  __device__ __forceinline__ void scores(float (&s)[4][4], uint32_t queries, int first_row,
                                         uint32_t keys) const {
#pragma unroll
    for (int chunk = 0; chunk < kDim / 8; ++chunk) {
      const uint4 a =
          load_shared(queries + static_cast<uint32_t>(chunk / 8 * kQueryPanelBytes) +
                      panel_offset(first_row + 8 * lane.upper + 4 * rows + lane.member, chunk & 7));
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const uint4 b =
            load_shared(keys + static_cast<uint32_t>(chunk / 8 * kKvPanelBytes) +
                        panel_offset(16 * j + 8 * columns + lane.operand_row(), chunk & 7));
        mma_8x8x4<Right::kRowsAreColumns>(s[2 * j], s[2 * j + 1], a.x, a.y, b.x, b.y);
        mma_8x8x4<Right::kRowsAreColumns>(s[2 * j], s[2 * j + 1], a.z, a.w, b.z, b.w);
      }
    }
  }
  __device__ __forceinline__ void outputs(float (&o)[kDim / 8][4], const float (&s)[4][4],
                                          uint32_t values) const {
    // Of a result a thread has two columns of two rows; as left operand, four columns of one.
    uint32_t weights[4][2];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const uint32_t first = pack_pair<Half>(s[n][0], s[n][1]);
      const uint32_t second = pack_pair<Half>(s[n][2], s[n][3]);
      const bool upper_pair = (lane.member & 2) != 0;
      const uint32_t kept = upper_pair ? second : first;
      const uint32_t other = __shfl_xor_sync(0xffffffffu, upper_pair ? first : second, 2);
      weights[n][0] = upper_pair ? other : kept;
      weights[n][1] = upper_pair ? kept : other;
    }
    // Each quad pair begins with the tokens that it has scored, then takes those of the other.
#pragma unroll
    for (int turn = 0; turn < 2; ++turn) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        if (turn == 1) {
          weights[n][0] = __shfl_xor_sync(0xffffffffu, weights[n][0], 8);
          weights[n][1] = __shfl_xor_sync(0xffffffffu, weights[n][1], 8);
        }
        const int token = n / 2 * 16 + 8 * (columns ^ turn) + n % 2 * 4 + lane.member;
#pragma unroll
        for (int piece = 0; piece < kDim / 32; ++piece) {
          const int chunk = kDim / 16 * columns + 2 * piece + lane.upper;
          const uint4 b = load_shared(values + static_cast<uint32_t>(chunk / 8 * kKvPanelBytes) +
                                      panel_offset(token, chunk & 7));
          mma_8x8x4<Right::kRowsAreDepth>(o[4 * piece], o[4 * piece + 1], weights[n][0],
                                          weights[n][1], b.x, b.y);
          mma_8x8x4<Right::kRowsAreDepth>(o[4 * piece + 2], o[4 * piece + 3], weights[n][0],
                                          weights[n][1], b.z, b.w);
        }
      }
    }
  }
};

// A tile of keys or values between the cache and the buffer. Lane i of every warp knows the cache
// row of the tile's token i.
template <class C, int kDim>
struct HeldTile {
  static constexpr int kChunks = kDim * static_cast<int>(sizeof(C)) / 16;  // of a row
  static constexpr int kItems = kTile * kChunks / kThreads;
  uint4 held[kItems];

  __device__ __forceinline__ void bring(const uint8_t* cache, int32_t cache_row,
                                        int64_t row_bytes) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int item = i * kThreads + static_cast<int>(threadIdx.x);
      const int64_t row = __shfl_sync(0xffffffffu, cache_row, item / kChunks);
      held[i] = *reinterpret_cast<const uint4*>(cache + row * row_bytes + item % kChunks * 16);
    }
  }
  __device__ __forceinline__ void put(uint32_t panels) const {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int item = i * kThreads + static_cast<int>(threadIdx.x);
      const int row = item / kChunks;
      const auto to = [&](int chunk) {
        return panels + static_cast<uint32_t>(chunk / 8 * kKvPanelBytes) +
               panel_offset(row, chunk & 7);
      };
      if constexpr (sizeof(C) == 2) {
        store_shared(to(item % kChunks), held[i]);
      } else {
#pragma unroll
        for (int half = 0; half < 2; ++half)
          store_shared(to(item % kChunks * 2 + half), widen_eight<C>(held[i], half));
      }
    }
  }
};

// Grid (num_kv_heads, items), 128 threads.
template <class C, int kDim, class Products>
__global__ void __launch_bounds__(kThreads, 2)
    small_prefill_kernel(AttentionParams params, Tiling tiling) {
#ifdef __CUDA_ARCH__
  if (__CUDA_ARCH__ < Products::kFromArch || __CUDA_ARCH__ >= Products::kBelowArch) return;
  extern __shared__ __align__(1024) uint8_t shared[];
  QueryRun<kDim> run;
  if (!find_run(params, tiling, &run)) return;
  const QueryRows<kDim>& query_rows = run.rows;
  const AttentionLaunch& args = params.args;
  const DeviceBatch& batch = params.batch;
  const int32_t num_tiles = (run.visible + kTile - 1) / kTile;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int first_row = static_cast<int>(threadIdx.x) / 32 * 16;  // of the warp

  const int64_t row_bytes = int64_t{args.num_kv_heads} * kDim * sizeof(C);
  const int64_t head_bytes = int64_t{query_rows.kv_head} * kDim * sizeof(C);
  const auto* keys = static_cast<const uint8_t*>(args.k_cache) + head_bytes;
  const auto* values = static_cast<const uint8_t*>(args.v_cache) + head_bytes;
  const auto cache_row_of = [&](int32_t tile) {
    const int32_t position = min(tile * kTile + lane, run.visible - 1);
    return cache_row_at(batch, run.table, position);
  };

  const uint32_t queries = shared_address(shared);
  const uint32_t buffer = queries + kDim / kPanelColumns * kQueryPanelBytes;
  HeldTile<C, kDim> tile_held;
  int32_t cache_row = cache_row_of(0);
  tile_held.bring(keys, cache_row, row_bytes);
  queries_to_panels<ProductType<C>, kDim, kRows, kThreads>(args, query_rows, shared);

  const Products products;
  float o[kDim / 8][4] = {};
  float largest[2] = {-INFINITY, -INFINITY};
  float total[2] = {};
  int32_t last[2];  // position that this thread's rows may see last
#pragma unroll
  for (int half = 0; half < 2; ++half)
    last[half] =
        run.context + min(first_row + products.row(half), query_rows.num_rows - 1) / params.group;
  const float scale = args.softmax_scale * kLog2E;

  for (int32_t tile = 0; tile < num_tiles; ++tile) {
    tile_held.put(buffer);
    __syncthreads();
    tile_held.bring(values, cache_row, row_bytes);
    const int32_t next_row = cache_row_of(tile + 1);
    float s[4][4] = {};
    products.scores(s, queries, first_row, buffer);
    if (tile * kTile + kTile - 1 > run.context) {  // the first token does not see all of it
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c)
          if (tile * kTile + products.token(n, c & 1) > last[c >> 1]) s[n][c] = -INFINITY;
    }
    // Every row sees position 0.
    online_softmax<Products::kFirst, Products::kSecond>(s, o, largest, total, scale);
    __syncthreads();
    tile_held.put(buffer);
    __syncthreads();
    cache_row = next_row;
    if (tile + 1 < num_tiles) tile_held.bring(keys, cache_row, row_bytes);
    products.outputs(o, s, buffer);
    __syncthreads();
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    total[half] += __shfl_xor_sync(0xffffffffu, total[half], Products::kFirst);
    total[half] += __shfl_xor_sync(0xffffffffu, total[half], Products::kSecond);
    const int row = first_row + products.row(half);
    if (row >= query_rows.num_rows) continue;
    const float norm = 1.0f / total[half];
    const int64_t at = query_rows.at(row);
#pragma unroll
    for (int m = 0; m < kDim / 8; ++m)
      store_result_pair(args, at + products.dim(m), o[m][2 * half] * norm,
                        o[m][2 * half + 1] * norm);
  }
#endif
}

template <class C, int kDim, class Products>
void launch_products(const AttentionParams& params, int32_t longer_than, cudaStream_t stream) {
  constexpr int kSharedBytes = kDim / kPanelColumns * (kQueryPanelBytes + kKvPanelBytes);
  static_assert(kSharedBytes <= 48 << 10);
  const int32_t tokens = kRows / params.group;
  const Tiling tiling{params.batch.query_start, params.batch.num_seqs, tokens, longer_than};
  const int32_t num_items = params.batch.num_tokens / tokens + params.batch.num_seqs;
  small_prefill_kernel<C, kDim, Products>
      <<<dim3(static_cast<unsigned>(params.args.num_kv_heads), static_cast<unsigned>(num_items)),
         kThreads, kSharedBytes, stream>>>(params, tiling);
  NB_CUDA_LAUNCHED();
}

}  // namespace

bool small_prefill_supports(const AttentionParams& params) {
  const AttentionLaunch& args = params.args;
  const int capability = params.workspace.compute_capability;
  if (!has_kv_shape(args.cache_type, args.head_dim) || params.group > kRows) return false;
  // Products over a bf16 cache run in bf16, which would round f16 queries and needs sm_80.
  if (args.cache_type == Scalar::kBF16) return args.type == Scalar::kBF16 && capability >= 80;
  return args.type != Scalar::kF32;
}

void launch_small_prefill(const AttentionParams& params, int32_t longer_than, cudaStream_t stream) {
  with_kv_shape(params.args.cache_type, params.args.head_dim, [&](auto cache, auto dim) {
    using C = typename decltype(cache)::type;
    using M = ProductType<C>;
    if constexpr (std::is_same_v<M, Half>) {
      if (takes_quads(params.workspace, params.args.form == AttentionForm::kQuads))
        return launch_products<C, dim, Quads<dim>>(params, longer_than, stream);
    }
    launch_products<C, dim, RowsOf16<M, dim>>(params, longer_than, stream);
  });
}

}  // namespace nibble::cuda
