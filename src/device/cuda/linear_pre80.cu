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
#include <algorithm>
#include <type_traits>

#include "device/cuda/activation.cuh"
#include "device/cuda/launch.h"
#include "device/cuda/linear_kernels.h"
#include "device/cuda/quads.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kTokenTile = 8;
constexpr int kMostTokenTiles = 4;  // of one launch
constexpr int kPackedTokens = 64;
constexpr int kDenseTokens = 8;

enum class Form { kPacked, kPackedGroup32, kDense };
template <Form which>
struct FormIs {
  static constexpr Form form = which;
};

struct FewArgs {
  const Half* x;
  const char* values;
  const char* scale;
  void* out;
  bool out_is_float;
  int num_tokens;
  int64_t out_features;
  int64_t in_features;
  int64_t num_groups;
  int units_per_row;
  int units_per_group;        // kPacked
  uint32_t group_reciprocal;  // floor(2^31 / units_per_group)
};

// A lane's part of one unit.
template <Form form>
struct UnitOfLane {
  static constexpr int kVectors = form == Form::kDense ? 4 : 1;
  static constexpr int kScales = form == Form::kPackedGroup32 ? 2 : 1;
  uint4 raw[kVectors];
  uint2 scale[kScales];  // {scale, zero} of rows g, g + 8

