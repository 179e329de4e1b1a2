// y = x W' for few tokens on GPUs before sm_80: f16 weights, packed or not, on tensor cores with
// f32 sums. What it saves is writing packed weights out in 16 bits for every step, which is nine
// times their bytes.
//
// A block per row tile (16 outputs); its warps take turns along the row, a unit (64 inputs) at a
// time, the next one on its way while one is multiplied. A lane has inputs 32 j + 8 t .. + 7 of
// rows g and g + 8, as the tiled layout stores them (linear.h), and the same inputs of a token of
// every eight. Which g and t it has and what a product's eight inputs are is up to the instruction:
// any order will do for a sum, if weights and activations agree. Packed weights are (q - zero) *
// scale, rounded once, as everywhere.
#include <type_traits>

#include "device/cuda/activation.cuh"
#include "device/cuda/linear_kernels.h"
#include "device/cuda/quads.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kTokenTile = 8;
constexpr int kMostTokenTiles = kPre80Tokens / kTokenTile;

template <Kind which>
struct KindIs {
  static constexpr Kind kind = which;
};

// A lane's part of one unit.
template <Kind kind>
struct UnitOfLane {
  static constexpr int kVectors = kind == Kind::kDense ? 4 : 1;
  static constexpr int kScales = kind == Kind::kW4Group32 ? 2 : 1;
  uint4 raw[kVectors];
  uint2 scale[kScales];  // {scale, zero} of rows g, g + 8

  __device__ __forceinline__ void read(const SkinnyArgs& args, int64_t row_tile, int unit, int g,
                                       int t) {
    const auto* all_values = static_cast<const char*>(args.values);
    if constexpr (kind == Kind::kDense) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t row = min(row_tile * 16 + g + 8 * half, args.out_features - 1);
        const char* from = all_values + (row * args.in_features + unit * kUnit + t * 8) * 2;
#pragma unroll
        for (int j = 0; j < 2; ++j)
          raw[2 * half + j] = __ldg(reinterpret_cast<const uint4*>(from + 64 * j));
      }
    } else {
      raw[0] = __ldg(reinterpret_cast<const uint4*>(
          all_values + (row_tile * args.units_per_row + unit) * 512 + (4 * g + t) * 16));
      const int64_t group =
          kind == Kind::kW4 ? __umulhi(2 * static_cast<uint32_t>(unit) + 1, args.group_reciprocal)
                            : 2 * unit;
#pragma unroll
      for (int i = 0; i < kScales; ++i)
        scale[i] = __ldg(
            reinterpret_cast<const uint2*>(static_cast<const char*>(args.scale) +
                                           (row_tile * args.num_groups + group + i) * 64 + g * 8));
    }
  }

  // Inputs 32 j + 8 t .. + 7 of row g + 8 half, in pairs.
  __device__ __forceinline__ void weights(int j, int half, uint32_t (&pairs)[4]) const {
    if constexpr (kind == Kind::kDense) {
      const uint4& from = raw[2 * half + j];
      pairs[0] = from.x, pairs[1] = from.y, pairs[2] = from.z, pairs[3] = from.w;
    } else {
      const uint2& of_rows = scale[kScales == 2 ? j : 0];
      const uint32_t word = half == 0 ? of_rows.x : of_rows.y;
      const uint32_t scales = __byte_perm(word, word, 0x1010);
      const uint32_t zeros = __byte_perm(word, word, 0x3232);
      const uint32_t words[2] = {j == 0 ? raw[0].x : raw[0].z, j == 0 ? raw[0].y : raw[0].w};
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const uint32_t q = (words[p / 2] >> (4 * half + p % 2 * 8) & 0x000f000fu) | 0x64006400u;
        const __half2 value = __hmul2(
            __hsub2(reinterpret_cast<const __half2&>(q), reinterpret_cast<const __half2&>(zeros)),
            reinterpret_cast<const __half2&>(scales));
        pairs[p] = reinterpret_cast<const uint32_t&>(value);
      }
    }
  }
};

// The products of a row tile and eight tokens with m16n8k8: a step takes a pair of each lane.
struct MmaOf16 {
  static constexpr int kFromArch = 750, kBelowArch = 10000;
  static constexpr int kSums = 1;  // of four floats
  int lane = static_cast<int>(threadIdx.x) & 31;

