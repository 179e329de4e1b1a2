// Attention without tensor cores over a bf16 cache, where no other kernel takes the types: f16
// queries, and GPUs before sm_80. It reads the cache at a pace that f32 arithmetic allows; a
// prompt's tokens take the same kernel, each for itself.
//
// A block handles one token, up to 8 query heads of one kv head, and one part ("split") of the
// context. Each of its four warps takes turns with tiles of 32 cached tokens and has its own online
// softmax.
// Scores: a lane has 4 tokens and a quarter of their dims, so that a value of q, which lies in
// shared memory, serves four products per load; the four lanes of a token then add up, each for one
// of the 4 tokens, and have a lane's token each in the end: lane 4 g + t that of number 8 t + g.
// Output: a lane has its dims of all heads; weights pass through shared memory.
#include "device/cuda/attention_token.cuh"
#include "device/cuda/cache_types.cuh"

namespace nibble::cuda {
namespace {

constexpr int kTile = 32;  // cached tokens per warp and step
constexpr int kWarps = 4;
constexpr int kMostHeads = 8;  // of a block
constexpr int kAtOnce = 4;     // values on their way while as many are multiplied
template <int kHeads>
constexpr int kBlocksPerSm = kHeads <= 6 ? 3 : 2;

// The words' elements as floats.
template <int kWords>
__device__ __forceinline__ void widen(const uint32_t (&words)[kWords], float (&to)[kWords * 2]) {
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
    const float2 pair = unpack_pair<BFloat>(words[w]);
    to[2 * w] = pair.x, to[2 * w + 1] = pair.y;
  }
}

template <int kDim>
struct LanesShape {
  static constexpr int kRowBytes = kDim * 2;
  static constexpr int kPerChunk = 8;             // dims of 16 bytes
  static constexpr int kChunks = kRowBytes / 64;  // of a lane
  static constexpr int kLaneDims = kDim / 32;     // of a value row
  // Where q has a dim: a chunk's fourths of the four lanes side by side.
  static __device__ int place_of(int dim) {
    const int chunk = dim / kPerChunk;
    const int fourth = dim % kPerChunk / 4;
    return ((chunk / 4 * (kPerChunk / 4) + fourth) * 4 + chunk % 4) * 4 + dim % 4;
  }
};

// Grid (tokens, num_kv_heads * parts of a group, splits), 128 threads.
template <int kDim, int kHeads>
__global__ void __launch_bounds__(32 * kWarps, kBlocksPerSm<kHeads>)
    attend_lanes_kernel(AttentionParams params, Tiling tiling) {
  using Shape = LanesShape<kDim>;
  constexpr int kLaneDims = Shape::kLaneDims;
  constexpr int kLaneBytes = kLaneDims * 2;
  constexpr int kValueWords = kLaneBytes / 4;
  __shared__ __align__(16) float queries[kHeads * kDim];  // then the sums of all warps
  __shared__ __align__(16) float weights[kWarps][kTile][kMostHeads];
  __shared__ WarpStats<kWarps, kHeads> stats;
  TokenItem item;
  if (!find_token_item<kHeads, kDim>(params, tiling, &item)) return;
  const SplitRange range = item.range;
  const AttentionLaunch& args = params.args;
  const DeviceBatch& batch = params.batch;

  const int tid = static_cast<int>(threadIdx.x);
  const int lane = tid & 31;
  const int warp = tid / 32;
  for (int i = tid; i < kHeads * kDim; i += 32 * kWarps) {
    float value = 0;  // of heads that there are not
    if (i / kDim < item.num_rows)
      value = args.type == Scalar::kBF16
                  ? to_float(static_cast<const BFloat*>(args.q)[item.first_query + i])
                  : to_float(static_cast<const Half*>(args.q)[item.first_query + i]);
    queries[i / kDim * kDim + Shape::place_of(i % kDim)] = value * args.softmax_scale * kLog2E;
  }
  __syncthreads();

  const int32_t num_tiles = (range.end - range.begin + kTile - 1) / kTile;
  const int64_t row_bytes = int64_t{args.num_kv_heads} * Shape::kRowBytes;
  const auto* keys = static_cast<const uint8_t*>(args.k_cache) + item.kv_head * Shape::kRowBytes;
  const auto* values = static_cast<const uint8_t*>(args.v_cache) + item.kv_head * Shape::kRowBytes +
                       lane * kLaneBytes;

  float o[kHeads][kLaneDims] = {};
  float largest[kHeads];
  float total[kHeads];  // of this lane's tokens
#pragma unroll
  for (int r = 0; r < kHeads; ++r) largest[r] = -INFINITY, total[r] = 0;

  for (int32_t tile = warp; tile < num_tiles; tile += kWarps) {
    const int32_t begin = range.begin + tile * kTile;
    const int32_t count = min(kTile, range.end - begin);
    // Tokens past the end repeat the last one, with a weight of zero.
    const int32_t position = begin + min(lane, count - 1);
    const int32_t cache_row = cache_row_at(batch, item.table, position);
    const uint8_t* key[4];
    uint32_t keys_ahead[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      key[i] =
          keys + __shfl_sync(0xffffffffu, cache_row, 8 * i + lane / 4) * row_bytes + lane % 4 * 16;
      load_bytes<16>(key[i], keys_ahead[i]);
    }

    float s[4][kHeads] = {};
#pragma unroll 1
    for (int chunk = 0; chunk < Shape::kChunks; ++chunk) {
      uint32_t now[4][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int w = 0; w < 4; ++w) now[i][w] = keys_ahead[i][w];
        if (chunk + 1 < Shape::kChunks) load_bytes<16>(key[i] + (chunk + 1) * 64, keys_ahead[i]);
      }
      const float* query = queries + (chunk * Shape::kPerChunk + lane % 4) * 4;
#pragma unroll
      for (int fourth = 0; fourth < Shape::kPerChunk / 4; ++fourth) {
        constexpr int kWords = 2;  // of four dims
        float k[4][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          uint32_t words[kWords];
#pragma unroll
          for (int w = 0; w < kWords; ++w) words[w] = now[i][fourth * kWords + w];
          widen(words, k[i]);
        }
#pragma unroll
        for (int r = 0; r < kHeads; ++r) {
          const float4 q = *reinterpret_cast<const float4*>(query + r * kDim + fourth * 16);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            s[i][r] += k[i][0] * q.x;
            s[i][r] += k[i][1] * q.y;
            s[i][r] += k[i][2] * q.z;
            s[i][r] += k[i][3] * q.w;
          }
        }
      }
    }

