// Attention of few new tokens on the tensor cores of GPUs before sm_80, in f16.
//
// A block handles one token, up to 8 query heads of one kv head, and one part ("split") of the
// context. Each of its four warps takes turns with tiles of 8 or 16 cached tokens and has its own
// online softmax. Queries are the left operand, eight rows; keys and values go from the cache to
// the registers of the lane that multiplies them, keys a tile ahead, values while keys are
// multiplied.
//
// The order of a product's depth is free as long as both operands agree, and so is that of the
// output's columns: a lane takes 16 neighbouring bytes of a key row, four lanes 64, and of a value
// row what eight lanes share. Two sets of products, over eight cached tokens at a time. RowsOf8:
// m16n8k8, of whose sixteen rows eight do not exist. QuadRows: m8n8k4 of sm_70 (quads.cuh), each
// pair a quarter of the dims.
#include <type_traits>

#include "device/cuda/attention_token.cuh"
#include "device/cuda/cache_types.cuh"
#include "device/cuda/quads.cuh"

namespace nibble::cuda {
namespace {

constexpr int kEight = 8;  // cached tokens of a product
constexpr int kWarps = 4;
constexpr int kRows = 8;  // query heads of a block
template <int kDim>
constexpr int kBlocksPerSm = kDim == 256 ? 2 : 3;

template <class C, int kDim>
struct Cached {
  static constexpr int kElement = static_cast<int>(sizeof(C));
  static constexpr int kGroups = kElement == 1 ? 2 : 1;
  static constexpr int kTile = kGroups * kEight;  // cached tokens per warp and step
  static constexpr int kRowBytes = kDim * kElement;
  static constexpr int kPairs = 8 / kElement;       // of elements in 16 bytes
  static constexpr int kKeyParts = kRowBytes / 64;  // of 16 bytes of a lane
  static constexpr int kLaneBytes = kRowBytes / 8 < 16 ? kRowBytes / 8 : 16;  // of a value row
  static constexpr int kLaneDims = kLaneBytes / kElement;
  static constexpr int kLaneWords = kLaneBytes / 4;
  static constexpr int kValueParts = kRowBytes / (8 * kLaneBytes);
  static constexpr int kOuts = kDim / 4;  // of a lane: 8 rows x kDim over 32 lanes
};

// The words' elements in pairs of f16.
template <class C, int kWords>
__device__ __forceinline__ void widen_words(const uint32_t (&words)[kWords],
                                            uint32_t (&pairs)[kWords * 2 / sizeof(C)]) {
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    if constexpr (sizeof(C) == 2) {
      pairs[w] = words[w];
    } else {
      pairs[2 * w] = widen_pair<C, 0>(words[w]);
      pairs[2 * w + 1] = widen_pair<C, 1>(words[w]);
    }
  }
}

// d[row][0..1] += a b with m16n8k8, of rows 0 to 7.
__device__ __forceinline__ void mma_8x8x8(float& d0, float& d1, uint32_t a, uint32_t b) {
#if __CUDA_ARCH__ >= 750
  asm volatile(
      "{\n.reg .f32 none0, none1;\n"
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,none0,none1}, {%2,%3}, {%4}, "
      "{%0,%1,%5,%5};\n}"
      : "+f"(d0), "+f"(d1)
      : "r"(a), "r"(0), "r"(b), "f"(0.0f));
#endif
}

// A warp's products. A lane loads 16-byte pieces number key_lane() (of four) of the key row of
// token key_token(), the same of query row key_token(), and pieces value_lane() (of eight) of the
// value rows of tokens value_token(0) and (1). It gets two scores of row row(), those of tokens
// score_token() and the next, and outputs whose row and dim place() tells.
template <class C, int kDim>
struct RowsOf8 {
  using Shape = Cached<C, kDim>;
  static constexpr int kFirst = 1, kSecond = 2;  // bits of the lanes that share a row
  static constexpr int kFromArch = 750, kBelowArch = 10000;
  int g = static_cast<int>(threadIdx.x) >> 2 & 7;
  int t = static_cast<int>(threadIdx.x) & 3;

  __device__ int key_token() const { return g; }
  __device__ int key_lane() const { return t; }
  __device__ int value_token(int i) const { return 2 * t + i; }
  __device__ int value_lane() const { return g; }
  __device__ int row() const { return g; }
  __device__ int score_token() const { return 2 * t; }

  struct Sums {
    float of[2] = {0, 0};
  };
  __device__ __forceinline__ void add(Sums& sums, const uint32_t (&q)[Shape::kPairs],
                                      const uint32_t (&k)[Shape::kPairs]) const {
#pragma unroll
    for (int p = 0; p < Shape::kPairs; ++p) mma_8x8x8(sums.of[0], sums.of[1], q[p], k[p]);
  }
  __device__ __forceinline__ void finish(const Sums& sums, float (&scores)[2]) const {
    scores[0] = sums.of[0], scores[1] = sums.of[1];
  }