  __device__ int row() const { return lane / 4; }    // g, and which of eight tokens
  __device__ int octet() const { return lane % 4; }  // t
  __device__ __forceinline__ void multiply(float (&c)[kSums][4], const uint32_t (&weights)[2][4],
                                           const uint32_t (&x)[4]) const {
#pragma unroll
    for (int p = 0; p < 4; p += 2) {
      const uint32_t a[4] = {weights[0][p], weights[1][p], weights[0][p + 1], weights[1][p + 1]};
      mma_16x8x16<Half>(c[0], a, x[p], x[p + 1]);
    }
  }
  __device__ __forceinline__ void store(const float (&c)[kSums][4], float (*sums)[16]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[lane % 4 * 2 + i % 2][lane / 4 + i / 2 * 8] = c[0][i];
  }
};

// The same with quad pairs: each has eight inputs of its own, two steps of four, and both halves of
// the row tile.
struct MmaOfQuads {
  static constexpr int kFromArch = 700, kBelowArch = 800;
  static constexpr int kSums = 4;
  QuadLane lane;

  __device__ int row() const { return lane.operand_row(); }
  __device__ int octet() const { return lane.pair; }
  __device__ __forceinline__ void multiply(float (&c)[kSums][4], const uint32_t (&weights)[2][4],
                                           const uint32_t (&x)[4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int p = 0; p < 4; p += 2)
        mma_8x8x4<Right::kRowsAreColumns>(c[2 * half], c[2 * half + 1], weights[half][p],
                                          weights[half][p + 1], x[p], x[p + 1]);
  }
  // Pairs meet: of every two one goes on with half of the sums.
  __device__ __forceinline__ void store(const float (&c)[kSums][4], float (*sums)[16]) const {
    const int row_half = lane.pair & 1, token_half = lane.pair >> 1;
    float of_rows[2][4];
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        of_rows[h][i] = (row_half == 0 ? c[h][i] : c[2 + h][i]) +
                        __shfl_xor_sync(0xffffffffu, row_half == 0 ? c[2 + h][i] : c[h][i], 4);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      sums[lane.column(token_half) + i % 2][8 * row_half + lane.row(i / 2)] =
          (token_half == 0 ? of_rows[0][i] : of_rows[1][i]) +
          __shfl_xor_sync(0xffffffffu, token_half == 0 ? of_rows[1][i] : of_rows[0][i], 8);
  }
};

// A block's row tile times up to eight tokens a token tile. Of the sums thread i has those numbered
// i, i + 256, ...: number 16 t + r is output r of token t.
template <class Mma, Kind kind, int kTokenTiles>
struct RowTile {
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kSums = kTokenTiles * kTokenTile * 16;
  static constexpr int kOwnSums = (kSums + kThreads - 1) / kThreads;
  using Parts = float[kWarps][kTokenTiles * kTokenTile][16];

  // row_of(t): of token t < args.num_tokens in x.
  template <class RowOf>
  static __device__ __forceinline__ void sum(const SkinnyArgs& args, int64_t row_tile, Parts& parts,
                                             RowOf row_of, float (&sums)[kOwnSums]) {
#ifdef __CUDA_ARCH__
    if (__CUDA_ARCH__ < Mma::kFromArch || __CUDA_ARCH__ >= Mma::kBelowArch) return;
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const Mma mma;
    // Tokens past the last repeat it; nobody stores their sums.
    const Half* x[kTokenTiles];
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n)
      x[n] = static_cast<const Half*>(args.x) +
             row_of(min(n * kTokenTile + mma.row(), args.num_tokens - 1)) * args.in_features +
             mma.octet() * 8;
    float c[kTokenTiles][Mma::kSums][4] = {};
    UnitOfLane<kind> next;
    if (warp < args.units_per_row) next.read(args, row_tile, warp, mma.row(), mma.octet());
#pragma unroll 1
    for (int unit = warp; unit < args.units_per_row; unit += kWarps) {
      const UnitOfLane<kind> now = next;
      if (unit + kWarps < args.units_per_row)
        next.read(args, row_tile, unit + kWarps, mma.row(), mma.octet());
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        uint32_t weights[2][4];
        now.weights(j, 0, weights[0]);
        now.weights(j, 1, weights[1]);
#pragma unroll
        for (int n = 0; n < kTokenTiles; ++n) {
          const uint4 eight = *reinterpret_cast<const uint4*>(x[n] + unit * kUnit + 32 * j);
          mma.multiply(c[n], weights, {eight.x, eight.y, eight.z, eight.w});
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) mma.store(c[n], parts[warp] + n * kTokenTile);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kOwnSums; ++i) {
      const int index = i * kThreads + static_cast<int>(threadIdx.x);
      sums[i] = 0;
      if (index >= kSums) break;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sums[i] += parts[w][index / 16][index % 16];
    }
#endif
  }

  // Calls body(t, output, i) for this thread's sums[i] that are those of a token and an output.
  template <class Body>
  static __device__ __forceinline__ void each(const SkinnyArgs& args, int64_t row_tile, Body body) {
#pragma unroll
    for (int i = 0; i < kOwnSums; ++i) {
      const int index = i * kThreads + static_cast<int>(threadIdx.x);
      const int64_t output = row_tile * 16 + index % 16;
      if (index / 16 < args.num_tokens && output < args.out_features) body(index / 16, output, i);
    }
  }
};

