// y = x W' for every type and layout: a warp per output and up to 8 tokens, lanes striding over the
// inputs, f32 sums in a fixed order. The path of f32 activations, of W8, of shapes that tiles do
// not fit, and of GPUs without bf16 tensor cores.
#include "device/cuda/linear_values.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kTokens = 8;

template <class X, class Out, class W, Layout layout>
__global__ void simple_kernel(const X* __restrict__ x, const Weight weight, Out* __restrict__ out,
                              int64_t num_tokens) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= weight.out_features) return;
  const int lane = threadIdx.x % 32;
  const int64_t first = int64_t{blockIdx.y} * kTokens;
  const auto count = static_cast<int>(min(int64_t{kTokens}, num_tokens - first));
  float sums[kTokens] = {};
  for (int64_t k = lane; k < weight.in_features; k += 32) {
    const float value = weight_value<W, layout>(weight, row, k);
#pragma unroll
    for (int t = 0; t < kTokens; ++t)
      if (t < count) sums[t] += value * to_float(x[(first + t) * weight.in_features + k]);
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    const float sum = warp_sum(sums[t]);
    if (t < count && lane == 0) out[(first + t) * weight.out_features + row] = Round<Out>::of(sum);
  }
}

}  // namespace

void launch_linear_simple(const LinearLaunch& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((args.weight.out_features + kWarps - 1) / kWarps),
                  static_cast<unsigned>((args.num_tokens + kTokens - 1) / kTokens));
  with_type(args.x_type, [&](auto x_type) {
    with_weight(args.weight, [&](auto w_type, auto layout) {
      using X = typename decltype(x_type)::type;
      using W = typename decltype(w_type)::type;
      const auto* x = static_cast<const X*>(args.x);
      if (args.out_type == args.x_type) {
        simple_kernel<X, X, W, decltype(layout)::value><<<grid, kWarps * 32, 0, stream>>>(
            x, args.weight, static_cast<X*>(args.out), args.num_tokens);
      } else {
        simple_kernel<X, float, W, decltype(layout)::value><<<grid, kWarps * 32, 0, stream>>>(
            x, args.weight, static_cast<float*>(args.out), args.num_tokens);
      }
    });
  });
  NB_CUDA_LAUNCHED();
}

}  // namespace nibble::cuda