    const bool upper = (lane & 2) != 0, odd = (lane & 1) != 0;
    const bool present = 8 * (lane % 4) + lane / 4 < count;
    float weight[kMostHeads] = {};
#pragma unroll
    for (int r = 0; r < kHeads; ++r) {
      float two[2];
#pragma unroll
      for (int i = 0; i < 2; ++i)
        two[i] = (upper ? s[i + 2][r] : s[i][r]) +
                 __shfl_xor_sync(0xffffffffu, upper ? s[i][r] : s[i + 2][r], 2);
      float score =
          (odd ? two[1] : two[0]) + __shfl_xor_sync(0xffffffffu, odd ? two[0] : two[1], 1);
      if (!present) score = -INFINITY;
      float peak = score;
#pragma unroll
      for (int offset = 16; offset > 0; offset /= 2)
        peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, offset));
      peak = fmaxf(peak, largest[r]);
      const float base = base_of(peak);
      const float factor = exp2f(largest[r] - base);
      weight[r] = exp2f(score - base);
      largest[r] = peak;
      total[r] = total[r] * factor + weight[r];
      if (factor != 1.0f) {  // the same in all lanes
#pragma unroll
        for (int d = 0; d < kLaneDims; ++d) o[r][d] *= factor;
      }
    }
    auto* own = reinterpret_cast<float4*>(weights[warp][8 * (lane % 4) + lane / 4]);
    own[0] = make_float4(weight[0], weight[1], weight[2], weight[3]);
    own[1] = make_float4(weight[4], weight[5], weight[6], weight[7]);
    __syncwarp();

    uint32_t values_ahead[kAtOnce][kValueWords];
    const auto fetch = [&](int32_t first) {
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
        load_bytes<kLaneBytes>(values + __shfl_sync(0xffffffffu, cache_row, first + j) * row_bytes,
                               values_ahead[j]);
    };
    fetch(0);
#pragma unroll 1
    for (int32_t first = 0; first < count; first += kAtOnce) {
      uint32_t now[kAtOnce][kValueWords];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
#pragma unroll
        for (int w = 0; w < kValueWords; ++w) now[j][w] = values_ahead[j][w];
      if (first + kAtOnce < count) fetch(first + kAtOnce);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        float v[kLaneDims];
        widen(now[j], v);
        const auto* of_token = reinterpret_cast<const float4*>(weights[warp][first + j]);
        const float4 low = of_token[0], high = of_token[1];
        const float p[kMostHeads] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int r = 0; r < kHeads; ++r)
#pragma unroll
          for (int d = 0; d < kLaneDims; ++d) o[r][d] += p[r] * v[d];
      }
    }
    __syncwarp();  // before the weights are replaced
  }

  // Warps meet: each adds its share, weighed by its own largest score beside that of all.
#pragma unroll
  for (int r = 0; r < kHeads; ++r) {
    const float sum = warp_sum(total[r]);
    if (lane == 0) stats[warp][r][0] = largest[r], stats[warp][r][1] = sum;
  }
  __syncthreads();
  for (int turn = 0; turn < kWarps; ++turn) {
    if (turn == warp) {
#pragma unroll
      for (int r = 0; r < kHeads; ++r) {
        const float share = exp2f(largest[r] - base_of(peak_of(stats, r)));
#pragma unroll
        for (int d = 0; d < kLaneDims; ++d) {
          float& to = queries[r * kDim + lane * kLaneDims + d];
          to = (turn == 0 ? 0.0f : to) + share * o[r][d];
        }
      }
    }
    __syncthreads();
  }
  store_rows<kDim>(params, item, stats, queries);
}

template <int kDim, int kHeads>
AttentionEnd launch_shape(const AttentionParams& params, int32_t at_most, cudaStream_t stream) {
  return launch_by_token(attend_lanes_kernel<kDim, kHeads>, kHeads, kBlocksPerSm<kHeads>,
                         32 * kWarps, params, at_most, stream);
}

template <int kDim>
AttentionEnd launch_heads(const AttentionParams& params, int32_t at_most, cudaStream_t stream) {
  if (params.group <= 6 || (params.group > 8 && params.group <= 12))
    return launch_shape<kDim, 6>(params, at_most, stream);
  return launch_shape<kDim, 8>(params, at_most, stream);
}

}  // namespace

bool lanes_support(const AttentionParams& params) {
  return params.args.type != Scalar::kF32 && params.args.cache_type == Scalar::kBF16 &&
         has_kv_shape(Scalar::kBF16, params.args.head_dim);
}

AttentionEnd launch_lanes(const AttentionParams& params, int32_t at_most, cudaStream_t stream) {
  return with_kv_shape(Scalar::kBF16, params.args.head_dim,
                       [&](auto, auto dim) { return launch_heads<dim>(params, at_most, stream); });
}

}  // namespace nibble::cuda
