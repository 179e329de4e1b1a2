// The gated delta rule of long sequences without tensor cores, token by token in f32: GPUs before
// sm_80, and f32 activations. Head dims 128.
//
// Value columns of a state never meet: a block has all 128 rows of 32 of a head's columns in
// registers, eight lanes to a column, and walks its sequence without a barrier but for the turn of
// 16 tokens whose keys (normalized), queries, values and gates it brings to shared memory at once.
// With S' = e^g S + k d' the output needs no second pass: o = e^g S'q + (k.q) d. Four
// multiplications per element of the state and token, so what bounds it is f32 arithmetic.
// Source: Yang, Kautz, Hatamizadeh, "Gated Delta Networks", arXiv:2412.06464.
#include "device/cuda/delta_rule_kernels.h"
#include "device/cuda/ragged.cuh"

namespace nibble::cuda {
namespace {

constexpr int kDim = kDeltaDim;
constexpr int kWarps = 4;
constexpr int kRowLanes = 8;  // share a column
constexpr int kOwn = 2;       // columns of a thread
constexpr int kWarpColumns = 32 / kRowLanes * kOwn;
constexpr int kBlockColumns = kWarps * kWarpColumns;
constexpr int kBlocksPerHead = kDim / kBlockColumns;
constexpr int kFours = kDim / kRowLanes / 4;  // rows of a thread, by four
constexpr int kTurn = 16;                     // tokens in shared memory
constexpr int kWarpTokens = kTurn / kWarps;   // that a warp brings there
static_assert(kTurn * kBlockColumns == 32 * kWarps * 4, "a thread brings four values");

template <class T>
struct alignas(4 * sizeof(T)) Four {
  T at[4];
};

struct TokenGates {
  float decay;  // e^g
  float beta;
  float kq;  // of the normalized key and query
};

// Grid (num_v_heads * kBlocksPerHead, num_seqs). Sequences with more than kLongestRecurrent tokens.
template <class T>
__global__ void __launch_bounds__(32 * kWarps, 3) columns_kernel(Rule rule) {
  const int32_t seq = static_cast<int32_t>(blockIdx.y);
  const int32_t begin = rule.batch.query_start[seq];
  const int32_t count = rule.batch.query_start[seq + 1] - begin;
  if (count <= kLongestRecurrent) return;
  const int head = static_cast<int>(blockIdx.x) / kBlocksPerHead;
  const int key_head = head / (rule.num_v_heads / rule.num_k_heads);
  const int first_column = static_cast<int>(blockIdx.x) % kBlocksPerHead * kBlockColumns;
  const int tid = static_cast<int>(threadIdx.x);
  const int lane = tid & 31;
  const int warp = tid / 32;
  const int row_lane = lane % kRowLanes;  // rows 4 row_lane + 32 j
  const int own = warp * kWarpColumns + lane / kRowLanes * kOwn;

  __shared__ float4 keys[kTurn][kDim / 4];
  __shared__ float4 queries[kTurn][kDim / 4];
  __shared__ __align__(16) float values[kTurn][kBlockColumns];
  __shared__ __align__(16) float outs[kTurn][kBlockColumns];
  __shared__ TokenGates gates[kTurn];

  float* state = rule.state +
                 (rule.batch.state_slot[seq] * int64_t{rule.num_v_heads} + head) * kDim * kDim +
                 first_column + own;
  float s[4 * kFours][kOwn] = {};
  if (rule.batch.state_is_fresh[seq] == 0) {
#pragma unroll
    for (int r = 0; r < 4 * kFours; ++r) {
      const float2 two = *reinterpret_cast<const float2*>(
          state + (r / 4 * 4 * kRowLanes + 4 * row_lane + r % 4) * kDim);
      s[r][0] = two.x, s[r][1] = two.y;
    }
  }

  // What this thread brings of a turn: four dims of its warp's tokens, and four values.
  Four<T> key[kWarpTokens], query[kWarpTokens], value;
  float log_decay[kWarpTokens], beta[kWarpTokens];
  const int value_token = tid / (kBlockColumns / 4);
  const int value_column = tid % (kBlockColumns / 4) * 4;
  const auto value_at = [&](int32_t first) {
    return ((begin + first + value_token) * int64_t{rule.num_v_heads} + head) * kDim +
           first_column + value_column;
  };
  const auto bring = [&](int32_t first) {
#pragma unroll
    for (int i = 0; i < kWarpTokens; ++i) {
      // Tokens past the end repeat the last one and are not used.
      const int64_t token = begin + min(first + warp * kWarpTokens + i, count - 1);
      const int64_t at = (token * rule.num_k_heads + key_head) * kDim + 4 * lane;
      key[i] = *reinterpret_cast<const Four<T>*>(static_cast<const T*>(rule.k) + at);
      query[i] = *reinterpret_cast<const Four<T>*>(static_cast<const T*>(rule.q) + at);
      log_decay[i] = rule.log_decay[token * rule.num_v_heads + head];
      beta[i] = rule.beta[token * rule.num_v_heads + head];
    }
    if (first + value_token < count)
      value = *reinterpret_cast<const Four<T>*>(static_cast<const T*>(rule.v) + value_at(first));
  };
  const auto put = [&] {
#pragma unroll
    for (int i = 0; i < kWarpTokens; ++i) {
      const int t = warp * kWarpTokens + i;
      float k[4], q[4];
      float kk = 0, qq = 0, kq = 0;
#pragma unroll
      for (int d = 0; d < 4; ++d) {
        k[d] = to_float(key[i].at[d]), q[d] = to_float(query[i].at[d]);
        kk += k[d] * k[d], qq += q[d] * q[d], kq += k[d] * q[d];
      }
      const float k_norm = 1.0f / sqrtf(warp_sum(kk) + kL2Eps);
      const float q_norm = rule.q_scale / sqrtf(warp_sum(qq) + kL2Eps);
      kq = warp_sum(kq) * k_norm * q_norm;
      keys[t][lane] = make_float4(k[0] * k_norm, k[1] * k_norm, k[2] * k_norm, k[3] * k_norm);
      queries[t][lane] = make_float4(q[0] * q_norm, q[1] * q_norm, q[2] * q_norm, q[3] * q_norm);
      if (lane == 0) gates[t] = {expf(log_decay[i]), beta[i], kq};
    }
    *reinterpret_cast<float4*>(&values[value_token][value_column]) = make_float4(
        to_float(value.at[0]), to_float(value.at[1]), to_float(value.at[2]), to_float(value.at[3]));
  };
  value = {};
  bring(0);

  for (int32_t first = 0; first < count; first += kTurn) {
    put();
    __syncthreads();
    if (first + kTurn < count) bring(first + kTurn);
    const int tokens = min(kTurn, count - first);
#pragma unroll 2
    for (int t = 0; t < tokens; ++t) {
      float k[4 * kFours], q[4 * kFours];
#pragma unroll
      for (int j = 0; j < kFours; ++j) {
        const float4 four_k = keys[t][kRowLanes * j + row_lane];
        const float4 four_q = queries[t][kRowLanes * j + row_lane];
        k[4 * j] = four_k.x, k[4 * j + 1] = four_k.y, k[4 * j + 2] = four_k.z,
              k[4 * j + 3] = four_k.w;
        q[4 * j] = four_q.x, q[4 * j + 1] = four_q.y, q[4 * j + 2] = four_q.z,
              q[4 * j + 3] = four_q.w;
      }
      float of_key[kOwn] = {}, of_query[kOwn] = {};
#pragma unroll
      for (int r = 0; r < 4 * kFours; ++r)
#pragma unroll
        for (int c = 0; c < kOwn; ++c) of_key[c] += s[r][c] * k[r], of_query[c] += s[r][c] * q[r];
#pragma unroll
      for (int offset = kRowLanes / 2; offset > 0; offset /= 2)
#pragma unroll
        for (int c = 0; c < kOwn; ++c) of_key[c] += __shfl_xor_sync(0xffffffffu, of_key[c], offset);
      const TokenGates gate = gates[t];
      const float2 two = *reinterpret_cast<const float2*>(&values[t][own]);
      const float delta[kOwn] = {gate.beta * (two.x - gate.decay * of_key[0]),
                                 gate.beta * (two.y - gate.decay * of_key[1])};
#pragma unroll
      for (int r = 0; r < 4 * kFours; ++r)
#pragma unroll
        for (int c = 0; c < kOwn; ++c) s[r][c] = gate.decay * s[r][c] + k[r] * delta[c];
      // Lanes with odd rows go on with the second column, the others with the first.
      const bool odd = (row_lane & 1) != 0;
      float out = (odd ? of_query[1] : of_query[0]) +
                  __shfl_xor_sync(0xffffffffu, odd ? of_query[0] : of_query[1], 1);
#pragma unroll
      for (int offset = kRowLanes / 2; offset > 1; offset /= 2)
        out += __shfl_xor_sync(0xffffffffu, out, offset);
      if (row_lane < kOwn)
        outs[t][own + row_lane] = gate.decay * out + gate.kq * (odd ? delta[1] : delta[0]);
    }
    __syncthreads();
    if (value_token < tokens) {
      const float4 four = *reinterpret_cast<const float4*>(&outs[value_token][value_column]);
      *reinterpret_cast<Four<T>*>(static_cast<T*>(rule.out) + value_at(first)) = {
          {Round<T>::of(four.x), Round<T>::of(four.y), Round<T>::of(four.z), Round<T>::of(four.w)}};
    }
  }
#pragma unroll
  for (int r = 0; r < 4 * kFours; ++r)
    *reinterpret_cast<float2*>(state + (r / 4 * 4 * kRowLanes + 4 * row_lane + r % 4) * kDim) = {
        s[r][0], s[r][1]};
}

}  // namespace

void launch_delta_rule_columns(const Rule& rule, Scalar type, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(rule.num_v_heads * kBlocksPerHead),
                  static_cast<unsigned>(rule.batch.num_seqs));
  with_type(type, [&](auto named) {
    columns_kernel<typename decltype(named)::type><<<grid, 32 * kWarps, 0, stream>>>(rule);
  });
  NB_CUDA_LAUNCHED();
}

}  // namespace nibble::cuda
