// The gated delta rule on CUDA: which kernels a step takes, and the recurrent ones. Long sequences
// take delta_rule_chunked.cu or delta_rule_columns.cu, but for head dims other than 128.
//
// Recurrent: a block holds one head's state
// [128, 128] in registers, reads and writes it once, and walks the step's tokens. With
// S' = e^g S + k d' the output needs no second pass: o = e^g S'q + (k.q) d. Bound by the state's
// bytes: 2 * 64 KiB per head. Fewer heads than multiprocessors are no reason to divide a state
// among a cluster of blocks, which waits for as many free places: slower with 48 heads already.
// Source: Yang, Kautz, Hatamizadeh, "Gated Delta Networks", arXiv:2412.06464.
#include "device/cuda/gated_delta_net.h"

#include <cmath>

#include "device/cuda/delta_rule_kernels.h"
#include "device/cuda/load_float.cuh"
#include "device/cuda/norm.cuh"
#include "device/cuda/overlap.cuh"
#include "device/cuda/ragged.cuh"

namespace nibble::cuda {
namespace {

constexpr int kDim = kDeltaDim;

// --- recurrent ---------------------------------------------------------------------------------

// How the 256 threads of a block hold a state.
constexpr int kLanes = kDim / 4;            // share a row, 4 columns each
constexpr int kRowsPerPass = 256 / kLanes;  // rows the block covers at once
constexpr int kPasses = kDim / kRowsPerPass;

// The gated norm of one head of one token by a warp. Sums in the order of norm.cu, so that the
// result is that of the separate operation.
template <class T>
__device__ __forceinline__ void norm_head(const float* from, const float* weights, float eps,
                                          const T (&gate)[kDim / 32], T* out) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  float x[kDim / 32];
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) {
    x[j] = from[lane + 32 * j];
    sum += x[j] * x[j];
  }
  const float scale = rsqrtf(warp_sum(sum) / static_cast<float>(kDim) + eps);
#pragma unroll
  for (int j = 0; j < kDim / 32; ++j) {
    const int column = lane + 32 * j;
    out[column] = gated<T>(x[j], scale, weights[column], gate[j]);
  }
}

