// What the files of attention share.
#pragma once

#include "device/cuda/attention.h"

namespace nibble::cuda {

struct AttentionParams {
  AttentionLaunch args;
  DeviceBatch batch;
  int32_t group;  // query heads per kv head
  Workspace workspace;
};

// Sequences with at most this many new tokens in a mixed step take the decode kernel.
constexpr int32_t kLongestDecode = 8;

constexpr float kLog2E = 1.4426950408889634f;  // softmax in powers of two

// New tokens of sequences with at most `at_most` of them, where decode_supports(); with the gate,
// if there is one.
AttentionEnd launch_decode(const AttentionParams& params, int32_t at_most, cudaStream_t stream);
// Sequences with more than `longer_than` new tokens, where prefill_supports(), which asks for
// wgmma.
void launch_prefill(const AttentionParams& params, int32_t longer_than, cudaStream_t stream);
// The same, where small_prefill_supports().
void launch_small_prefill(const AttentionParams& params, int32_t longer_than, cudaStream_t stream);
// Sequences with at most `at_most` new tokens, where lanes_support(); with the gate.
AttentionEnd launch_lanes(const AttentionParams& params, int32_t at_most, cudaStream_t stream);
// The same on the tensor cores of GPUs before sm_80, where pre80_decode_supports().
AttentionEnd launch_pre80_decode(const AttentionParams& params, int32_t at_most,
                                 cudaStream_t stream);
bool decode_supports(const AttentionParams& params);
bool pre80_decode_supports(const AttentionParams& params);
bool lanes_support(const AttentionParams& params);
bool prefill_supports(const AttentionParams& params);
bool small_prefill_supports(const AttentionParams& params);

}  // namespace nibble::cuda
