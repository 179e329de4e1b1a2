// Paged attention: which kernels a step takes, and the plain kernel for everything else.
#include "device/cuda/attention.h"

#include "device/cuda/attention_kernels.h"
#include "device/cuda/ragged.cuh"

namespace nibble::cuda {
namespace {

constexpr int kMostPerLane = 8;  // head_dim / 32

template <class C>
__device__ inline float load_cached(const void* cache, int64_t at) {
  return to_float(static_cast<const C*>(cache)[at]);
}

// Any type and head_dim up to 256: a warp per (token, query head), one cached token at a time,
// f32 throughout. Grid (num_tokens, num_heads), 32 threads.
template <class T, class C>
__global__ void plain_kernel(AttentionParams params) {
  const AttentionLaunch& args = params.args;
  const DeviceBatch& batch = params.batch;
  const TilePlace place =
      find_tile({batch.query_start, batch.num_seqs, 1}, static_cast<int32_t>(blockIdx.x));
  if (place.seq < 0) return;
  const int lane = static_cast<int>(threadIdx.x);
  const int head = static_cast<int>(blockIdx.y);
  const int dim = args.head_dim;
  const int64_t token = batch.query_start[place.seq] + place.tile;
  const int64_t row = (token * args.num_heads + head) * dim;
  const int32_t visible = batch.context_len[place.seq] + place.tile + 1;
  const int32_t* table = batch.block_table + static_cast<int64_t>(place.seq) * batch.max_blocks;
  float q[kMostPerLane] = {};
  float sum[kMostPerLane] = {};
#pragma unroll
  for (int i = 0; i < kMostPerLane; ++i)
    if (lane + 32 * i < dim)
      q[i] = to_float(static_cast<const T*>(args.q)[row + lane + 32 * i]) * args.softmax_scale;
  float largest = -INFINITY;
  float total = 0;
  for (int32_t position = 0; position < visible; ++position) {
    const int64_t cached =
        static_cast<int64_t>(table[position / batch.block_size]) * batch.block_size +
        position % batch.block_size;
    const int64_t from = (cached * args.num_kv_heads + head / params.group) * dim + lane;
    float score = 0;
#pragma unroll
    for (int i = 0; i < kMostPerLane; ++i)
      if (lane + 32 * i < dim) score += q[i] * load_cached<C>(args.k_cache, from + 32 * i);
    score = warp_sum(score);
    const float peak = fmaxf(largest, score);
    const float factor = expf(largest - peak);
    const float weight = expf(score - peak);
    largest = peak;
    total = total * factor + weight;
#pragma unroll
    for (int i = 0; i < kMostPerLane; ++i)
      if (lane + 32 * i < dim)
        sum[i] = sum[i] * factor + weight * load_cached<C>(args.v_cache, from + 32 * i);
  }
#pragma unroll
  for (int i = 0; i < kMostPerLane; ++i)
    if (lane + 32 * i < dim)
      static_cast<T*>(args.out)[row + lane + 32 * i] = Round<T>::of(sum[i] / total);
}

template <class T, class C>
void launch_plain(const AttentionParams& params, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(params.batch.num_tokens),
                  static_cast<unsigned>(params.args.num_heads));
  plain_kernel<T, C><<<grid, 32, 0, stream>>>(params);
  NB_CUDA_LAUNCHED();
}

template <class T>
void launch_plain(const AttentionParams& params, cudaStream_t stream) {
  switch (params.args.cache_type) {
    case Scalar::kF32: return launch_plain<T, float>(params, stream);
    case Scalar::kF16: return launch_plain<T, Half>(params, stream);
    case Scalar::kBF16: return launch_plain<T, BFloat>(params, stream);
    case Scalar::kE4M3: return launch_plain<T, E4M3>(params, stream);
    case Scalar::kE5M2: return launch_plain<T, E5M2>(params, stream);
  }
}

void launch_plain(const AttentionParams& params, cudaStream_t stream) {
  switch (params.args.type) {
    case Scalar::kF32: return launch_plain<float>(params, stream);
    case Scalar::kF16: return launch_plain<Half>(params, stream);
    default: return launch_plain<BFloat>(params, stream);
  }
}

// What serves sequences of few new tokens; null where only the plain kernel does.
using FewLauncher = AttentionEnd (*)(const AttentionParams&, int32_t at_most, cudaStream_t);
FewLauncher few_tokens_launcher(const AttentionParams& params) {
  const AttentionForm form = params.args.form;
  const bool lanes = lanes_support(params);
  if (form == AttentionForm::kPlain) return nullptr;
  if (form == AttentionForm::kLanes && lanes) return launch_lanes;
  const bool as_before_sm80 = form == AttentionForm::kSmall || form == AttentionForm::kQuads;
  if (!as_before_sm80 && decode_supports(params)) return launch_decode;
  if (pre80_decode_supports(params)) return launch_pre80_decode;
  return lanes ? launch_lanes : nullptr;
}

}  // namespace

AttentionEnd launch_attention(const AttentionLaunch& args, const DeviceBatch& batch,
                              const Workspace& workspace, cudaStream_t stream) {
  if (batch.num_tokens == 0 || batch.num_seqs == 0) return AttentionEnd::kAttended;
  AttentionParams params{args, batch, args.num_heads / args.num_kv_heads, workspace};
  const FewLauncher launch_few = few_tokens_launcher(params);
  if (launch_few == nullptr) {
    launch_plain(params, stream);
    return AttentionEnd::kAttended;
  }
  // One token each, or sequences without any beside longer ones.
  if (batch.num_tokens == batch.num_seqs) return launch_few(params, INT32_MAX, stream);
  // Too few tokens for a long sequence to be among them.
  if (batch.num_tokens <= kLongestDecode) return launch_few(params, kLongestDecode, stream);
  const bool wgmma = args.form == AttentionForm::kAuto && prefill_supports(params);
  const bool lanes_only = launch_few == launch_lanes && args.form == AttentionForm::kLanes;
  const bool small = !lanes_only && small_prefill_supports(params);
  if (!wgmma && !small) return launch_few(params, INT32_MAX, stream);
  params.args.gate = nullptr;
  if (batch.num_seqs > 1) launch_few(params, kLongestDecode, stream);
  // A single sequence is known to be long.
  const auto launch_many = wgmma ? launch_prefill : launch_small_prefill;
  launch_many(params, kLongestDecode, stream);
  return AttentionEnd::kAttended;
}

size_t attention_scratch_bytes(int32_t head_dim, int32_t num_sms) {
  // Twice as many (item, kv head, split) parts as SMs, of 16 rows; see splits_of() in
  // attention_merge.cu.
  return static_cast<size_t>(2 * num_sms) * 16 * static_cast<size_t>(head_dim + 2) * sizeof(float);
}

}  // namespace nibble::cuda
