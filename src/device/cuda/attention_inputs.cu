// From projections to the softmax's inputs in one launch: query and gate parted, heads normed,
// rotated, keys and values written to the cache. A warp holds one head of one token; each step
// rounds where the separate operations store, so the values are theirs bit for bit.
#include "device/cuda/attention.h"
#include "device/cuda/overlap.cuh"
#include "device/cuda/ragged.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMostPerLane = 8;  // head_dim / 32

__device__ inline float load(const void* values, Scalar type, int64_t at) {
  switch (type) {
    case Scalar::kF32: return static_cast<const float*>(values)[at];
    case Scalar::kF16: return to_float(static_cast<const Half*>(values)[at]);
    default: return to_float(static_cast<const BFloat*>(values)[at]);
  }
}

// Norm and rotation of one head in registers; the rotation's partner comes through `shared`.
template <class T>
__device__ inline void norm_and_rotate(const AttentionInputsLaunch& args, float (&x)[kMostPerLane],
                                       const void* weight, int64_t token, float* shared) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  if (weight != nullptr) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kMostPerLane; ++i) sum += x[i] * x[i];
    const float scale = rsqrtf(warp_sum(sum) / static_cast<float>(args.head_dim) + args.norm_eps);
#pragma unroll
    for (int i = 0; i < kMostPerLane; ++i)
      if (lane + 32 * i < args.head_dim)
        x[i] = rounded<T>(x[i] * scale *
                          (load(weight, args.norm_type, lane + 32 * i) + args.norm_weight_offset));
  }
  const RopeLaunch& rope = args.rope;
  const int half = rope.half;
#pragma unroll
  for (int i = 0; i < kMostPerLane; ++i)
    if (lane + 32 * i < 2 * half) shared[lane + 32 * i] = x[i];
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kMostPerLane; ++i) {
    const int dim = lane + 32 * i;
    if (dim >= 2 * half) continue;
    const int frequency = dim < half ? dim : dim - half;
    int axis = 0;
    if (frequency % 3 == 1 && frequency < 3 * rope.mrope_section[1]) axis = 1;
    if (frequency % 3 == 2 && frequency < 3 * rope.mrope_section[2]) axis = 2;
    const float angle = static_cast<float>(rope.positions[axis * rope.num_tokens + token]) *
                        rope.inv_freq[frequency];
    const float c = rounded<T>(cosf(angle) * rope.attention_scaling);
    const float s = rounded<T>(sinf(angle) * rope.attention_scaling);
    const float low = shared[frequency];
    const float high = shared[frequency + half];
    x[i] = dim < half ? rounded<T>(rounded<T>(low * c) - rounded<T>(high * s))
                      : rounded<T>(rounded<T>(high * c) + rounded<T>(low * s));
  }
}

// Grid (num_tokens, heads / kWarps): query heads, then key heads, then value heads.
template <class T, class C>
__global__ void __launch_bounds__(32 * kWarps)
    inputs_kernel(const __grid_constant__ AttentionInputsLaunch args, DeviceBatch batch) {
  __shared__ float heads[kWarps][2 * RopeLaunch::kMaxFrequencies];
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int64_t token = blockIdx.x;
  const int dim = args.head_dim;
  int head = static_cast<int>(blockIdx.y) * kWarps + warp;
  float x[kMostPerLane] = {};
  if (head < args.num_heads) {
    const bool gated = args.q_and_gate != nullptr;
    const int64_t row = (token * args.num_heads + head) * dim;
    const T* from = gated ? static_cast<const T*>(args.q_and_gate) + 2 * row
                          : static_cast<const T*>(args.q) + row;
#pragma unroll
    for (int i = 0; i < kMostPerLane; ++i) {
      const int at = lane + 32 * i;
      if (at >= dim) continue;
      x[i] = to_float(from[at]);
      if (gated) static_cast<T*>(args.gate)[row + at] = from[dim + at];
    }
    norm_and_rotate<T>(args, x, args.q_norm, token, heads[warp]);
#pragma unroll
    for (int i = 0; i < kMostPerLane; ++i)
      if (lane + 32 * i < dim) static_cast<T*>(args.q)[row + lane + 32 * i] = Round<T>::of(x[i]);
    return;
  }
  head -= args.num_heads;
  const bool is_value = head >= args.num_kv_heads;
  if (is_value) head -= args.num_kv_heads;
  if (head >= args.num_kv_heads) return;
  const TilePlace place =
      find_tile({batch.query_start, batch.num_seqs, 1}, static_cast<int32_t>(token));
  if (place.seq < 0) return;  // a padded row
  const T* from =
      static_cast<const T*>(is_value ? args.v : args.k) + (token * args.num_kv_heads + head) * dim;
#pragma unroll
  for (int i = 0; i < kMostPerLane; ++i)
    if (lane + 32 * i < dim) x[i] = to_float(from[lane + 32 * i]);
  if (!is_value) norm_and_rotate<T>(args, x, args.k_norm, token, heads[warp]);
  const int32_t position = batch.context_len[place.seq] + place.tile;
  const int32_t block = batch.block_table[static_cast<int64_t>(place.seq) * batch.max_blocks +
                                          position / batch.block_size];
  C* to = static_cast<C*>(is_value ? args.v_cache : args.k_cache) +
          ((static_cast<int64_t>(block) * batch.block_size + position % batch.block_size) *
               args.num_kv_heads +
           head) *
              dim;
#pragma unroll
  for (int i = 0; i < kMostPerLane; ++i)
    if (lane + 32 * i < dim) to[lane + 32 * i] = Round<C>::of(x[i]);
}

}  // namespace

void launch_attention_inputs(const AttentionInputsLaunch& args, const DeviceBatch& batch,
                             const Workspace& workspace, cudaStream_t stream) {
  if (batch.num_tokens == 0) return;
  const int heads = args.num_heads + 2 * args.num_kv_heads;
  const dim3 grid(static_cast<unsigned>(batch.num_tokens),
                  static_cast<unsigned>((heads + kWarps - 1) / kWarps));
  with_type(args.type, [&](auto type) {
    with_cache_type(args.cache_type, [&](auto cache) {
      launch_overlapped(
          inputs_kernel<typename decltype(type)::type, typename decltype(cache)::type>, grid,
          32 * kWarps, 0, stream, workspace.compute_capability, args, batch);
    });
  });
}

}  // namespace nibble::cuda
