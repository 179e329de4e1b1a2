// The gated delta rule and what feeds it: convolution, decay and write strength.
//
// Per value head, with S [dk, dv] and tokens in order:
//   S <- e^g S;  d = beta (v - S' k);  S <- S + k d';  o = S' q
// Chunked form over C tokens (G inclusive sum of g, D_ij = e^(G_i - G_j) for j <= i):
//   A_ij = beta_i (k_i . k_j) D_ij for j < i;  (I + A) V' = diag(beta) (V - diag(e^G) K S0)
//   o_i  = e^G_i q_i S0 + sum_{j<=i} (q_i . k_j) D_ij V'_j
//   S1   = e^G_C S0 + sum_j e^(G_C - G_j) k_j V'_j'
// V' = U - W S0 of the paper, solved in one forward substitution. Only exponents <= 0 are taken.
// Source: Yang, Kautz, Hatamizadeh, "Gated Delta Networks", arXiv:2412.06464.
#include <algorithm>
#include <cmath>

#include "device/ref/float_types.h"
#include "device/ref/ref_ops.h"

namespace nibble::ref {
namespace {

constexpr int32_t kChunk = 64;
constexpr float kL2Eps = 1e-6f;

float dot(const float* a, const float* b, int64_t n) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// out = x / sqrt(sum x^2 + eps) * scale
template <class T>
void l2_normalise(const T* x, int64_t n, float scale, float* out) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<float>(x[i]) * static_cast<float>(x[i]);
  const float factor = 1.0f / std::sqrt(sum + kL2Eps);
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(x[i]) * factor * scale;
}

// out[j] = sum_i x[i] S[i][j]
void row_times_state(const float* x, const float* state, int64_t dk, int64_t dv, float* out) {
  std::fill_n(out, dv, 0.0f);
  for (int64_t i = 0; i < dk; ++i)
    for (int64_t j = 0; j < dv; ++j) out[j] += x[i] * state[i * dv + j];
}

struct Head {
  // q, k [count, dk] normalised; v [count, dv]; g, beta [count]; out [count, dv]; state [dk, dv]
  const float* q;
  const float* k;
  const float* v;
  const float* g;
  const float* beta;
  float* state;
  float* out;
  int64_t dk, dv;
};

void recurrent_step(const Head& head, float* delta) {
  const float decay = std::exp(head.g[0]);
  for (int64_t i = 0; i < head.dk * head.dv; ++i) head.state[i] *= decay;
  row_times_state(head.k, head.state, head.dk, head.dv, delta);
  for (int64_t j = 0; j < head.dv; ++j) delta[j] = head.beta[0] * (head.v[j] - delta[j]);
  for (int64_t i = 0; i < head.dk; ++i)
    for (int64_t j = 0; j < head.dv; ++j) head.state[i * head.dv + j] += head.k[i] * delta[j];
  row_times_state(head.q, head.state, head.dk, head.dv, head.out);
}

// `count` <= kChunk tokens at once. values [kChunk, dv] receives V'.
void chunk_step(const Head& head, int32_t count, float* values) {
  const int64_t dk = head.dk;
  const int64_t dv = head.dv;
  float cumulative[kChunk] = {};
  float running = 0;
  for (int32_t i = 0; i < count; ++i) cumulative[i] = running += head.g[i];

  for (int32_t i = 0; i < count; ++i) {
    const float* k_i = head.k + i * dk;
    float* value = values + i * dv;
    row_times_state(k_i, head.state, dk, dv, value);
    const float decay = std::exp(cumulative[i]);
    for (int64_t d = 0; d < dv; ++d)
      value[d] = head.beta[i] * (head.v[i * dv + d] - decay * value[d]);
    for (int32_t j = 0; j < i; ++j) {
      const float a =
          head.beta[i] * dot(k_i, head.k + j * dk, dk) * std::exp(cumulative[i] - cumulative[j]);
      for (int64_t d = 0; d < dv; ++d) value[d] -= a * values[j * dv + d];
    }
  }
  for (int32_t i = 0; i < count; ++i) {
    const float* q_i = head.q + i * dk;
    float* out = head.out + i * dv;
    row_times_state(q_i, head.state, dk, dv, out);
    const float decay = std::exp(cumulative[i]);
    for (int64_t d = 0; d < dv; ++d) out[d] *= decay;
    for (int32_t j = 0; j <= i; ++j) {
      const float weight = dot(q_i, head.k + j * dk, dk) * std::exp(cumulative[i] - cumulative[j]);
      for (int64_t d = 0; d < dv; ++d) out[d] += weight * values[j * dv + d];
    }
  }
  const float last = cumulative[count - 1];
  const float decay = std::exp(last);
  for (int64_t i = 0; i < dk * dv; ++i) head.state[i] *= decay;
  for (int32_t j = 0; j < count; ++j) {
    const float weight = std::exp(last - cumulative[j]);
    for (int64_t i = 0; i < dk; ++i) {
      const float k_weighted = weight * head.k[j * dk + i];
      for (int64_t d = 0; d < dv; ++d) head.state[i * dv + d] += k_weighted * values[j * dv + d];
    }
  }
}

}  // namespace

