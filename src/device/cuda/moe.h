// Launchers of expert routing and of the sum over experts. Contracts: device/ops.h.
#pragma once

#include <cuda_runtime.h>

#include "device/cuda/scalar.h"

namespace nibble::cuda {

struct MoeRouteLaunch {
  const void* logits;  // [num_tokens, num_experts] of type
  Scalar type;
  int32_t* experts;  // [num_tokens, top_k], by falling weight; equal logits: the lower expert first
  float* weights;
  int32_t num_tokens;
  int32_t num_experts;  // at most 1024
  int32_t top_k;        // at most 32
};
void launch_moe_route(const MoeRouteLaunch& route, cudaStream_t stream);

// One expert's contribution to one token: sum (=|+=) *weight * y, and after the last out = sum.
struct ExpertSumLaunch {
  const void* y;        // [hidden] of type
  const float* weight;  // device
  float* sum;           // [hidden]
  void* out;            // [hidden] of type
  Scalar type;
  int32_t hidden;
  bool first;
  bool last;
};
void launch_expert_sum(const ExpertSumLaunch& args, cudaStream_t stream);

}  // namespace nibble::cuda
