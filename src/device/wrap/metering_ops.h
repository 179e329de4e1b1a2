// Computes nothing and counts: running the real forward pass over it, with a counting arena whose
// tensors have no memory, gives the activations of a step and what its linears read and multiply.
#pragma once

#include <cstdint>

#include "device/ops.h"

namespace nibble {

class MeteringOps final : public Ops {
 public:
  int64_t linear_flops() const { return linear_flops_; }  // 2 per multiply-add
  int64_t linear_weight_bytes() const { return linear_weight_bytes_; }

  void embed(const Tensor&, const int32_t*, const Tensor&) override {}
  void gather_rows(const Tensor&, const int32_t*, const Tensor&) override {}
  void rms_norm(const Tensor&, const Tensor&, float, float, const Tensor&) override {}
  void gated_rms_norm(const Tensor&, const Tensor&, const Tensor&, float, const Tensor&) override {}
  void linear(const Tensor& x, const LinearWeight& weight, const Tensor&) override {
    const int64_t num_tokens = x.num_elements() / weight.in_features;
    linear_flops_ += 2 * num_tokens * weight.in_features * weight.out_features;
    const size_t bytes = weight.quantized() ? weight.packed.num_bytes() + weight.scale.num_bytes() +
                                                  weight.zero_point.num_bytes()
                                            : weight.dense.num_bytes();
    linear_weight_bytes_ += static_cast<int64_t>(bytes);
  }
  void add(const Tensor&, const Tensor&) override {}
  void split_pairs(const Tensor&, const Tensor&, const Tensor&) override {}
  void slice_columns(const Tensor&, int64_t, const Tensor&) override {}
  void sigmoid_mul(const Tensor&, const Tensor&) override {}
  void silu_mul(const Tensor&, const Tensor&, const Tensor&) override {}
  void rope(const RopeArgs&) override {}
  void kv_append(const Tensor&, const Tensor&, const RaggedBatch&, const KvCache&) override {}
  void attention(const AttentionArgs&, const RaggedBatch&) override {}
  void causal_conv1d(const ConvArgs&, const RaggedBatch&) override {}
  void delta_gates(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                   const Tensor&) override {}
  void gated_delta_net(const GatedDeltaNetArgs&, const RaggedBatch&) override {}
  void moe_route(const Tensor&, int32_t, const Tensor&, const Tensor&) override {}
  void moe_mlp(const Tensor&, const Tensor&, const Tensor&, const LinearWeight*,
               const LinearWeight*, const LinearWeight*, const Tensor&, const Tensor&) override {}

 private:
  int64_t linear_flops_ = 0;
  int64_t linear_weight_bytes_ = 0;
};

}  // namespace nibble
