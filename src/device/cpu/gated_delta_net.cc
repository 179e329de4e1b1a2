// The gated delta rule for f32 activations: the same formulas as device/ref/gated_delta_net.cc with
// vectors along head_v_dim, one task per (sequence, value head).
//
// Per chunk of C tokens and head the cost is 3 C dk dv (state) + C^2 (dk + 2 dv) multiply-adds; the
// state [dk, dv] (64 KiB at 128 x 128) and the chunk's V' stay in L1/L2.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "device/cpu/gated_delta_net.cc"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "device/cpu/cpu_ops.h"
#include "device/cpu/vectors-inl.h"

// Shared by every target: foreach_target.h compiles this file once a target.
#ifndef NIBBLE_DEVICE_CPU_DELTA_HEAD
#define NIBBLE_DEVICE_CPU_DELTA_HEAD
namespace nibble::cpu {

constexpr int32_t kDeltaChunk = 64;

// One value head of one sequence over `count` tokens. Strides are in floats between tokens.
struct DeltaHead {
  const float* q;
  const float* k;
  const float* v;
  const float* log_decay;
  const float* beta;
  float* state;  // [dk, dv]
  float* out;
  int64_t key_stride, value_stride, gate_stride;
  int64_t dk, dv;
  int32_t count;
  float q_scale;
};

// Per-thread scratch: q, k [chunk, dk] normalised; values [chunk, dv] is V'.
struct DeltaScratch {
  std::vector<float> q, k, values;
  void resize(int64_t dk, int64_t dv) {
    q.resize(static_cast<size_t>(kDeltaChunk * dk));
    k.resize(static_cast<size_t>(kDeltaChunk * dk));
    values.resize(static_cast<size_t>(kDeltaChunk * dv));
  }
};

}  // namespace nibble::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace nibble::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// y = decay * y + a * x
void scaled_axpy(float decay, float a, const float* x, int64_t n, float* y) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto factor = hn::Set(d, a);
  const auto decays = hn::Set(d, decay);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto old = hn::Mul(decays, hn::LoadU(d, y + i));
    hn::StoreU(hn::MulAdd(factor, hn::LoadU(d, x + i), old), d, y + i);
  }
  for (; i < n; ++i) y[i] = std::fma(a, x[i], decay * y[i]);
}

// out[j] = sum_i x[i] state[i][j]
void row_times_state(const float* x, const float* state, int64_t dk, int64_t dv, float* out) {
  std::fill_n(out, dv, 0.0f);
  for (int64_t i = 0; i < dk; ++i) axpy(x[i], state + i * dv, dv, out);
}

void l2_normalise(const float* x, int64_t n, float scale, float* out) {
  const float factor = scale / std::sqrt(dot(x, x, n) + 1e-6f);
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] * factor;
}

// One token: S <- e^g S, d = beta (v - S' k), S <- S + k d', o = S' q.
void recurrent_token(const DeltaHead& head, DeltaScratch& scratch) {
  const int64_t dk = head.dk;
  const int64_t dv = head.dv;
  float* q = scratch.q.data();
  float* k = scratch.k.data();
  float* delta = scratch.values.data();
  l2_normalise(head.q, dk, head.q_scale, q);
  l2_normalise(head.k, dk, 1.0f, k);
  const float decay = std::exp(head.log_decay[0]);
  row_times_state(k, head.state, dk, dv, delta);
  for (int64_t j = 0; j < dv; ++j) delta[j] = head.beta[0] * (head.v[j] - decay * delta[j]);
  std::fill_n(head.out, dv, 0.0f);
  for (int64_t i = 0; i < dk; ++i) {
    scaled_axpy(decay, k[i], delta, dv, head.state + i * dv);
    axpy(q[i], head.state + i * dv, dv, head.out);
  }
}

