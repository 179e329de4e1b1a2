// Verifies every call before and after passing it on: shapes, dtypes, ids and blocks in range
// before; no NaN or infinity in what was written after. Aborts with the op, the argument and what
// was found. For tests and debugging; needs memory that the host can read.
#pragma once

#include "device/wrap/forwarding_ops.h"

namespace nibble {

class CheckedOps final : public ForwardingOps {
 public:
  using ForwardingOps::ForwardingOps;

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

}  // namespace nibble
