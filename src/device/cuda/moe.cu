// Expert routing: a warp per token holds its logits in registers and picks the largest top_k times.
#include "device/cuda/moe.h"

#include "device/cuda/scalar.cuh"

namespace nibble::cuda {
namespace {

constexpr int kMostPerLane = 32;  // num_experts / 32
constexpr int kWarps = 4;

template <class T>
__global__ void route_kernel(MoeRouteLaunch route) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int token = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  if (token >= route.num_tokens) return;
  const T* logits =
      static_cast<const T*>(route.logits) + static_cast<int64_t>(token) * route.num_experts;
  float held[kMostPerLane];
#pragma unroll
  for (int i = 0; i < kMostPerLane; ++i) {
    const int expert = lane + 32 * i;
    held[i] = expert < route.num_experts ? to_float(logits[expert]) : -INFINITY;
  }
  float first = 0;
  float own = 0;  // lane i keeps choice i
  int own_expert = 0;
  for (int choice = 0; choice < route.top_k; ++choice) {
    float best = -INFINITY;
    int index = route.num_experts;
#pragma unroll
    for (int i = 0; i < kMostPerLane; ++i)
      if (held[i] > best) best = held[i], index = lane + 32 * i;
    for (int offset = 16; offset > 0; offset >>= 1) {
      const float other = __shfl_xor_sync(0xffffffffu, best, offset);
      const int other_index = __shfl_xor_sync(0xffffffffu, index, offset);
      if (other > best || (other == best && other_index < index)) best = other, index = other_index;
    }
    if (choice == 0) first = best;
    if (lane == choice) own = expf(best - first), own_expert = index;
#pragma unroll
    for (int i = 0; i < kMostPerLane; ++i)
      if (lane + 32 * i == index) held[i] = -INFINITY;
  }
  // The softmax denominator cancels when the chosen weights are renormalised.
  const float total = warp_sum(own);
  if (lane < route.top_k) {
    route.experts[static_cast<int64_t>(token) * route.top_k + lane] = own_expert;
    route.weights[static_cast<int64_t>(token) * route.top_k + lane] = own / total;
  }
}

template <class T>
__global__ void expert_sum_kernel(ExpertSumLaunch args) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= args.hidden) return;
  float sum = *args.weight * to_float(static_cast<const T*>(args.y)[i]);
  if (!args.first) sum += args.sum[i];
  if (args.last) {
    static_cast<T*>(args.out)[i] = Round<T>::of(sum);
  } else {
    args.sum[i] = sum;
  }
}

}  // namespace

void launch_expert_sum(const ExpertSumLaunch& args, cudaStream_t stream) {
  with_type(args.type, [&](auto type) {
    using T = typename decltype(type)::type;
    expert_sum_kernel<T>
        <<<static_cast<unsigned>((args.hidden + 255) / 256), 256, 0, stream>>>(args);
    NB_CUDA_LAUNCHED();
  });
}

void launch_moe_route(const MoeRouteLaunch& route, cudaStream_t stream) {
  if (route.num_tokens == 0) return;
  const auto blocks = static_cast<unsigned>((route.num_tokens + kWarps - 1) / kWarps);
  with_type(route.type, [&](auto type) {
    using T = typename decltype(type)::type;
    route_kernel<T><<<blocks, 32 * kWarps, 0, stream>>>(route);
    NB_CUDA_LAUNCHED();
  });
}

}  // namespace nibble::cuda
