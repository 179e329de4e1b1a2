// Launchers of expert routing and of the sum over experts. Contracts: device/ops.h.
#pragma once

#include <cuda_runtime.h>

#include "device/cuda/scalar.h"
#include "device/cuda/workspace.h"

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
void launch_moe_route(const MoeRouteLaunch& route, const Workspace& workspace, cudaStream_t stream);

// out[t] = sum over i of weights[t, i] * y[t * top_k + i], in f32 and in that order.
struct ExpertJoinLaunch {
  const void* y;         // [num_tokens * top_k, hidden] of type
  const float* weights;  // device, [num_tokens, top_k]
  void* out;             // [num_tokens, hidden] of type
  Scalar type;
  int32_t num_tokens;
  int32_t top_k;
  int32_t hidden;
};
void launch_expert_join(const ExpertJoinLaunch& args, const Workspace& workspace,
                        cudaStream_t stream);

// sums[rows[r]] += weights[r] * y[r]; no row twice.
struct ExpertAddLaunch {
  const void* y;         // [num_rows, hidden] of type
  const int32_t* rows;   // device
  const float* weights;  // device
  float* sums;           // [num_tokens, hidden]
  Scalar type;
  int32_t num_rows;
  int32_t hidden;
};
void launch_expert_add(const ExpertAddLaunch& args, cudaStream_t stream);

// to = from, rounded.
void launch_round(const float* from, void* to, Scalar type, int64_t count, cudaStream_t stream);

}  // namespace nibble::cuda