  __device__ __forceinline__ void read(const FewArgs& args, int64_t row_tile, int unit, int g,
                                       int t) {
    if constexpr (form == Form::kDense) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t row = min(row_tile * 16 + g + 8 * half, args.out_features - 1);
        const char* from = args.values + (row * args.in_features + unit * kUnit + t * 8) * 2;
#pragma unroll
        for (int j = 0; j < 2; ++j)
          raw[2 * half + j] = __ldg(reinterpret_cast<const uint4*>(from + 64 * j));
      }
    } else {
      raw[0] = __ldg(reinterpret_cast<const uint4*>(
          args.values + (row_tile * args.units_per_row + unit) * 512 + (4 * g + t) * 16));
      const int64_t group = form == Form::kPacked ? __umulhi(2 * static_cast<uint32_t>(unit) + 1,
                                                             args.group_reciprocal)
                                                  : 2 * unit;
#pragma unroll
      for (int i = 0; i < kScales; ++i)
        scale[i] = __ldg(reinterpret_cast<const uint2*>(
            args.scale + (row_tile * args.num_groups + group + i) * 64 + g * 8));
    }
  }

  // Inputs 32 j + 8 t .. + 7 of row g + 8 half, in pairs.
  __device__ __forceinline__ void weights(int j, int half, uint32_t (&pairs)[4]) const {
    if constexpr (form == Form::kDense) {
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
template <class Mma, Form form, int kTokenTiles>
struct RowTile {
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kSums = kTokenTiles * kTokenTile * 16;
  static constexpr int kOwnSums = (kSums + kThreads - 1) / kThreads;
  using Parts = float[kWarps][kTokenTiles * kTokenTile][16];

  // row_of(t): of token t < args.num_tokens in x.
  template <class RowOf>
  static __device__ __forceinline__ void sum(const FewArgs& args, Parts& parts, RowOf row_of,
                                             float (&sums)[kOwnSums]) {
#ifdef __CUDA_ARCH__
    if (__CUDA_ARCH__ < Mma::kFromArch || __CUDA_ARCH__ >= Mma::kBelowArch) return;
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int64_t row_tile = blockIdx.x;
    const Mma mma;
    // Tokens past the last repeat it; nobody stores their sums.
    const Half* x[kTokenTiles];
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n)
      x[n] = args.x +
             row_of(min(n * kTokenTile + mma.row(), args.num_tokens - 1)) * args.in_features +
             mma.octet() * 8;
    float c[kTokenTiles][Mma::kSums][4] = {};
    UnitOfLane<form> next;
    if (warp < args.units_per_row) next.read(args, row_tile, warp, mma.row(), mma.octet());
#pragma unroll 1
    for (int unit = warp; unit < args.units_per_row; unit += kWarps) {
      const UnitOfLane<form> now = next;
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
  static __device__ __forceinline__ void each(const FewArgs& args, Body body) {
#pragma unroll
    for (int i = 0; i < kOwnSums; ++i) {
      const int index = i * kThreads + static_cast<int>(threadIdx.x);
      const int64_t output = int64_t{blockIdx.x} * 16 + index % 16;
      if (index / 16 < args.num_tokens && output < args.out_features) body(index / 16, output, i);
    }
  }
};

__device__ __forceinline__ void store(const FewArgs& args, int64_t token, int64_t output,
                                      float sum) {
  const int64_t at = token * args.out_features + output;
  if (args.out_is_float) {
    static_cast<float*>(args.out)[at] = sum;
  } else {
    static_cast<Half*>(args.out)[at] = Round<Half>::of(sum);
  }
}

template <class Mma, Form form, int kTokenTiles>
__global__ void __launch_bounds__(kWarps * 32) few_tokens_kernel(const FewArgs args) {
  using Tile = RowTile<Mma, form, kTokenTiles>;
  __shared__ typename Tile::Parts parts;
  float sums[Tile::kOwnSums];
  Tile::sum(
      args, parts, [](int token) { return token; }, sums);
  Tile::each(args, [&](int token, int64_t output, int i) { store(args, token, output, sums[i]); });
}

struct FewExperts {
  FewArgs parts[2];  // of expert 0
  ExpertArgs of;

  __device__ FewArgs part_of(int part, int64_t expert) const {
    FewArgs args = parts[part];
    args.values += expert * of.values_apart[part];
    args.scale += expert * of.scales_apart[part];
    return args;
  }
};

// Each pair for itself. Grid (row tiles, pairs, parts).
template <class Mma, Form form>
__global__ void __launch_bounds__(kWarps * 32) few_experts_kernel(const FewExperts experts) {
  using Tile = RowTile<Mma, form, 1>;
  __shared__ typename Tile::Parts parts;
  const int pair = static_cast<int>(blockIdx.y);
  const FewArgs args = experts.part_of(static_cast<int>(blockIdx.z), experts.of.experts[pair]);
  if (int64_t{blockIdx.x} * 16 >= args.out_features) return;
  float sums[Tile::kOwnSums];
  Tile::sum(
      args, parts, [&](int) { return pair / experts.of.pairs_per_row; }, sums);
  Tile::each(args, [&](int, int64_t output, int i) { store(args, pair, output, sums[i]); });
}

// The pairs of an expert together, kTokenTiles tiles of eight at a time; with kSwiGlu silu(first) *
// second of two products. Grid (row tiles, pieces of the plan's tiles).
template <int kTokenTiles>
constexpr int kPieces = kExpertTileRows / (kTokenTiles * kTokenTile);

template <class Mma, Form form, int kTokenTiles, bool kSwiGlu>
__global__ void __launch_bounds__(kWarps * 32)
    grouped_few_kernel(const FewExperts experts, const ExpertLists lists) {
  using Tile = RowTile<Mma, form, kTokenTiles>;
  constexpr int kRows = kTokenTiles * kTokenTile;
  __shared__ typename Tile::Parts parts;
  const ExpertTile tile = lists.tiles[blockIdx.y / kPieces<kTokenTiles>];
  const int begin = static_cast<int>(blockIdx.y) % kPieces<kTokenTiles> * kRows;
  if (tile.expert < 0 || begin >= tile.count) return;
  const int32_t* pairs = lists.list + tile.first + begin;
  const auto row_of = [&](int token) { return pairs[token] / experts.of.pairs_per_row; };
  FewArgs args = experts.part_of(0, tile.expert);
  args.num_tokens = min(kRows, tile.count - begin);
  float sums[kSwiGlu ? 2 : 1][Tile::kOwnSums];
  Tile::sum(args, parts, row_of, sums[0]);
  if constexpr (kSwiGlu) {
    __syncthreads();
    FewArgs second = experts.part_of(1, tile.expert);
    second.num_tokens = args.num_tokens;
    Tile::sum(second, parts, row_of, sums[1]);
  }
  Tile::each(args, [&](int token, int64_t output, int i) {
    Half result = Round<Half>::of(sums[0][i]);
    if constexpr (kSwiGlu) result = silu_mul(result, Round<Half>::of(sums[1][i]));
    static_cast<Half*>(args.out)[pairs[token] * args.out_features + output] = result;
  });
}

template <class Mma, Form form>
void launch_tiles(const FewArgs& args, cudaStream_t stream) {
  const auto run = [&](auto* kernel) {
    kernel<<<blocks_of(args.out_features, 16), kWarps * 32, 0, stream>>>(args);
  };
  if (args.num_tokens <= kTokenTile) {
    run(few_tokens_kernel<Mma, form, 1>);
  } else if (args.num_tokens <= 2 * kTokenTile) {
    run(few_tokens_kernel<Mma, form, 2>);
  } else {
    run(few_tokens_kernel<Mma, form, kMostTokenTiles>);
  }
  NB_CUDA_LAUNCHED();
}

// Calls body(mma, form) with what serves the form on this card.
template <class Body>
void with_mma(Form form, LinearPath path, const Workspace& workspace, Body body) {
  const auto with_form = [&](auto mma) {
    switch (form) {
      case Form::kPacked: return body(mma, FormIs<Form::kPacked>{});
      case Form::kPackedGroup32: return body(mma, FormIs<Form::kPackedGroup32>{});
      case Form::kDense: return body(mma, FormIs<Form::kDense>{});
    }
  };
  if (takes_quads(workspace, path == LinearPath::kQuads)) return with_form(Type<MmaOfQuads>{});
  with_form(Type<MmaOf16>{});
}

// The launch without its tokens; false if these kernels do not serve it.
bool describe(const Weight& weight, Scalar x_type, Scalar out_type, FewArgs* launch, Form* form) {
  const bool packed = weight.layout == Layout::kTiled;
  if ((!packed && weight.layout != Layout::kDense) || x_type != Scalar::kF16 ||
      weight.type != Scalar::kF16 || weight.in_features % kUnit != 0 || !aligned(weight.values))
    return false;
  *launch = FewArgs{};
  launch->values = static_cast<const char*>(weight.values);
  launch->scale = static_cast<const char*>(weight.scale);
  launch->out_is_float = out_type == Scalar::kF32;
  launch->out_features = weight.out_features;
  launch->in_features = weight.in_features;
  launch->num_groups = weight.num_groups;
  launch->units_per_row = static_cast<int>(weight.in_features / kUnit);
  if (packed)
    launch->units_per_group = static_cast<int>(weight.in_features / weight.num_groups / kUnit);
  if (launch->units_per_group > 0)
    launch->group_reciprocal = (1u << 31) / static_cast<uint32_t>(launch->units_per_group);
  *form = !packed                        ? Form::kDense
          : launch->units_per_group == 0 ? Form::kPackedGroup32
                                         : Form::kPacked;
  return true;
}

}  // namespace

bool launch_linear_pre80(const LinearLaunch& args, const Workspace& workspace,
                         cudaStream_t stream) {
  const Weight& weight = args.weight;
  FewArgs launch;
  Form form;
  if (!describe(weight, args.x_type, args.out_type, &launch, &form) || !aligned(args.x) ||
      args.num_tokens > (form == Form::kDense ? kDenseTokens : kPackedTokens))
    return false;
  for (int64_t begin = 0; begin < args.num_tokens; begin += kMostTokenTiles * kTokenTile) {
    const int64_t rest = args.num_tokens - begin;
    launch.num_tokens = static_cast<int>(std::min<int64_t>(rest, kMostTokenTiles * kTokenTile));
    launch.x = static_cast<const Half*>(args.x) + begin * weight.in_features;
    launch.out = static_cast<char*>(args.out) +
                 begin * weight.out_features * static_cast<int64_t>(scalar_size(args.out_type));
    with_mma(form, args.path, workspace, [&](auto mma, auto is) {
      launch_tiles<typename decltype(mma)::type, decltype(is)::form>(launch, stream);
    });
  }
  return true;
}

namespace {

// Weights that lie at equal distances; false if these kernels do not serve them.
bool describe_experts(const ExpertsLaunch& args, FewExperts* launch, Form* form) {
  *launch = FewExperts{};
  launch->of = {args.experts, args.num_pairs, args.pairs_per_row, {}, {}};
  for (int i = 0; i < args.num_parts; ++i) {
    const ExpertWeights& part = args.parts[i];
    Form own;
    if (!describe(part.first, args.x_type, args.x_type, &launch->parts[i], &own) ||
        (i > 0 && own != *form) || part.values_apart % 16 != 0 || part.scales_apart % 8 != 0)
      return false;
    *form = own;
    launch->parts[i].x = static_cast<const Half*>(args.x);
    launch->parts[i].out = part.out;
    launch->parts[i].num_tokens = 1;
    launch->of.values_apart[i] = part.values_apart;
    launch->of.scales_apart[i] = part.scales_apart;
  }
  return true;
}

}  // namespace

bool launch_experts_pre80(const ExpertsLaunch& args, const Workspace& workspace,
                          cudaStream_t stream, bool dry) {
  FewExperts launch;
  Form form = Form::kDense;
  if (!describe_experts(args, &launch, &form)) return false;
  if (dry) return true;
  const int64_t most_outputs = std::max(launch.parts[0].out_features, launch.parts[1].out_features);
  const dim3 grid(blocks_of(most_outputs, 16), static_cast<unsigned>(args.num_pairs),
                  static_cast<unsigned>(args.num_parts));
  with_mma(form, LinearPath::kAuto, workspace, [&](auto mma, auto is) {
    few_experts_kernel<typename decltype(mma)::type, decltype(is)::form>
        <<<grid, kWarps * 32, 0, stream>>>(launch);
  });
  NB_CUDA_LAUNCHED();
  return true;
}

bool launch_grouped_pre80(const ExpertsLaunch& args, const ExpertPlan& plan,
                          const Workspace& workspace, cudaStream_t stream) {
  FewExperts launch;
  Form form = Form::kDense;
  if (!describe_experts(args, &launch, &form)) return false;
  with_mma(form, LinearPath::kAuto, workspace, [&](auto mma, auto is) {
    using Mma = typename decltype(mma)::type;
    constexpr Form kForm = decltype(is)::form;
    const auto run = [&](auto tiles) {
      auto* kernel = args.num_parts == 2 ? grouped_few_kernel<Mma, kForm, tiles, true>
                                         : grouped_few_kernel<Mma, kForm, tiles, false>;
      const dim3 grid(blocks_of(launch.parts[0].out_features, 16),
                      static_cast<unsigned>(plan.most_tiles * kPieces<tiles>));
      kernel<<<grid, kWarps * 32, 0, stream>>>(launch, lists_of(plan));
    };
    if (plan.num_pairs <= kTokenTile / 2 * plan.num_experts) {
      run(std::integral_constant<int, 1>{});
    } else {
      run(std::integral_constant<int, kMostTokenTiles>{});
    }
  });
  NB_CUDA_LAUNCHED();
  return true;
}

}  // namespace nibble::cuda