// Grid (num_v_heads, num_seqs), 256 threads. Sequences with more than `longest` new tokens are left
// to the chunked kernels.
template <class T, bool kNormed>
__global__ __launch_bounds__(256) void recurrent_kernel(Rule rule, int32_t longest,
                                                        DeltaNorm norm) {
  let_next_kernel_start();
  const int32_t seq = static_cast<int32_t>(blockIdx.y);
  const int32_t begin = rule.batch.query_start[seq];
  const int32_t count = rule.batch.query_start[seq + 1] - begin;
  const int64_t slot = rule.batch.state_slot[seq];
  const bool fresh = rule.batch.state_is_fresh[seq] != 0;
  // A fresh sequence without tokens still has its state cleared.
  const bool idle = count > longest || (count == 0 && !fresh);
  if (idle) {
    wait_for_previous_kernel();
    return;
  }
  const int head = static_cast<int>(blockIdx.x);
  const int key_head = head / (rule.num_v_heads / rule.num_k_heads);
  const int tid = static_cast<int>(threadIdx.x);
  const int warp = tid / 32;
  const int column = tid % kLanes * 4;
  const int first_row = tid / kLanes;

  __shared__ float outs[2][kNormed ? kDim : 1];           // [token parity]
  __shared__ float weights[kNormed ? kDim : 1];           // of the norm
  __shared__ float keys[2][2][kDim];                      // [token parity][k, q]
  __shared__ __align__(16) float partial[2][8][2][kDim];  // [parity][warp][S'k, S'q]

  float* state = rule.state + (slot * rule.num_v_heads + head) * kDim * kDim;
  float4 s[kPasses];
  if (fresh) {
#pragma unroll
    for (int p = 0; p < kPasses; ++p) s[p] = {0, 0, 0, 0};
  } else {
#pragma unroll
    for (int p = 0; p < kPasses; ++p)
      s[p] =
          *reinterpret_cast<const float4*>(state + (first_row + p * kRowsPerPass) * kDim + column);
  }
  const float weight =
      kNormed && tid < kDim ? load_as_float(norm.weight, norm.weight_type, tid) : 0.0f;
  wait_for_previous_kernel();

  for (int32_t i = 0; i < count; ++i) {
    const int64_t token = begin + i;
    const int parity = i & 1;
    const int64_t key_row = (token * rule.num_k_heads + key_head) * kDim;
    const int64_t value_row = (token * rule.num_v_heads + head) * kDim;
    // Thread tid < 128 brings k[tid], the others q[tid - 128].
    const T* source = static_cast<const T*>(tid < kDim ? rule.k : rule.q);
    keys[parity][tid / kDim][tid % kDim] = to_float(source[key_row + tid % kDim]);
    const float decay = expf(rule.log_decay[token * rule.num_v_heads + head]);
    const float beta = rule.beta[token * rule.num_v_heads + head];
    float value[4];
#pragma unroll
    for (int c = 0; c < 4; ++c)
      value[c] = to_float(static_cast<const T*>(rule.v)[value_row + column + c]);
    T gate[kDim / 32];
    if (kNormed && tid < 32) {
#pragma unroll
      for (int j = 0; j < kDim / 32; ++j)
        gate[j] = static_cast<const T*>(norm.gate)[value_row + tid + 32 * j];
    }
    if (kNormed && i == 0 && tid < kDim) weights[tid] = weight;
    __syncthreads();

    // Every warp computes the three dot products for itself: no second barrier.
    const float* k = keys[parity][0];
    const float* q = keys[parity][1];
    float kk = 0, qq = 0, kq = 0;
#pragma unroll
    for (int d = tid & 31; d < kDim; d += 32) {
      kk += k[d] * k[d];
      qq += q[d] * q[d];
      kq += k[d] * q[d];
    }
    const float k_norm = 1.0f / sqrtf(warp_sum(kk) + kL2Eps);
    const float q_norm = rule.q_scale / sqrtf(warp_sum(qq) + kL2Eps);
    kq = warp_sum(kq) * k_norm * q_norm;

    float sums[2][4] = {};
#pragma unroll
    for (int p = 0; p < kPasses; ++p) {
      const float k_p = k[first_row + p * kRowsPerPass];
      const float q_p = q[first_row + p * kRowsPerPass];
      sums[0][0] += s[p].x * k_p, sums[1][0] += s[p].x * q_p;
      sums[0][1] += s[p].y * k_p, sums[1][1] += s[p].y * q_p;
      sums[0][2] += s[p].z * k_p, sums[1][2] += s[p].z * q_p;
      sums[0][3] += s[p].w * k_p, sums[1][3] += s[p].w * q_p;
    }
#pragma unroll
    for (int which = 0; which < 2; ++which)
      *reinterpret_cast<float4*>(&partial[parity][warp][which][column]) = {
          sums[which][0], sums[which][1], sums[which][2], sums[which][3]};
    __syncthreads();
    float4 total[2] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
#pragma unroll
    for (int w = 0; w < 8; ++w)
#pragma unroll
      for (int which = 0; which < 2; ++which) {
        const float4 part = *reinterpret_cast<const float4*>(&partial[parity][w][which][column]);
        total[which].x += part.x, total[which].y += part.y;
        total[which].z += part.z, total[which].w += part.w;
      }
    const float k_decay = decay * k_norm;
    const float q_decay = decay * q_norm;
    const float delta[4] = {
        beta * (value[0] - k_decay * total[0].x), beta * (value[1] - k_decay * total[0].y),
        beta * (value[2] - k_decay * total[0].z), beta * (value[3] - k_decay * total[0].w)};
    if (first_row == 0) {
      const T out[4] = {Round<T>::of(q_decay * total[1].x + kq * delta[0]),
                        Round<T>::of(q_decay * total[1].y + kq * delta[1]),
                        Round<T>::of(q_decay * total[1].z + kq * delta[2]),
                        Round<T>::of(q_decay * total[1].w + kq * delta[3])};
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        if (kNormed) {
          outs[parity][column + c] = to_float(out[c]);
        } else {
          static_cast<T*>(rule.out)[value_row + column + c] = out[c];
        }
      }
    }
    if (kNormed) {
      __syncthreads();
      if (tid < 32)
        norm_head(outs[parity], weights, norm.eps, gate, static_cast<T*>(rule.out) + value_row);
    }
#pragma unroll
    for (int p = 0; p < kPasses; ++p) {
      const float k_p = k[first_row + p * kRowsPerPass] * k_norm;
      s[p].x = decay * s[p].x + k_p * delta[0];
      s[p].y = decay * s[p].y + k_p * delta[1];
      s[p].z = decay * s[p].z + k_p * delta[2];
      s[p].w = decay * s[p].w + k_p * delta[3];
    }
  }
#pragma unroll
  for (int p = 0; p < kPasses; ++p)
    *reinterpret_cast<float4*>(state + (first_row + p * kRowsPerPass) * kDim + column) = s[p];
}

