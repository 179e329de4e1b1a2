// The reference operations: plain loops in f32, the definition of truth for every other backend,
// and the base class of the CPU backend, which overrides what it makes faster. One thread.
#pragma once

#include <vector>

#include "device/ops.h"

namespace nibble::ref {

class RefOps : public Ops {
 public:
  void embed(const Tensor& table, const int32_t* ids, const Tensor& out) override;
  void gather_rows(const Tensor& x, const int32_t* rows, const Tensor& out) override;
  void rms_norm(const Tensor& x, const Tensor& weight, float eps, float weight_offset,
                const Tensor& out) override;
  void gated_rms_norm(const Tensor& x, const Tensor& gate, const Tensor& weight, float eps,
                      const Tensor& out) override;
  void linear(const Tensor& x, const LinearWeight& weight, const Tensor& out) override;
  void add(const Tensor& x, const Tensor& y) override;
  void split_pairs(const Tensor& x, const Tensor& first, const Tensor& second) override;
  void slice_columns(const Tensor& x, int64_t begin, const Tensor& out) override;
  void sigmoid_mul(const Tensor& x, const Tensor& gate) override;
  void silu_mul(const Tensor& gate, const Tensor& up, const Tensor& out) override;
  void rope(const RopeArgs& args) override;
  void kv_append(const Tensor& k, const Tensor& v, const RaggedBatch& batch,
                 const KvCache& cache) override;
  void attention(const AttentionArgs& args, const RaggedBatch& batch) override;
  void causal_conv1d(const ConvArgs& args, const RaggedBatch& batch) override;
  void delta_gates(const Tensor& a, const Tensor& b, const Tensor& a_log, const Tensor& dt_bias,
                   const Tensor& log_decay, const Tensor& beta) override;
  void gated_delta_net(const GatedDeltaNetArgs& args, const RaggedBatch& batch) override;
  void moe_route(const Tensor& logits, int32_t top_k, const Tensor& experts,
                 const Tensor& weights) override;
  void moe_mlp(const Tensor& x, const Tensor& experts, const Tensor& weights,
               std::span<const LinearWeight> gate, std::span<const LinearWeight> up,
               std::span<const LinearWeight> down, const Tensor& scratch,
               const Tensor& out) override;
  void argmax(const Tensor& logits, const Tensor& ids) override;
};

// Row `row` of a weight as floats, dequantized by the contract in tensor/linear_weight.h.
// out [in_features].
void dequantize_row(const LinearWeight& weight, int64_t row, float* out);

}  // namespace nibble::ref