  // Outputs of all rows times the factor of each.
  __device__ __forceinline__ void scale(float (&o)[Shape::kOuts], float factor) const {
#pragma unroll
    for (float& value : o) value *= factor;
  }
  __device__ __forceinline__ void outputs(
      float (&o)[Shape::kOuts], const float (&weights)[2],
      const uint32_t (&values)[2][Shape::kValueParts][Shape::kLaneWords]) const {
    const uint32_t a = pack_pair<Half>(weights[0], weights[1]);
#pragma unroll
    for (int part = 0; part < Shape::kValueParts; ++part)
#pragma unroll
      for (int w = 0; w < Shape::kLaneWords; ++w) {
        const uint32_t first = values[0][part][w], second = values[1][part][w];
        // A dim of both tokens is a pair.
        constexpr int kDims = 4 / Shape::kElement;
        uint32_t pairs[kDims];
        if constexpr (Shape::kElement == 2) {
          pairs[0] = __byte_perm(first, second, 0x5410);
          pairs[1] = __byte_perm(first, second, 0x7632);
        } else {
          const uint32_t mixed[2] = {__byte_perm(first, second, 0x5140),
                                     __byte_perm(first, second, 0x7362)};
          widen_words<C>(mixed, pairs);
        }
#pragma unroll
        for (int d = 0; d < kDims; ++d) {
          const int at = 2 * (part * Shape::kLaneDims + w * kDims + d);
          mma_8x8x8(o[at], o[at + 1], a, pairs[d]);
        }
      }
  }
  __device__ int place(int i, int* dim) const {
    const int d = i / 2;
    *dim = (d / Shape::kLaneDims * 8 + 2 * t + i % 2) * Shape::kLaneDims + d % Shape::kLaneDims;
    return g;
  }
};

template <class C, int kDim>
struct QuadRows {
  using Shape = Cached<C, kDim>;
  static constexpr int kFirst = 2, kSecond = 4;
  static constexpr int kFromArch = 700, kBelowArch = 800;
  QuadLane lane;

  __device__ int key_token() const { return lane.operand_row(); }
  __device__ int key_lane() const { return lane.pair; }
  __device__ int value_token(int i) const { return 4 * i + lane.member; }
  __device__ int value_lane() const { return 2 * lane.pair + lane.upper; }
  __device__ int row() const { return lane.row(lane.pair >> 1); }
  __device__ int score_token() const { return lane.column(lane.pair & 1); }