__device__ __forceinline__ SkinnyArgs of_expert(SkinnyArgs args, const ExpertArgs& experts,
                                                int part, int64_t expert) {
  args.values = static_cast<const char*>(args.values) + expert * experts.values_apart[part];
  args.scale = static_cast<const char*>(args.scale) + expert * experts.scales_apart[part];
  return args;
}

// A block per row tile of every product; with experts a grid of them for each pair, which then is
// the token.
template <class Mma, Kind kind, int kTokenTiles, class Experts>
__global__ void __launch_bounds__(kWarps * 32)
    few_tokens_kernel(const __grid_constant__ SkinnyGroup group, const Experts experts) {
  using Tile = RowTile<Mma, kind, kTokenTiles>;
  constexpr bool kExperts = std::is_same_v<Experts, ExpertArgs>;
  __shared__ typename Tile::Parts parts;
  int part = 0;
  while (static_cast<int>(blockIdx.x) >= group.end[part]) ++part;
  const int row_tile = static_cast<int>(blockIdx.x) - (part == 0 ? 0 : group.end[part - 1]);
  SkinnyArgs args = group.parts[part];
  const int pair = static_cast<int>(blockIdx.y);
  if constexpr (kExperts) args = of_expert(args, experts, part, experts.experts[pair]);
  const auto row_of = [&](int token) {
    if constexpr (kExperts) return pair / experts.pairs_per_row;
    return token;
  };
  float sums[Tile::kOwnSums];
  Tile::sum(args, row_tile, parts, row_of, sums);
  Tile::each(args, row_tile, [&](int token, int64_t output, int i) {
    const int64_t at = int64_t{kExperts ? pair : token} * args.out_features + output;
    if (args.out_is_float) {
      static_cast<float*>(args.out)[at] = sums[i];
    } else {
      static_cast<Half*>(args.out)[at] = Round<Half>::of(sums[i]);
    }
  });
}

// The pairs of an expert together, kTokenTiles tiles of eight at a time; with kSwiGlu silu(first) *
// second of two products. Grid (row tiles, pieces of the plan's tiles).
template <int kTokenTiles>
constexpr int kPieces = kExpertTileRows / (kTokenTiles * kTokenTile);

template <class Mma, Kind kind, int kTokenTiles, bool kSwiGlu>
__global__ void __launch_bounds__(kWarps * 32) grouped_few_kernel(const GroupedArgs grouped) {
  using Tile = RowTile<Mma, kind, kTokenTiles>;
  constexpr int kRows = kTokenTiles * kTokenTile;
  __shared__ typename Tile::Parts parts;
  const ExpertTile tile = grouped.lists.tiles[blockIdx.y / kPieces<kTokenTiles>];
  const int begin = static_cast<int>(blockIdx.y) % kPieces<kTokenTiles> * kRows;
  if (tile.expert < 0 || begin >= tile.count) return;
  const int32_t* pairs = grouped.lists.list + tile.first + begin;
  const auto row_of = [&](int token) { return pairs[token] / grouped.experts.pairs_per_row; };
  const int64_t row_tile = blockIdx.x;
  SkinnyArgs args = of_expert(grouped.parts[0], grouped.experts, 0, tile.expert);
  args.num_tokens = min(kRows, tile.count - begin);
  float sums[kSwiGlu ? 2 : 1][Tile::kOwnSums];
  Tile::sum(args, row_tile, parts, row_of, sums[0]);
  if constexpr (kSwiGlu) {
    __syncthreads();
    SkinnyArgs second = of_expert(grouped.parts[1], grouped.experts, 1, tile.expert);
    second.num_tokens = args.num_tokens;
    Tile::sum(second, row_tile, parts, row_of, sums[1]);
  }
  Tile::each(args, row_tile, [&](int token, int64_t output, int i) {
    Half result = Round<Half>::of(sums[0][i]);
    if constexpr (kSwiGlu) result = silu_mul(result, Round<Half>::of(sums[1][i]));
    static_cast<Half*>(args.out)[pairs[token] * args.out_features + output] = result;
  });
}

