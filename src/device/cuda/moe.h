// Launchers of expert routing. Contracts: device/ops.h.
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

}  // namespace nibble::cuda
