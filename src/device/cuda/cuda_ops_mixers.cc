// Attention, convolution, delta rule and experts: tensors to launches.
#include "device/cuda/cuda_ops.h"

namespace nibble::cuda {

void CudaOps::attention(const AttentionArgs&, const RaggedBatch&) {
  NB_CHECK(false, "attention has no CUDA kernel yet");
}

void CudaOps::causal_conv1d(const ConvArgs&, const RaggedBatch&) {
  NB_CHECK(false, "causal_conv1d has no CUDA kernel yet");
}

void CudaOps::delta_gates(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                          const Tensor&) {
  NB_CHECK(false, "delta_gates has no CUDA kernel yet");
}

void CudaOps::gated_delta_net(const GatedDeltaNetArgs&, const RaggedBatch&) {
  NB_CHECK(false, "gated_delta_net has no CUDA kernel yet");
}

void CudaOps::moe_route(const Tensor&, int32_t, const Tensor&, const Tensor&) {
  NB_CHECK(false, "moe_route has no CUDA kernel yet");
}

void CudaOps::moe_mlp(const Tensor&, const Tensor&, const Tensor&, const LinearWeight*,
                      const LinearWeight*, const LinearWeight*, const Tensor&, const Tensor&) {
  NB_CHECK(false, "moe_mlp has no CUDA kernel yet");
}

}  // namespace nibble::cuda