// Calls body(Type<Mma>, KindIs) with what serves the kind on this card.
template <class Body>
void with_mma(Kind kind, const Workspace& workspace, LinearPath path, Body body) {
  const auto with_kind = [&](auto mma) {
    switch (kind) {
      case Kind::kW4: return body(mma, KindIs<Kind::kW4>{});
      case Kind::kW4Group32: return body(mma, KindIs<Kind::kW4Group32>{});
      case Kind::kDense: return body(mma, KindIs<Kind::kDense>{});
      case Kind::kCompact: return;  // the callers turn it away
    }
  };
  if (takes_quads(workspace, path == LinearPath::kQuads)) return with_kind(Type<MmaOfQuads>{});
  with_kind(Type<MmaOf16>{});
}

}  // namespace

void launch_linear_pre80(Kind kind, const SkinnyArgs* parts, int count, const Workspace& workspace,
                         cudaStream_t stream, LinearPath path, const ExpertArgs* experts) {
  SkinnyGroup group{};
  const auto blocks = static_cast<unsigned>(group.fill(parts, count, 1));
  const int num_tokens = parts[0].num_tokens;
  with_mma(kind, workspace, path, [&](auto mma, auto is) {
    using Mma = typename decltype(mma)::type;
    constexpr Kind kKind = decltype(is)::kind;
    const auto run = [&](auto* kernel, unsigned pairs, const auto& of) {
      kernel<<<dim3(blocks, pairs), kWarps * 32, 0, stream>>>(group, of);
    };
    if (experts != nullptr)
      return run(few_tokens_kernel<Mma, kKind, 1, ExpertArgs>,
                 static_cast<unsigned>(experts->num_pairs), *experts);
    if (num_tokens <= kTokenTile)
      return run(few_tokens_kernel<Mma, kKind, 1, NoExperts>, 1, NoExperts{});
    if (num_tokens <= 2 * kTokenTile)
      return run(few_tokens_kernel<Mma, kKind, 2, NoExperts>, 1, NoExperts{});
    run(few_tokens_kernel<Mma, kKind, kMostTokenTiles, NoExperts>, 1, NoExperts{});
  });
  NB_CUDA_LAUNCHED();
}

void launch_grouped_pre80(Kind kind, const SkinnyArgs* parts, int count, const ExpertArgs& experts,
                          const ExpertPlan& plan, const Workspace& workspace, cudaStream_t stream) {
  const GroupedArgs args{{parts[0], parts[count - 1]}, experts, lists_of(plan)};
  with_mma(kind, workspace, LinearPath::kAuto, [&](auto mma, auto is) {
    using Mma = typename decltype(mma)::type;
    constexpr Kind kKind = decltype(is)::kind;
    const auto run = [&](auto tiles) {
      auto* kernel = count == 2 ? grouped_few_kernel<Mma, kKind, tiles, true>
                                : grouped_few_kernel<Mma, kKind, tiles, false>;
      const dim3 grid(static_cast<unsigned>(parts[0].row_tiles),
                      static_cast<unsigned>(plan.most_tiles * kPieces<tiles>));
      kernel<<<grid, kWarps * 32, 0, stream>>>(args);
    };
    if (plan.num_pairs <= kTokenTile / 2 * plan.num_experts) {
      run(std::integral_constant<int, 1>{});
    } else {
      run(std::integral_constant<int, kMostTokenTiles>{});
    }
  });
  NB_CUDA_LAUNCHED();
}

}  // namespace nibble::cuda