// Tokens [first, first + count), count <= kDeltaChunk.
void chunk(const DeltaHead& head, int32_t first, int32_t count, DeltaScratch& scratch) {
  const int64_t dk = head.dk;
  const int64_t dv = head.dv;
  float cumulative[kDeltaChunk] = {};
  float beta[kDeltaChunk] = {};
  float running = 0;
  for (int32_t i = 0; i < count; ++i) {
    const int64_t gate = (first + i) * head.gate_stride;
    cumulative[i] = running += head.log_decay[gate];
    beta[i] = head.beta[gate];
    l2_normalise(head.q + (first + i) * head.key_stride, dk, head.q_scale,
                 scratch.q.data() + i * dk);
    l2_normalise(head.k + (first + i) * head.key_stride, dk, 1.0f, scratch.k.data() + i * dk);
  }
  for (int32_t i = 0; i < count; ++i) {
    const float* k_i = scratch.k.data() + i * dk;
    const float* v_i = head.v + (first + i) * head.value_stride;
    float* value = scratch.values.data() + i * dv;
    row_times_state(k_i, head.state, dk, dv, value);
    const float decay = std::exp(cumulative[i]);
    for (int64_t d = 0; d < dv; ++d) value[d] = beta[i] * (v_i[d] - decay * value[d]);
    for (int32_t j = 0; j < i; ++j) {
      const float a = beta[i] * dot(k_i, scratch.k.data() + j * dk, dk) *
                      std::exp(cumulative[i] - cumulative[j]);
      axpy(-a, scratch.values.data() + j * dv, dv, value);
    }
  }
  for (int32_t i = 0; i < count; ++i) {
    const float* q_i = scratch.q.data() + i * dk;
    float* out = head.out + (first + i) * head.value_stride;
    row_times_state(q_i, head.state, dk, dv, out);
    const float decay = std::exp(cumulative[i]);
    for (int64_t d = 0; d < dv; ++d) out[d] *= decay;
    for (int32_t j = 0; j <= i; ++j) {
      const float weight =
          dot(q_i, scratch.k.data() + j * dk, dk) * std::exp(cumulative[i] - cumulative[j]);
      axpy(weight, scratch.values.data() + j * dv, dv, out);
    }
  }
  const float last = cumulative[count - 1];
  const float decay = std::exp(last);
  for (int64_t i = 0; i < dk * dv; ++i) head.state[i] *= decay;
  for (int32_t j = 0; j < count; ++j) {
    const float weight = std::exp(last - cumulative[j]);
    const float* k_j = scratch.k.data() + j * dk;
    for (int64_t i = 0; i < dk; ++i)
      axpy(weight * k_j[i], scratch.values.data() + j * dv, dv, head.state + i * dv);
  }
}

void advance_head(const DeltaHead& head, DeltaScratch& scratch) {
  if (head.count == 1) {
    recurrent_token(head, scratch);
    return;
  }
  for (int32_t first = 0; first < head.count; first += kDeltaChunk)
    chunk(head, first, std::min(kDeltaChunk, head.count - first), scratch);
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble::cpu {

HWY_EXPORT(advance_head);

void CpuOps::gated_delta_net(const GatedDeltaNetArgs& args, const RaggedBatch& batch) {
  if (args.q.dtype != DType::kF32) {
    RefOps::gated_delta_net(args, batch);
    return;
  }
  if (batch.num_tokens == 0) return;
  const int64_t num_k_heads = args.q.shape[1];
  const int64_t num_v_heads = args.v.shape[1];
  const int64_t dk = args.q.shape[2];
  const int64_t dv = args.v.shape[2];
  const auto run = [&](size_t first, size_t last) {
    thread_local DeltaScratch scratch;
    scratch.resize(dk, dv);
    for (size_t task = first; task < last; ++task) {
      const auto s = static_cast<int64_t>(task) / num_v_heads;
      const auto h = static_cast<int64_t>(task) % num_v_heads;
      const int32_t begin = batch.query_start[s];
      const int64_t k_head = h / (num_v_heads / num_k_heads);
      DeltaHead head;
      head.count = batch.query_start[s + 1] - begin;
      head.q = args.q.as<const float>() + (begin * num_k_heads + k_head) * dk;
      head.k = args.k.as<const float>() + (begin * num_k_heads + k_head) * dk;
      head.v = args.v.as<const float>() + (begin * num_v_heads + h) * dv;
      head.out = args.out.as<float>() + (begin * num_v_heads + h) * dv;
      head.log_decay = args.log_decay.as<const float>() + begin * num_v_heads + h;
      head.beta = args.beta.as<const float>() + begin * num_v_heads + h;
      head.state = args.state.as<float>() + (batch.state_slot[s] * num_v_heads + h) * dk * dv;
      head.key_stride = num_k_heads * dk;
      head.value_stride = num_v_heads * dv;
      head.gate_stride = num_v_heads;
      head.dk = dk;
      head.dv = dv;
      head.q_scale = 1.0f / std::sqrt(static_cast<float>(dk));
      if (batch.state_is_fresh[s] != 0) std::fill_n(head.state, dk * dv, 0.0f);
      HWY_DYNAMIC_DISPATCH(advance_head)(head, scratch);
    }
  };
  const auto num_tasks = static_cast<size_t>(batch.num_seqs * num_v_heads);
  if (batch.num_tokens * num_v_heads * dk * dv < (1 << 18)) {
    run(0, num_tasks);
  } else {
    pool_.parallel_for(num_tasks, 1, run);
  }
}

}  // namespace nibble::cpu
#endif  // HWY_ONCE
