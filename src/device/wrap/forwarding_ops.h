// Passes every op on to another implementation: the base of wrappers that watch some of them.
#pragma once

#include "device/ops.h"

namespace nibble {

class ForwardingOps : public Ops {
 public:
  explicit ForwardingOps(Ops& inner) : inner_(inner) {}

  void embed(const Tensor& table, const int32_t* ids, const Tensor& out) override {
    inner_.embed(table, ids, out);
  }
  void gather_rows(const Tensor& x, const int32_t* rows, const Tensor& out) override {
    inner_.gather_rows(x, rows, out);
  }
  void rms_norm(const Tensor& x, const Tensor& weight, float eps, float weight_offset,
                const Tensor& out) override {
    inner_.rms_norm(x, weight, eps, weight_offset, out);
  }
  void gated_rms_norm(const Tensor& x, const Tensor& gate, const Tensor& weight, float eps,
                      const Tensor& out) override {
    inner_.gated_rms_norm(x, gate, weight, eps, out);
  }
  void linear(const Tensor& x, const LinearWeight& weight, const Tensor& out) override {
    inner_.linear(x, weight, out);
  }
  void add(const Tensor& x, const Tensor& y) override { inner_.add(x, y); }
  void split_pairs(const Tensor& x, const Tensor& first, const Tensor& second) override {
    inner_.split_pairs(x, first, second);
  }
  void slice_columns(const Tensor& x, int64_t begin, const Tensor& out) override {
    inner_.slice_columns(x, begin, out);
  }
  void sigmoid_mul(const Tensor& x, const Tensor& gate) override { inner_.sigmoid_mul(x, gate); }
  void silu_mul(const Tensor& gate, const Tensor& up, const Tensor& out) override {
    inner_.silu_mul(gate, up, out);
  }
  void rope(const RopeArgs& args) override { inner_.rope(args); }
  void kv_append(const Tensor& k, const Tensor& v, const RaggedBatch& batch,
                 const KvCache& cache) override {
    inner_.kv_append(k, v, batch, cache);
  }
  void attention(const AttentionArgs& args, const RaggedBatch& batch) override {
    inner_.attention(args, batch);
  }
  void causal_conv1d(const ConvArgs& args, const RaggedBatch& batch) override {
    inner_.causal_conv1d(args, batch);
  }
  void delta_gates(const Tensor& a, const Tensor& b, const Tensor& a_log, const Tensor& dt_bias,
                   const Tensor& log_decay, const Tensor& beta) override {
    inner_.delta_gates(a, b, a_log, dt_bias, log_decay, beta);
  }
  void gated_delta_net(const GatedDeltaNetArgs& args, const RaggedBatch& batch) override {
    inner_.gated_delta_net(args, batch);
  }
  void moe_route(const Tensor& logits, int32_t top_k, const Tensor& experts,
                 const Tensor& weights) override {
    inner_.moe_route(logits, top_k, experts, weights);
  }
  void moe_mlp(const Tensor& x, const Tensor& experts, const Tensor& weights,
               std::span<const LinearWeight> gate, std::span<const LinearWeight> up,
               std::span<const LinearWeight> down, const Tensor& scratch,
               const Tensor& out) override {
    inner_.moe_mlp(x, experts, weights, gate, up, down, scratch, out);
  }
  void argmax(const Tensor& logits, const Tensor& ids) override { inner_.argmax(logits, ids); }

 private:
  Ops& inner_;
};

}  // namespace nibble
