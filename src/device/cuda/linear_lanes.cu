// y = x W' for few tokens on GPUs whose tensor cores are of no use for that (before sm_80): f16
// weights, packed or not, multiplied in f32 by ordinary lanes. Bound by the weight's bytes for one
// to four tokens, and then by instructions; what it saves is writing packed weights out in 16 bits
// for every step, which is nine times their bytes.
//
// A block per row tile (16 outputs); its warps take turns along the row, a unit (64 inputs) at a
// time, the next one on its way while one is multiplied. Lane 4 g + t has inputs 32 j + 8 t .. + 7
// of rows g and g + 8, as the tiled layout stores them (linear.h). Packed weights are
// (q - zero) * scale, rounded once, as everywhere.
#include "device/cuda/launch.h"
#include "device/cuda/linear_kernels.h"
#include "device/cuda/scalar.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kTokens = 8;  // of one launch
constexpr int kPackedTokens = 32;

enum class Form { kPacked, kPackedGroup32, kDense };

struct LanesArgs {
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
  int units_per_group;  // kPacked
};

// A lane's part of one unit.
template <Form form>
struct UnitOfLane {
  static constexpr int kVectors = form == Form::kDense ? 4 : 1;
  static constexpr int kScales = form == Form::kPackedGroup32 ? 2 : 1;
  uint4 raw[kVectors];
  uint2 scale[kScales];  // {scale, zero} of rows g, g + 8

  __device__ __forceinline__ void read(const LanesArgs& args, int64_t row_tile, int unit,
                                       int lane) {
    if constexpr (form == Form::kDense) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t row = min(row_tile * 16 + lane / 4 + 8 * half, args.out_features - 1);
        const char* from = args.values + (row * args.in_features + unit * kUnit + lane % 4 * 8) * 2;
#pragma unroll
        for (int j = 0; j < 2; ++j)
          raw[2 * half + j] = __ldg(reinterpret_cast<const uint4*>(from + 64 * j));
      }
    } else {
      raw[0] = __ldg(reinterpret_cast<const uint4*>(
          args.values + (row_tile * args.units_per_row + unit) * 512 + lane * 16));
      const int64_t group = form == Form::kPacked ? unit / args.units_per_group : 2 * unit;
#pragma unroll
      for (int i = 0; i < kScales; ++i)
        scale[i] = __ldg(reinterpret_cast<const uint2*>(
            args.scale + (row_tile * args.num_groups + group + i) * 64 + lane / 4 * 8));
    }
  }

  // Inputs 32 j + 8 t .. + 7 of row g + 8 half.
  __device__ __forceinline__ void weights(int j, int half, float (&to)[8]) const {
    __half2 pairs[4];
    if constexpr (form == Form::kDense) {
      const uint4& from = raw[2 * half + j];
      const uint32_t words[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
      for (int p = 0; p < 4; ++p) pairs[p] = reinterpret_cast<const __half2&>(words[p]);
    } else {
      const uint2& of_rows = scale[kScales == 2 ? j : 0];
      const uint32_t word = half == 0 ? of_rows.x : of_rows.y;
      const uint32_t scales = __byte_perm(word, word, 0x1010);
      const uint32_t zeros = __byte_perm(word, word, 0x3232);
      const uint32_t words[2] = {j == 0 ? raw[0].x : raw[0].z, j == 0 ? raw[0].y : raw[0].w};
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const uint32_t q = (words[p / 2] >> (4 * half + p % 2 * 8) & 0x000f000fu) | 0x64006400u;
        pairs[p] = __hmul2(
            __hsub2(reinterpret_cast<const __half2&>(q), reinterpret_cast<const __half2&>(zeros)),
            reinterpret_cast<const __half2&>(scales));
      }
    }
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      const float2 pair = __half22float2(pairs[p]);
      to[2 * p] = pair.x;
      to[2 * p + 1] = pair.y;
    }
  }
};

