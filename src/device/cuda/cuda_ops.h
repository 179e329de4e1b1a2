// The seam on a GPU: each member checks nothing, turns tensors into a launch struct and enqueues on
// the device's compute stream. The kernels live one family per .cu file behind a header of plain
// structs; cuda_ops.cc and cuda_ops_mixers.cc (sequence mixing and experts) map tensors to them.
#pragma once

#include <vector>

#include "device/cuda/cuda_check.h"
#include "device/cuda/elementwise.h"
#include "device/cuda/linear.h"
#include "device/cuda/scalar.h"
#include "device/cuda/workspace.h"
#include "device/ops.h"
#include "tensor/arena.h"

namespace nibble::cuda {

class CudaOps final : public Ops {
 public:
  // Both belong to the device, which outlives its operations.
  CudaOps(cudaStream_t stream, Workspace& workspace) : stream_(stream), workspace_(workspace) {}

  // There are packed weights of so many inputs, in groups of `group_size`: operations before their
  // products leave activations of few tokens in the form of fixed_rows.h as well.
  void expect_packed(int64_t in_features, int64_t group_size);
  // Memory has been written to other than by operations.
  void memory_changed() { fixed_ = {}; }

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

  // cuda_ops_mixers.cc
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
  int64_t recordable_moe_tokens(std::span<const LinearWeight> gate,
                                std::span<const LinearWeight> up,
                                std::span<const LinearWeight> down) const override;
  void argmax(const Tensor& logits, const Tensor& ids) override;

  // Fused forms: one launch each where shapes and types allow.
  void add_rms_norm(const Tensor& x, const Tensor& y, const Tensor& weight, float eps,
                    float weight_offset, const Tensor& out) override;
  void linear_group(const Tensor& x, std::initializer_list<LinearPart> parts) override;
  void delta_net_inputs(const DeltaNetInputsArgs& args, const RaggedBatch& batch) override;
  void gated_delta_net_normed(const GatedDeltaNetArgs& args, const RaggedBatch& batch,
                              const Tensor& gate, const Tensor& norm_weight, float eps) override;
  void attention_gated(const AttentionArgs& args, const RaggedBatch& batch,
                       const Tensor& gate) override;
  void attention_inputs(const AttentionInputsArgs& args, const RaggedBatch& batch) override;

 private:
  // The stream of an operation that writes activations: what `fixed_` was made of may change.
  cudaStream_t writing() {
    fixed_ = {};
    return stream_;
  }
  FixedRows room_for(const Tensor& out, int64_t in_features) const;
  LinearLaunch launch_of(const Tensor& x, const LinearWeight& weight, const Tensor& out) const;
  void written_by_linear(const Tensor& out);
  bool paired_experts(DType activations, std::span<const LinearWeight> gate,
                      std::span<const LinearWeight> up, std::span<const LinearWeight> down,
                      ExpertsLaunch* inner, ExpertsLaunch* outer) const;
  void moe_mlp_grouped(const Tensor& x, const Tensor& experts, const Tensor& weights,
                       size_t num_experts, ExpertsLaunch inner, ExpertsLaunch outer,
                       const Tensor& out);
  void join_experts(const Tensor& y, const Tensor& weights, const Tensor& out);
  void moe_mlp_by_expert(const Tensor& x, const Tensor& experts, const Tensor& weights,
                         std::span<const LinearWeight> gate, std::span<const LinearWeight> up,
                         std::span<const LinearWeight> down, const Tensor& out, Arena& area);

  cudaStream_t stream_;
  Workspace& workspace_;
  // The activations that the workspace's fixed rows hold; nothing has been written since but
  // products.
  struct Fixed {
    const void* x = nullptr;
    FixedRows rows;
  };
  Fixed fixed_;
  struct PackedInputs {
    int64_t in_features;
    bool small_groups;  // some, of less than kFixedGroup
  };
  std::vector<PackedInputs> packed_inputs_;  // of expect_packed()
  std::vector<int32_t> chosen_experts_;      // moe_mlp_by_expert's copies
  std::vector<float> expert_weights_;
};

// RopeArgs without the tensor.
RopeLaunch rope_launch(const RopeArgs& args, int64_t num_tokens);

// The launchers' name of a dtype; a programmer error for integers and F64.
inline Scalar scalar_of(DType dtype) {
  switch (dtype) {
    case DType::kF32: return Scalar::kF32;
    case DType::kF16: return Scalar::kF16;
    case DType::kBF16: return Scalar::kBF16;
    case DType::kF8E4M3: return Scalar::kE4M3;
    case DType::kF8E5M2: return Scalar::kE5M2;
    default: break;
  }
  NB_CHECK(false, "no kernel computes with %s", dtype_name(dtype).data());
  return Scalar::kF32;
}

}  // namespace nibble::cuda
