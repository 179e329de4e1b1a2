// Computes nothing and counts: running the real forward pass over it, with a counting arena whose
// tensors have no memory, gives the activations of a step, and the bytes and floating-point
// operations that step needs. The planner's and the roofline's only source.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "device/ops.h"

namespace nibble {

// Of one forward pass. Bytes are what must move between memory and the chip at least once: each
// weight, key, value and state a step uses. Activations are left out: a fused backend keeps them.
struct StepCost {
  int64_t linear_weight_bytes = 0;
  int64_t linear_flops = 0;  // 2 per multiply-add
  int64_t kv_bytes = 0;      // keys and values: the cached ones read once a sequence, new written
  int64_t state_bytes = 0;   // recurrent and conv states, read and written
  int64_t attention_flops = 0;  // scores and weighted sums over visible positions only
  int64_t delta_net_flops = 0;  // chunked form for runs of tokens, recurrent form for single ones
  int64_t embedding_bytes = 0;  // rows looked up
  int64_t bytes() const { return linear_weight_bytes + kv_bytes + state_bytes + embedding_bytes; }
  int64_t flops() const { return linear_flops + attention_flops + delta_net_flops; }
};

// Batch arrays may be null when num_seqs is 0: then nothing per sequence is counted.
class MeteringOps final : public Ops {
 public:
  const StepCost& cost() const { return cost_; }

  void embed(const Tensor& table, const int32_t*, const Tensor& out) override {
    const auto element = static_cast<int64_t>(dtype_size(table.dtype));
    cost_.embedding_bytes += out.num_elements() * element;
  }
  void gather_rows(const Tensor&, const int32_t*, const Tensor&) override {}
  void rms_norm(const Tensor&, const Tensor&, float, float, const Tensor&) override {}
  void gated_rms_norm(const Tensor&, const Tensor&, const Tensor&, float, const Tensor&) override {}
  void linear(const Tensor& x, const LinearWeight& weight, const Tensor&) override {
    const int64_t num_tokens = x.num_elements() / weight.in_features;
    if (num_tokens == 0) return;
    cost_.linear_flops += 2 * num_tokens * weight.in_features * weight.out_features;
    cost_.linear_weight_bytes += static_cast<int64_t>(weight.bytes_read());
  }
  void add(const Tensor&, const Tensor&) override {}
  void split_pairs(const Tensor&, const Tensor&, const Tensor&) override {}
  void slice_columns(const Tensor&, int64_t, const Tensor&) override {}
  void sigmoid_mul(const Tensor&, const Tensor&) override {}
  void silu_mul(const Tensor&, const Tensor&, const Tensor&) override {}
  void rope(const RopeArgs&) override {}
  void kv_append(const Tensor& k, const Tensor& v, const RaggedBatch& batch,
                 const KvCache& cache) override {
    if (batch.num_seqs == 0) return;
    const auto element = static_cast<int64_t>(dtype_size(cache.format.dtype));
    cost_.kv_bytes += (k.num_elements() + v.num_elements()) * element;
  }
  void attention(const AttentionArgs& args, const RaggedBatch& batch) override {
    const int64_t head_dim = args.q.shape[2];
    const auto element = static_cast<int64_t>(dtype_size(args.cache.format.dtype));
    for (int32_t s = 0; s < batch.num_seqs; ++s) {
      const int64_t cached = batch.context_len[s];
      const int64_t fresh = batch.query_start[s + 1] - batch.query_start[s];
      const int64_t pairs = fresh * cached + fresh * (fresh + 1) / 2;  // (query, visible position)
      cost_.attention_flops += 4 * args.q.shape[1] * head_dim * pairs;
      cost_.kv_bytes += 2 * cached * args.num_kv_heads * head_dim * element;
    }
  }
  void causal_conv1d(const ConvArgs& args, const RaggedBatch& batch) override {
    const int64_t slot = args.state.shape[1] * args.state.shape[2];
    cost_.state_bytes +=
        2 * batch.num_seqs * slot * static_cast<int64_t>(dtype_size(args.state.dtype));
  }
  void delta_gates(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                   const Tensor&) override {}
  void gated_delta_net(const GatedDeltaNetArgs& args, const RaggedBatch& batch) override {
    constexpr int64_t kChunk = 64;
    const int64_t heads = args.v.shape[1];
    const int64_t k_dim = args.q.shape[2];
    const int64_t v_dim = args.v.shape[2];
    const int64_t slot = heads * k_dim * v_dim;
    cost_.state_bytes += 2 * batch.num_seqs * slot * static_cast<int64_t>(sizeof(float));
    for (int32_t s = 0; s < batch.num_seqs; ++s) {
      const int64_t tokens = batch.query_start[s + 1] - batch.query_start[s];
      // Recurrent: decay, S'k, the outer product, S'q. Chunked, per token: W S, Q S and K'V' over
      // the state, and K K', Q K', T K, T V, A V' within a chunk.
      const int64_t per_head = tokens == 1
                                   ? 7 * k_dim * v_dim
                                   : 6 * k_dim * v_dim + 2 * kChunk * (3 * k_dim + 2 * v_dim);
      cost_.delta_net_flops += tokens * heads * per_head;
    }
  }
  void moe_route(const Tensor& logits, int32_t, const Tensor&, const Tensor&) override {
    num_experts_ = logits.shape[1];
  }
  // Experts read: the number expected when tokens route uniformly.
  void moe_mlp(const Tensor& x, const Tensor& experts, const Tensor&,
               std::span<const LinearWeight> gate, std::span<const LinearWeight> up,
               std::span<const LinearWeight> down, const Tensor&, const Tensor&) override {
    const int64_t num_tokens = x.shape[0];
    const int64_t top_k = experts.shape[1];
    if (num_tokens == 0 || num_experts_ == 0) return;
    const double missed =
        std::pow(1.0 - static_cast<double>(top_k) / static_cast<double>(num_experts_),
                 static_cast<double>(num_tokens));
    const double touched = static_cast<double>(num_experts_) * (1.0 - missed);
    for (const LinearWeight* weight : {gate.data(), up.data(), down.data()}) {
      cost_.linear_flops += 2 * num_tokens * top_k * weight->in_features * weight->out_features;
      cost_.linear_weight_bytes +=
          static_cast<int64_t>(touched * static_cast<double>(weight->num_bytes()));
    }
  }
  void argmax(const Tensor&, const Tensor&) override {}

 private:
  StepCost cost_;
  int64_t num_experts_ = 0;
};

}  // namespace nibble
