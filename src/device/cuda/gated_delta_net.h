// Launchers of the gated delta rule and of what feeds it. Contracts: device/ops.h.
#pragma once

#include "device/cuda/device_batch.h"

namespace nibble::cuda {

struct ConvLaunch {
  const void* x;       // [num_tokens, channels] of type
  const void* weight;  // [channels, kernel] of weight_type
  void* state;         // [num_slots, channels, kernel - 1] of type
  // Channels [0, end[0]) go to out[0] as [num_tokens, end[0]] of type, those up to end[1] to
  // out[1], the rest to out[2]; none of them x. One output: end = {channels, channels}.
  void* out[3];
  int32_t end[2];
  Scalar type;
  Scalar weight_type;
  int32_t channels;
  int32_t kernel;  // 2..8
};
void launch_causal_conv1d(const ConvLaunch& conv, const DeviceBatch& batch,
                          const Workspace& workspace, cudaStream_t stream);

struct DeltaGatesLaunch {
  const void* a;  // [num_tokens, num_heads] of type
  const void* b;
  const void* a_log;  // [num_heads] of a_log_type
  const void* dt_bias;
  float* log_decay;  // [num_tokens, num_heads]
  float* beta;
  Scalar type;
  Scalar a_log_type;
  Scalar dt_bias_type;
  int32_t num_tokens;
  int32_t num_heads;
};
void launch_delta_gates(const DeltaGatesLaunch& gates, const Workspace& workspace,
                        cudaStream_t stream);
// Both, of elements of one type; few tokens in one launch.
void launch_delta_inputs(const ConvLaunch& conv, const DeltaGatesLaunch& gates,
                         const DeviceBatch& batch, const Workspace& workspace, cudaStream_t stream);

// Which form longer sequences take. kAuto: chunked on tensor cores where element type and card
// allow it, otherwise by columns. The others are for tests and benchmarks.
enum class DeltaRuleForm : uint8_t { kAuto, kRecurrent, kColumns, kChunkedMma };

// The gated norm of device/ops.h over the rule's output.
struct DeltaNorm {
  const void* gate = nullptr;  // [num_tokens, num_v_heads, v_dim] of the rule's type; null: no norm
  const void* weight = nullptr;  // [v_dim] of weight_type
  Scalar weight_type = Scalar::kF32;
  float eps = 0;
};

struct DeltaRuleLaunch {
  const void* q;  // [num_tokens, num_k_heads, k_dim] of type
  const void* k;
  const void* v;  // [num_tokens, num_v_heads, v_dim]
  const float* log_decay;
  const float* beta;
  float* state;  // [num_slots, num_v_heads, k_dim, v_dim]
  void* out;     // [num_tokens, num_v_heads, v_dim] of type
  Scalar type;
  int32_t num_k_heads;
  int32_t num_v_heads;
  int32_t k_dim;  // at most 256
  int32_t v_dim;  // at most 1024
  DeltaRuleForm form = DeltaRuleForm::kAuto;
  DeltaNorm norm = {};
};
// Whether the norm has been done as well, if there is one. A step that needs more than
// workspace.scratch (17 KiB per chunk of 64 tokens and value head) runs in pieces.
bool launch_gated_delta_net(const DeltaRuleLaunch& rule, const DeviceBatch& batch,
                            const Workspace& workspace, cudaStream_t stream);

}  // namespace nibble::cuda