template <Form form, int kCount>
__global__ void __launch_bounds__(kWarps * 32) lanes_kernel(const LanesArgs args) {
  __shared__ float parts[kWarps][2][kCount][8];  // [warp][row half][token][g]
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row_tile = blockIdx.x;
  float sums[2][kCount] = {};
  UnitOfLane<form> next;
  if (warp < args.units_per_row) next.read(args, row_tile, warp, lane);
#pragma unroll 1
  for (int unit = warp; unit < args.units_per_row; unit += kWarps) {
    const UnitOfLane<form> now = next;
    if (unit + kWarps < args.units_per_row) next.read(args, row_tile, unit + kWarps, lane);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float weights[2][8];
      now.weights(j, 0, weights[0]);
      now.weights(j, 1, weights[1]);
      const Half* x = args.x + unit * kUnit + 32 * j + lane % 4 * 8;
#pragma unroll
      for (int token = 0; token < kCount; ++token) {
        // Tokens past the last repeat it; nobody stores their sums.
        const uint4 vector =
            *reinterpret_cast<const uint4*>(x + min(token, args.num_tokens - 1) * args.in_features);
        const uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
        for (int p = 0; p < 4; ++p) {
          const float2 pair = __half22float2(reinterpret_cast<const __half2&>(words[p]));
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            sums[half][token] += weights[half][2 * p] * pair.x;
            sums[half][token] += weights[half][2 * p + 1] * pair.y;
          }
        }
      }
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int token = 0; token < kCount; ++token) {
      float& sum = sums[half][token];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if (lane % 4 == 0) parts[warp][half][token][lane / 4] = sum;
    }
  __syncthreads();
  const int half = static_cast<int>(threadIdx.x) / 8 % 2;
  const int token = static_cast<int>(threadIdx.x) / 16;
  const int64_t row = row_tile * 16 + threadIdx.x % 16;
  if (token >= min(kCount, args.num_tokens) || row >= args.out_features) return;
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += parts[w][half][token][threadIdx.x % 8];
  const int64_t at = token * args.out_features + row;
  if (args.out_is_float) {
    static_cast<float*>(args.out)[at] = sum;
  } else {
    static_cast<Half*>(args.out)[at] = Round<Half>::of(sum);
  }
}

template <Form form>
void launch_form(const LanesArgs& args, cudaStream_t stream) {
  const auto run = [&](auto* kernel) {
    kernel<<<blocks_of(args.out_features, 16), kWarps * 32, 0, stream>>>(args);
  };
  if (args.num_tokens == 1) {
    run(lanes_kernel<form, 1>);
  } else if (args.num_tokens == 2) {
    run(lanes_kernel<form, 2>);
  } else if (args.num_tokens <= 4) {
    run(lanes_kernel<form, 4>);
  } else {
    run(lanes_kernel<form, kTokens>);
  }
  NB_CUDA_LAUNCHED();
}

}  // namespace

bool launch_linear_lanes(const LinearLaunch& args, cudaStream_t stream) {
  const Weight& weight = args.weight;
  const bool packed = weight.layout == Layout::kTiled;
  if ((!packed && weight.layout != Layout::kDense) || args.x_type != Scalar::kF16 ||
      weight.type != Scalar::kF16 || args.num_tokens > (packed ? kPackedTokens : kTokens) ||
      weight.in_features % kUnit != 0 || !aligned(args.x) || !aligned(weight.values))
    return false;
  LanesArgs launch{};
  launch.values = static_cast<const char*>(weight.values);
  launch.scale = static_cast<const char*>(weight.scale);
  launch.out_is_float = args.out_type == Scalar::kF32;
  launch.out_features = weight.out_features;
  launch.in_features = weight.in_features;
  launch.num_groups = weight.num_groups;
  launch.units_per_row = static_cast<int>(weight.in_features / kUnit);
  if (packed)
    launch.units_per_group = static_cast<int>(weight.in_features / weight.num_groups / kUnit);
  for (int64_t begin = 0; begin < args.num_tokens; begin += kTokens) {
    const int64_t rest = args.num_tokens - begin;
    launch.num_tokens = static_cast<int>(rest < kTokens ? rest : kTokens);
    launch.x = static_cast<const Half*>(args.x) + begin * weight.in_features;
    launch.out = static_cast<char*>(args.out) +
                 begin * weight.out_features * static_cast<int64_t>(scalar_size(args.out_type));
    if (!packed) {
      launch_form<Form::kDense>(launch, stream);
    } else if (launch.units_per_group == 0) {
      launch_form<Form::kPackedGroup32>(launch, stream);
    } else {
      launch_form<Form::kPacked>(launch, stream);
    }
  }
  return true;
}

}  // namespace nibble::cuda