void RefOps::causal_conv1d(const ConvArgs& args, const RaggedBatch& batch) {
  if (batch.num_tokens == 0) return;
  const int64_t channels = args.x.shape[1];
  const int64_t kernel = args.weight.shape[1];
  const int64_t history = kernel - 1;
  thread_local std::vector<float> weight_scratch;
  thread_local std::vector<float> window;
  const float* weight = floats_of(args.weight, weight_scratch);
  window.resize(static_cast<size_t>(kernel));
  with_float_type(args.x.dtype, [&]<class T>(T) {
    for (int32_t s = 0; s < batch.num_seqs; ++s) {
      const int32_t begin = batch.query_start[s];
      const int32_t end = batch.query_start[s + 1];
      T* state = args.state.as<T>() + batch.state_slot[s] * channels * history;
      if (batch.state_is_fresh[s] != 0) std::fill_n(state, channels * history, T(0.0f));
      for (int64_t c = 0; c < channels; ++c) {
        T* past = state + c * history;
        for (int64_t i = 0; i < history; ++i) window[static_cast<size_t>(i)] = past[i];
        for (int32_t t = begin; t < end; ++t) {
          window[static_cast<size_t>(history)] = args.x.as<const T>()[t * channels + c];
          float sum = 0;
          for (int64_t i = 0; i < kernel; ++i)
            sum += window[static_cast<size_t>(i)] * weight[c * kernel + i];
          const float convolved = T(sum);
          args.out.as<T>()[t * channels + c] = T(convolved / (1.0f + std::exp(-convolved)));
          std::shift_left(window.begin(), window.end(), 1);
        }
        for (int64_t i = 0; i < history; ++i) past[i] = T(window[static_cast<size_t>(i)]);
      }
    }
  });
}

void RefOps::delta_gates(const Tensor& a, const Tensor& b, const Tensor& a_log,
                         const Tensor& dt_bias, const Tensor& log_decay, const Tensor& beta) {
  thread_local std::vector<float> a_log_scratch;
  thread_local std::vector<float> dt_scratch;
  const float* rate = floats_of(a_log, a_log_scratch);
  const float* bias = floats_of(dt_bias, dt_scratch);
  const int64_t num_heads = a_log.num_elements();
  const int64_t count = a.num_elements();
  with_float_type(a.dtype, [&]<class T>(T) {
    for (int64_t i = 0; i < count; ++i) {
      const float x = static_cast<float>(a.as<const T>()[i]) + bias[i % num_heads];
      const float softplus = x > 20.0f ? x : std::log1p(std::exp(x));
      log_decay.as<float>()[i] = -std::exp(rate[i % num_heads]) * softplus;
      beta.as<float>()[i] = T(1.0f / (1.0f + std::exp(-static_cast<float>(b.as<const T>()[i]))));
    }
  });
}

void RefOps::gated_delta_net(const GatedDeltaNetArgs& args, const RaggedBatch& batch) {
  if (batch.num_tokens == 0) return;
  const int64_t num_k_heads = args.q.shape[1];
  const int64_t num_v_heads = args.v.shape[1];
  const int64_t dk = args.q.shape[2];
  const int64_t dv = args.v.shape[2];
  const int64_t values_per_key = num_v_heads / num_k_heads;
  const float q_scale = 1.0f / std::sqrt(static_cast<float>(dk));
  const auto chunk = static_cast<size_t>(kChunk);
  thread_local std::vector<float> q, k, v, g, beta, out, values;
  q.resize(chunk * static_cast<size_t>(dk));
  k.resize(chunk * static_cast<size_t>(dk));
  v.resize(chunk * static_cast<size_t>(dv));
  out.resize(chunk * static_cast<size_t>(dv));
  values.resize(chunk * static_cast<size_t>(dv));
  g.resize(chunk);
  beta.resize(chunk);

  with_float_type(args.q.dtype, [&]<class T>(T) {
    for (int32_t s = 0; s < batch.num_seqs; ++s) {
      const int32_t end = batch.query_start[s + 1];
      const bool recurrent = end - batch.query_start[s] == 1;
      for (int64_t h = 0; h < num_v_heads; ++h) {
        float* state = args.state.as<float>() + (batch.state_slot[s] * num_v_heads + h) * dk * dv;
        if (batch.state_is_fresh[s] != 0) std::fill_n(state, dk * dv, 0.0f);
        for (int32_t first = batch.query_start[s]; first < end; first += kChunk) {
          const int32_t count = std::min(kChunk, end - first);
          for (int32_t i = 0; i < count; ++i) {
            const int64_t key_row = (first + i) * num_k_heads + h / values_per_key;
            const int64_t value_row = (first + i) * num_v_heads + h;
            l2_normalise(args.q.as<const T>() + key_row * dk, dk, q_scale, q.data() + i * dk);
            l2_normalise(args.k.as<const T>() + key_row * dk, dk, 1.0f, k.data() + i * dk);
            std::copy_n(args.v.as<const T>() + value_row * dv, dv, v.data() + i * dv);
            g[static_cast<size_t>(i)] = args.log_decay.as<const float>()[value_row];
            beta[static_cast<size_t>(i)] = args.beta.as<const float>()[value_row];
          }
          const Head head{q.data(), k.data(),   v.data(), g.data(), beta.data(),
                          state,    out.data(), dk,       dv};
          if (recurrent) {
            recurrent_step(head, values.data());
          } else {
            chunk_step(head, count, values.data());
          }
          for (int32_t i = 0; i < count; ++i)
            for (int64_t d = 0; d < dv; ++d)
              args.out.as<T>()[((first + i) * num_v_heads + h) * dv + d] =
                  T(out[static_cast<size_t>(i * dv + d)]);
        }
      }
    }
  });
}

}  // namespace nibble::ref
