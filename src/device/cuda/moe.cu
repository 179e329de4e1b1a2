// Expert routing, and sums over experts. Routing: a warp per token holds its logits in registers
// and picks the largest top_k times.
#include "device/cuda/moe.h"

#include "device/cuda/overlap.cuh"
#include "device/cuda/scalar.cuh"

namespace nibble::cuda {
namespace {

constexpr int kMostPerLane = 32;  // num_experts / 32
constexpr int kWarps = 4;

template <class T>
__global__ void route_kernel(MoeRouteLaunch route) {
  let_next_kernel_start();
  wait_for_previous_kernel();
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
    // Among NaN none is the largest: any expert will do, the weights are NaN.
    route.experts[static_cast<int64_t>(token) * route.top_k + lane] =
        min(own_expert, route.num_experts - 1);
    route.weights[static_cast<int64_t>(token) * route.top_k + lane] = own / total;
  }
}

template <class T>
__global__ void expert_join_kernel(ExpertJoinLaunch args) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int64_t token = blockIdx.y;
  if (i >= args.hidden) return;
  const T* y = static_cast<const T*>(args.y) + token * args.top_k * args.hidden;
  float sum = 0;
  for (int k = 0; k < args.top_k; ++k)
    sum += args.weights[token * args.top_k + k] * to_float(y[int64_t{k} * args.hidden + i]);
  static_cast<T*>(args.out)[token * args.hidden + i] = Round<T>::of(sum);
}

template <class T>
__global__ void expert_add_kernel(ExpertAddLaunch args) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int64_t row = blockIdx.y;
  if (i >= args.hidden) return;
  args.sums[int64_t{args.rows[row]} * args.hidden + i] +=
      args.weights[row] * to_float(static_cast<const T*>(args.y)[row * args.hidden + i]);
}

template <class T>
__global__ void round_kernel(const float* from, T* to, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) to[i] = Round<T>::of(from[i]);
}

}  // namespace

void launch_expert_join(const ExpertJoinLaunch& args, const Workspace& workspace,
                        cudaStream_t stream) {
  if (args.num_tokens == 0) return;
  with_type(args.type, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_overlapped(expert_join_kernel<T>,
                      dim3(static_cast<unsigned>((args.hidden + 255) / 256),
                           static_cast<unsigned>(args.num_tokens)),
                      256, 0, stream, workspace.compute_capability, args);
  });
}

void launch_expert_add(const ExpertAddLaunch& args, cudaStream_t stream) {
  if (args.num_rows == 0) return;
  with_type(args.type, [&](auto type) {
    using T = typename decltype(type)::type;
    expert_add_kernel<T><<<dim3(static_cast<unsigned>((args.hidden + 255) / 256),
                                static_cast<unsigned>(args.num_rows)),
                           256, 0, stream>>>(args);
    NB_CUDA_LAUNCHED();
  });
}

void launch_round(const float* from, void* to, Scalar type, int64_t count, cudaStream_t stream) {
  if (count == 0) return;
  with_type(type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    round_kernel<<<static_cast<unsigned>((count + 255) / 256), 256, 0, stream>>>(
        from, static_cast<T*>(to), count);
    NB_CUDA_LAUNCHED();
  });
}

void launch_moe_route(const MoeRouteLaunch& route, const Workspace& workspace,
                      cudaStream_t stream) {
  if (route.num_tokens == 0) return;
  const auto blocks = static_cast<unsigned>((route.num_tokens + kWarps - 1) / kWarps);
  with_type(route.type, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_overlapped(route_kernel<T>, blocks, 32 * kWarps, 0, stream, workspace.compute_capability,
                      route);
  });
}

}  // namespace nibble::cuda
