// What the files of the gated delta rule share.
#pragma once

#include "device/cuda/gated_delta_net.h"

namespace nibble::cuda {

constexpr int kDeltaDim = 128;  // head dims of the fast kernels
constexpr float kL2Eps = 1e-6f;
constexpr int kLongestRecurrent = 8;  // tokens of a sequence that still take the recurrent kernel

struct Rule {
  const void* q;
  const void* k;
  const void* v;
  const float* log_decay;
  const float* beta;
  float* state;
  void* out;
  int32_t num_k_heads;
  int32_t num_v_heads;
  int32_t k_dim;
  int32_t v_dim;
  float q_scale;
  DeviceBatch batch;
};

// Sequences with more than kLongestRecurrent new tokens, head dims 128, type F16 or BF16, sm_80 or
// later. False: scratch is too small for a single chunk; nothing was launched.
bool launch_chunked_delta_rule(const Rule& rule, Scalar type, const Workspace& workspace,
                               bool allow_wgmma, cudaStream_t stream);
// The same sequences, any card and type.
void launch_delta_rule_columns(const Rule& rule, Scalar type, cudaStream_t stream);

}  // namespace nibble::cuda
