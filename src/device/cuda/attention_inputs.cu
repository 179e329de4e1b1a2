// From projections to the softmax's inputs in one launch: query and gate parted, heads normed,
// rotated, keys and values written to the cache. A warp holds one head of one token; each step
// rounds where the separate operations store, so the values are theirs bit for bit.
#include "device/cuda/attention.h"
#include "device/cuda/load_float.cuh"
#include "device/cuda/overlap.cuh"
#include "device/cuda/ragged.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMostPerLane = 8;  // head_dim / 32

// The weights of the norm, for each of this lane's dims.
struct NormWeights {
  float values[kMostPerLane] = {};

  __device__ __forceinline__ NormWeights(const AttentionInputsLaunch& args, const void* weight) {
    const int lane = static_cast<int>(threadIdx.x) & 31;
#pragma unroll
    for (int i = 0; i < kMostPerLane; ++i)
      if (weight != nullptr && lane + 32 * i < args.head_dim)
        values[i] = load_as_float(weight, args.norm_type, lane + 32 * i) + args.norm_weight_offset;
  }
};

// One head: this lane holds dims lane + 32 i.
template <class T>
__device__ __forceinline__ void load_head(float (&x)[kMostPerLane], const T* from, int dim) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
#pragma unroll
  for (int i = 0; i < kMostPerLane; ++i)
    x[i] = lane + 32 * i < dim ? to_float(from[lane + 32 * i]) : 0.0f;
}
template <class T>
__device__ __forceinline__ void store_head(T* to, const float (&x)[kMostPerLane], int dim) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
#pragma unroll
  for (int i = 0; i < kMostPerLane; ++i)
    if (lane + 32 * i < dim) to[lane + 32 * i] = Round<T>::of(x[i]);
}

// Cosine and sine of a token's angles, [frequency], by the whole block.
template <class T>
__device__ __forceinline__ void write_turns(const RopeLaunch& rope, int64_t token, float* cosine,
                                            float* sine) {
  const auto frequency = static_cast<int>(threadIdx.x);
  if (frequency >= rope.half) return;
  int axis = 0;
  if (frequency % 3 == 1 && frequency < 3 * rope.mrope_section[1]) axis = 1;
  if (frequency % 3 == 2 && frequency < 3 * rope.mrope_section[2]) axis = 2;
  const float angle =
      static_cast<float>(rope.positions[axis * rope.num_tokens + token]) * rope.inv_freq[frequency];
  cosine[frequency] = rounded<T>(cosf(angle) * rope.attention_scaling);
  sine[frequency] = rounded<T>(sinf(angle) * rope.attention_scaling);
}

// Norm and rotation of one head; the rotation goes through `shared`, a lane per frequency.
template <class T>
__device__ inline void norm_and_rotate(const AttentionInputsLaunch& args, float (&x)[kMostPerLane],
                                       bool normed, const NormWeights& weights, const float* cosine,
                                       const float* sine, float* shared) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  if (normed) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kMostPerLane; ++i) sum += x[i] * x[i];
    const float scale = rsqrtf(warp_sum(sum) / static_cast<float>(args.head_dim) + args.norm_eps);
#pragma unroll
    for (int i = 0; i < kMostPerLane; ++i) x[i] = rounded<T>(x[i] * scale * weights.values[i]);
  }
  const int half = args.rope.half;
#pragma unroll
  for (int i = 0; i < kMostPerLane; ++i)
    if (lane + 32 * i < 2 * half) shared[lane + 32 * i] = x[i];
  __syncwarp();
  for (int frequency = lane; frequency < half; frequency += 32) {
    const float c = cosine[frequency];
    const float s = sine[frequency];
    const float low = shared[frequency];
    const float high = shared[frequency + half];
    shared[frequency] = rounded<T>(rounded<T>(low * c) - rounded<T>(high * s));
    shared[frequency + half] = rounded<T>(rounded<T>(high * c) + rounded<T>(low * s));
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kMostPerLane; ++i)
    if (lane + 32 * i < 2 * half) x[i] = shared[lane + 32 * i];
}

// Grid (num_tokens, heads / kWarps): query heads, then key heads, then value heads.
template <class T, class C>
__global__ void __launch_bounds__(32 * kWarps)
    inputs_kernel(const __grid_constant__ AttentionInputsLaunch args, DeviceBatch batch) {
  static_assert(RopeLaunch::kMaxFrequencies <= 32 * kWarps);
  __shared__ float heads[kWarps][2 * RopeLaunch::kMaxFrequencies];
  __shared__ float cosine[RopeLaunch::kMaxFrequencies];
  __shared__ float sine[RopeLaunch::kMaxFrequencies];
  let_next_kernel_start();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t token = blockIdx.x;
  const int dim = args.head_dim;
  int head = static_cast<int>(blockIdx.y) * kWarps + warp;
  const bool is_query = head < args.num_heads;
  const NormWeights weights(args, is_query ? args.q_norm : args.k_norm);
  const TilePlace place =
      find_tile({batch.query_start, batch.num_seqs, 1}, static_cast<int32_t>(token));
  const int seq = max(place.seq, 0);
  const int32_t position = batch.context_len[seq] + place.tile;
  const int32_t block =
      batch.block_table[static_cast<int64_t>(seq) * batch.max_blocks + position / batch.block_size];
  write_turns<T>(args.rope, token, cosine, sine);
  __syncthreads();
  wait_for_previous_kernel();
  float x[kMostPerLane];
  if (is_query) {
    const bool gated = args.q_and_gate != nullptr;
    const int64_t row = (token * args.num_heads + head) * dim;
    const T* from = gated ? static_cast<const T*>(args.q_and_gate) + 2 * row
                          : static_cast<const T*>(args.q) + row;
    load_head(x, from, dim);
    float gate[kMostPerLane];
    if (gated) load_head(gate, from + dim, dim);
    norm_and_rotate<T>(args, x, args.q_norm != nullptr, weights, cosine, sine, heads[warp]);
    if (gated) store_head(static_cast<T*>(args.gate) + row, gate, dim);
    store_head(static_cast<T*>(args.q) + row, x, dim);
    return;
  }
  head -= args.num_heads;
  const bool is_value = head >= args.num_kv_heads;
  if (is_value) head -= args.num_kv_heads;
  if (head >= args.num_kv_heads || place.seq < 0) return;  // a padded row
  load_head(
      x,
      static_cast<const T*>(is_value ? args.v : args.k) + (token * args.num_kv_heads + head) * dim,
      dim);
  if (!is_value)
    norm_and_rotate<T>(args, x, args.k_norm != nullptr, weights, cosine, sine, heads[warp]);
  store_head(static_cast<C*>(is_value ? args.v_cache : args.k_cache) +
                 ((static_cast<int64_t>(block) * batch.block_size + position % batch.block_size) *
                      args.num_kv_heads +
                  head) *
                     dim,
             x, dim);
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
