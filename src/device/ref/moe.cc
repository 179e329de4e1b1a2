// Routing and the experts' MLPs, one token at a time.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "device/ref/float_types.h"
#include "device/ref/ref_ops.h"

namespace nibble::ref {

void RefOps::moe_route(const Tensor& logits, int32_t top_k, const Tensor& experts,
                       const Tensor& weights) {
  if (logits.num_elements() == 0) return;
  thread_local std::vector<float> scratch;
  thread_local std::vector<int32_t> order;
  const float* scores = floats_of(logits, scratch);
  const int64_t num_experts = logits.shape[1];
  order.resize(static_cast<size_t>(num_experts));
  for (int64_t t = 0; t < logits.shape[0]; ++t) {
    const float* row = scores + t * num_experts;
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + top_k, order.end(), [&](int32_t a, int32_t b) {
      return row[a] != row[b] ? row[a] > row[b] : a < b;
    });
    // The softmax denominator cancels when the chosen weights are renormalised.
    float total = 0;
    for (int32_t i = 0; i < top_k; ++i)
      total += std::exp(row[order[static_cast<size_t>(i)]] - row[order[0]]);
    for (int32_t i = 0; i < top_k; ++i) {
      const int32_t expert = order[static_cast<size_t>(i)];
      experts.as<int32_t>()[t * top_k + i] = expert;
      weights.as<float>()[t * top_k + i] = std::exp(row[expert] - row[order[0]]) / total;
    }
  }
}

void RefOps::moe_mlp(const Tensor& x, const Tensor& experts, const Tensor& weights,
                     std::span<const LinearWeight> gate, std::span<const LinearWeight> up,
                     std::span<const LinearWeight> down, const Tensor& scratch, const Tensor& out) {
  if (x.num_elements() == 0) return;
  const int64_t hidden = x.shape[1];
  const int64_t top_k = experts.shape[1];
  const int64_t width = scratch.shape[1];
  const size_t row_bytes = static_cast<size_t>(width) * sizeof(float);
  auto* scratch_bytes = static_cast<std::byte*>(scratch.data);
  thread_local std::vector<float> sum;
  with_float_type(x.dtype, [&]<class T>(T) {
    const DType act = DTypeOf<T>::value;
    for (int64_t t = 0; t < x.shape[0]; ++t) {
      sum.assign(static_cast<size_t>(hidden), 0.0f);
      for (int64_t i = 0; i < top_k; ++i) {
        const auto e = static_cast<size_t>(experts.as<const int32_t>()[t * top_k + i]);
        const int64_t intermediate = gate[e].out_features;
        const Tensor g{scratch_bytes, act, {1, intermediate}};
        const Tensor u{scratch_bytes + row_bytes, act, {1, intermediate}};
        const Tensor y{scratch_bytes + 2 * row_bytes, act, {1, hidden}};
        linear(x.rows(t, t + 1), gate[e], g);
        linear(x.rows(t, t + 1), up[e], u);
        silu_mul(g, u, g);
        linear(g, down[e], y);
        const float weight = weights.as<const float>()[t * top_k + i];
        for (int64_t d = 0; d < hidden; ++d)
          sum[static_cast<size_t>(d)] += weight * static_cast<float>(y.as<const T>()[d]);
      }
      for (int64_t d = 0; d < hidden; ++d)
        out.as<T>()[t * hidden + d] = T(sum[static_cast<size_t>(d)]);
    }
  });
}

}  // namespace nibble::ref