  struct Sums {
    float of[2][4] = {};  // of this pair's dims
  };
  __device__ __forceinline__ void add(Sums& sums, const uint32_t (&q)[Shape::kPairs],
                                      const uint32_t (&k)[Shape::kPairs]) const {
#pragma unroll
    for (int p = 0; p < Shape::kPairs; p += 2)
      mma_8x8x4<Right::kRowsAreColumns>(sums.of[0], sums.of[1], q[p], q[p + 1], k[p], k[p + 1]);
  }
  // Pairs meet: of every two one goes on with half of the sums.
  __device__ __forceinline__ void finish(const Sums& sums, float (&scores)[2]) const {
    const bool columns = (lane.pair & 1) != 0, rows = (lane.pair >> 1) != 0;
    float half[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      half[i] = (columns ? sums.of[1][i] : sums.of[0][i]) +
                __shfl_xor_sync(0xffffffffu, columns ? sums.of[0][i] : sums.of[1][i], 4);
#pragma unroll
    for (int i = 0; i < 2; ++i)
      scores[i] = (rows ? half[2 + i] : half[i]) +
                  __shfl_xor_sync(0xffffffffu, rows ? half[i] : half[2 + i], 8);
  }

  // A lane that has row row(half) of a result's two.
  __device__ int lane_of_row(int half) const {
    return lane.member + 8 * half + 16 * lane.upper;
  }
  __device__ __forceinline__ void scale(float (&o)[Shape::kOuts], float factor) const {
    float of_half[2];
#pragma unroll
    for (int half = 0; half < 2; ++half)
      of_half[half] = __shfl_sync(0xffffffffu, factor, lane_of_row(half));
#pragma unroll
    for (int i = 0; i < Shape::kOuts; ++i) o[i] *= of_half[i / 2 % 2];
  }
  __device__ __forceinline__ void outputs(
      float (&o)[Shape::kOuts], const float (&weights)[2],
      const uint32_t (&values)[2][Shape::kValueParts][Shape::kLaneWords]) const {
    // Four tokens of row operand_row() are with two lanes of the pairs that have it.
    const uint32_t own = pack_pair<Half>(weights[0], weights[1]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t a[2];
#pragma unroll
      for (int j = 0; j < 2; ++j)
        a[j] =
            __shfl_sync(0xffffffffu, own,
                        (lane.member & 1) + 2 * j + 4 * (i + (lane.member & 2)) + 16 * lane.upper);
#pragma unroll
      for (int part = 0; part < Shape::kValueParts; ++part) {
        uint32_t pairs[Shape::kLaneDims / 2];
        widen_words<C>(values[i][part], pairs);
#pragma unroll
        for (int four = 0; four < Shape::kLaneDims / 4; ++four) {
          float(*d)[4] =
              reinterpret_cast<float(*)[4]>(o + (part * (Shape::kLaneDims / 4) + four) * 8);
          mma_8x8x4<Right::kRowsAreDepth>(d[0], d[1], a[0], a[1], pairs[2 * four],
                                          pairs[2 * four + 1]);
        }
      }
    }
  }
  __device__ int place(int i, int* dim) const {
    const int four = i / 8;
    constexpr int kFours = Shape::kLaneDims / 4;
    *dim = (four / kFours * 8 + 2 * lane.pair + i % 8 / 4) * Shape::kLaneDims + four % kFours * 4 +
           (lane.member & 2) + i % 2;
    return lane.row(i % 4 / 2);
  }
};

// Grid (tokens, num_kv_heads * parts of a group, splits), 128 threads.
template <class C, int kDim, class Products>
__global__ void __launch_bounds__(32 * kWarps, kBlocksPerSm<kDim>)
    attend_pre80_kernel(AttentionParams params, Tiling tiling) {
#ifdef __CUDA_ARCH__
  if (__CUDA_ARCH__ < Products::kFromArch || __CUDA_ARCH__ >= Products::kBelowArch) return;
  using Shape = Cached<C, kDim>;
  constexpr int kTile = Shape::kTile, kGroups = Shape::kGroups;
  __shared__ __align__(16) float sums[kRows * kDim];
  __shared__ WarpStats<kWarps, kRows> stats;
  TokenItem item;
  if (!find_token_item<kRows, kDim>(params, tiling, &item)) return;
  const SplitRange range = item.range;
  const AttentionLaunch& args = params.args;
  const DeviceBatch& batch = params.batch;

  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const Products products;

  uint32_t q[Shape::kKeyParts][Shape::kPairs];
#pragma unroll
  for (int part = 0; part < Shape::kKeyParts; ++part)
#pragma unroll
    for (int p = 0; p < Shape::kPairs; ++p) {
      const int row = products.key_token();
      const int64_t at = item.first_query + row * kDim +
                         (4 * part + products.key_lane()) * 2 * Shape::kPairs + 2 * p;
      q[part][p] = 0;  // of heads that there are not
      if (row >= item.num_rows) continue;
      if (args.type == Scalar::kBF16) {
        const float2 pair = unpack_pair<BFloat>(
            *reinterpret_cast<const uint32_t*>(static_cast<const BFloat*>(args.q) + at));
        q[part][p] = pack_pair<Half>(pair.x, pair.y);
      } else {
        q[part][p] = *reinterpret_cast<const uint32_t*>(static_cast<const Half*>(args.q) + at);
      }
    }

  const int32_t num_tiles = (range.end - range.begin + kTile - 1) / kTile;
  const int64_t row_bytes = int64_t{args.num_kv_heads} * Shape::kRowBytes;
  const auto* all_keys =
      static_cast<const uint8_t*>(args.k_cache) + item.kv_head * Shape::kRowBytes;
  const auto* all_values =
      static_cast<const uint8_t*>(args.v_cache) + item.kv_head * Shape::kRowBytes;
  // Of the tile's token number lane % kTile; tokens past the end repeat the last one.
  const auto cache_row_of = [&](int32_t tile) {
    const int32_t position = min(range.begin + tile * kTile + lane % kTile, range.end - 1);
    return cache_row_at(batch, item.table, position);
  };
  uint32_t keys[kGroups][Shape::kKeyParts][4];
  const auto bring_keys = [&](int32_t cache_row) {
#pragma unroll
    for (int e = 0; e < kGroups; ++e) {
      const uint8_t* row =
          all_keys +
          __shfl_sync(0xffffffffu, cache_row, kEight * e + products.key_token()) * row_bytes +
          products.key_lane() * 16;
#pragma unroll
      for (int part = 0; part < Shape::kKeyParts; ++part)
        load_bytes<16>(row + part * 64, keys[e][part]);
    }
  };
  uint32_t values[kGroups][2][Shape::kValueParts][Shape::kLaneWords];
  const auto bring_values = [&](int32_t cache_row) {
#pragma unroll
    for (int e = 0; e < kGroups; ++e)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint8_t* row =
            all_values +
            __shfl_sync(0xffffffffu, cache_row, kEight * e + products.value_token(i)) * row_bytes +
            products.value_lane() * Shape::kLaneBytes;
#pragma unroll
        for (int part = 0; part < Shape::kValueParts; ++part)
          load_bytes<Shape::kLaneBytes>(row + part * 8 * Shape::kLaneBytes, values[e][i][part]);
      }
  };