// Any head dims: a thread per value column, the state in global memory (mostly cache). Grid
// (num_v_heads, num_seqs).
template <class T>
__global__ void any_dims_kernel(Rule rule) {
  const int32_t seq = static_cast<int32_t>(blockIdx.y);
  const int32_t begin = rule.batch.query_start[seq];
  const int32_t end = rule.batch.query_start[seq + 1];
  const int head = static_cast<int>(blockIdx.x);
  const int key_head = head / (rule.num_v_heads / rule.num_k_heads);
  const int k_dim = rule.k_dim;
  const int v_dim = rule.v_dim;
  const int column = static_cast<int>(threadIdx.x);
  const bool mine = column < v_dim;
  __shared__ float k[256];
  __shared__ float q[256];
  const int64_t slot = rule.batch.state_slot[seq];
  float* state = rule.state + (slot * rule.num_v_heads + head) * k_dim * v_dim + column;
  if (mine && rule.batch.state_is_fresh[seq] != 0)
    for (int r = 0; r < k_dim; ++r) state[r * v_dim] = 0;

  for (int64_t token = begin; token < end; ++token) {
    const int64_t key_row = (token * rule.num_k_heads + key_head) * k_dim;
    const int64_t value_row = (token * rule.num_v_heads + head) * v_dim;
    __syncthreads();
    for (int d = column; d < k_dim; d += static_cast<int>(blockDim.x)) {
      k[d] = to_float(static_cast<const T*>(rule.k)[key_row + d]);
      q[d] = to_float(static_cast<const T*>(rule.q)[key_row + d]);
    }
    __syncthreads();
    float kk = 0, qq = 0;
    for (int d = column & 31; d < k_dim; d += 32) kk += k[d] * k[d], qq += q[d] * q[d];
    const float k_norm = 1.0f / sqrtf(warp_sum(kk) + kL2Eps);
    const float q_norm = rule.q_scale / sqrtf(warp_sum(qq) + kL2Eps);
    if (!mine) continue;
    const float decay = expf(rule.log_decay[token * rule.num_v_heads + head]);
    const float beta = rule.beta[token * rule.num_v_heads + head];
    float predicted = 0;
    for (int r = 0; r < k_dim; ++r) predicted += state[r * v_dim] * k[r];
    const float value = to_float(static_cast<const T*>(rule.v)[value_row + column]);
    const float delta = beta * (value - decay * k_norm * predicted) * k_norm;
    float out = 0;
    for (int r = 0; r < k_dim; ++r) {
      const float updated = decay * state[r * v_dim] + k[r] * delta;
      state[r * v_dim] = updated;
      out += updated * q[r];
    }
    static_cast<T*>(rule.out)[value_row + column] = Round<T>::of(out * q_norm);
  }
}

// --- launching -----------------------------------------------------------------------------------

template <class T>
void launch_recurrent(const Rule& rule, int32_t longest, const DeltaNorm& norm,
                      const Workspace& workspace, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(rule.num_v_heads),
                  static_cast<unsigned>(rule.batch.num_seqs));
  launch_overlapped(norm.gate != nullptr ? recurrent_kernel<T, true> : recurrent_kernel<T, false>,
                    grid, 256, 0, stream, workspace.compute_capability, rule, longest, norm);
}

template <class T>
void launch_any_dims(const Rule& rule, cudaStream_t stream) {
  const int threads = (rule.v_dim + 31) / 32 * 32;
  const dim3 grid(static_cast<unsigned>(rule.num_v_heads),
                  static_cast<unsigned>(rule.batch.num_seqs));
  any_dims_kernel<T><<<grid, threads, 0, stream>>>(rule);
  NB_CUDA_LAUNCHED();
}

}  // namespace

bool launch_gated_delta_net(const DeltaRuleLaunch& args, const DeviceBatch& batch,
                            const Workspace& workspace, cudaStream_t stream) {
  if (batch.num_tokens == 0 || batch.num_seqs == 0) return true;
  const Rule rule{args.q,         args.k,           args.v,
                  args.log_decay, args.beta,        args.state,
                  args.out,       args.num_k_heads, args.num_v_heads,
                  args.k_dim,     args.v_dim,       1.0f / sqrtf(static_cast<float>(args.k_dim)),
                  batch};
  if (rule.k_dim != kDim || rule.v_dim != kDim) {
    with_type(args.type,
              [&](auto type) { launch_any_dims<typename decltype(type)::type>(rule, stream); });
    return false;
  }
  // Few tokens each, and none with many, is known from the counts alone (if every sequence has one
  // at least; otherwise this is only slower). Then the recurrent kernel takes all.
  const bool few_each = batch.num_tokens <= kLongestRecurrent * batch.num_seqs &&
                        batch.num_tokens - batch.num_seqs < 128;
  const bool long_apart = !few_each && args.form != DeltaRuleForm::kRecurrent;
  if (long_apart) {
    const bool chunked = args.form != DeltaRuleForm::kColumns && args.type != Scalar::kF32 &&
                         workspace.compute_capability >= 80 &&
                         launch_chunked_delta_rule(rule, args.type, workspace,
                                                   args.form == DeltaRuleForm::kAuto, stream);
    if (!chunked) launch_delta_rule_columns(rule, args.type, stream);
    if (batch.num_seqs == 1) return false;  // the one sequence is long
  }
  const DeltaNorm norm = long_apart ? DeltaNorm{} : args.norm;
  with_type(args.type, [&](auto type) {
    launch_recurrent<typename decltype(type)::type>(
        rule, long_apart ? kLongestRecurrent : INT32_MAX, norm, workspace, stream);
  });
  return norm.gate != nullptr;
}

}  // namespace nibble::cuda