  float o[Shape::kOuts] = {};
  float largest = -INFINITY;  // of row products.row()
  float total = 0;            // of this lane's tokens
  const float scale = args.softmax_scale * kLog2E;
  int32_t cache_row = 0;
  if (warp < num_tiles) {
    cache_row = cache_row_of(warp);
    bring_keys(cache_row);
  }
  for (int32_t tile = warp; tile < num_tiles; tile += kWarps) {
    bring_values(cache_row);
    const bool has_next = tile + kWarps < num_tiles;
    if (has_next) cache_row = cache_row_of(tile + kWarps);
    float s[kGroups][2];
#pragma unroll
    for (int e = 0; e < kGroups; ++e) {
      typename Products::Sums of_tokens;
#pragma unroll
      for (int part = 0; part < Shape::kKeyParts; ++part) {
        uint32_t pairs[Shape::kPairs];
        widen_words<C>(keys[e][part], pairs);
        products.add(of_tokens, q[part], pairs);
      }
      products.finish(of_tokens, s[e]);
    }
    if (has_next) bring_keys(cache_row);

    const int32_t count = range.end - range.begin - tile * kTile;
    float peak = -INFINITY;
#pragma unroll
    for (int e = 0; e < kGroups; ++e)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        s[e][i] = kEight * e + products.score_token() + i < count ? s[e][i] * scale : -INFINITY;
        peak = fmaxf(peak, s[e][i]);
      }
    peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, Products::kFirst));
    peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, Products::kSecond));
    peak = fmaxf(peak, largest);
    const float base = base_of(peak);
    const float factor = exp2f(largest - base);
    largest = peak;
    total *= factor;
#pragma unroll
    for (int e = 0; e < kGroups; ++e)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        s[e][i] = exp2f(s[e][i] - base);
        total += s[e][i];
      }
    if (__any_sync(0xffffffffu, factor != 1.0f)) products.scale(o, factor);
#pragma unroll
    for (int e = 0; e < kGroups; ++e) products.outputs(o, s[e], values[e]);
  }

  // Warps meet: each adds its share, weighed by its own largest score beside that of all.
  total += __shfl_xor_sync(0xffffffffu, total, Products::kFirst);
  total += __shfl_xor_sync(0xffffffffu, total, Products::kSecond);
  if ((lane & (Products::kFirst | Products::kSecond)) == 0) {
    stats[warp][products.row()][0] = largest;
    stats[warp][products.row()][1] = total;
  }
  __syncthreads();
  products.scale(o, exp2f(largest - base_of(peak_of(stats, products.row()))));
  for (int turn = 0; turn < kWarps; ++turn) {
    if (turn == warp) {
#pragma unroll
      for (int i = 0; i < Shape::kOuts; ++i) {
        int dim;
        const int row = products.place(i, &dim);
        float& to = sums[row * kDim + dim];
        to = (turn == 0 ? 0.0f : to) + o[i];
      }
    }
    __syncthreads();
  }
  store_rows<kDim>(params, item, stats, sums);
#endif
}

template <class C, int kDim, class Products>
AttentionEnd launch_products(const AttentionParams& params, int32_t at_most, cudaStream_t stream) {
  return launch_by_token(attend_pre80_kernel<C, kDim, Products>, kRows, kBlocksPerSm<kDim>,
                         32 * kWarps, params, at_most, stream);
}

}  // namespace

bool pre80_decode_supports(const AttentionParams& params) {
  return params.args.type != Scalar::kF32 && params.args.cache_type != Scalar::kBF16 &&
         has_kv_shape(params.args.cache_type, params.args.head_dim);
}

AttentionEnd launch_pre80_decode(const AttentionParams& params, int32_t at_most,
                                 cudaStream_t stream) {
  const bool quads = takes_quads(params.workspace, params.args.form == AttentionForm::kQuads);
  return with_kv_shape(params.args.cache_type, params.args.head_dim, [&](auto cache, auto dim) {
    using C = typename decltype(cache)::type;
    if constexpr (std::is_same_v<C, BFloat>) {
      return AttentionEnd::kAttended;  // pre80_decode_supports() turns it away
    } else {
      return quads ? launch_products<C, dim, QuadRows<C, dim>>(params, at_most, stream)
                   : launch_products<C, dim, RowsOf8<C, dim>>(params, at_most, stream);
    }
  });
}

}  // namespace nibble::cuda
