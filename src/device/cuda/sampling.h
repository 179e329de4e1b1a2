// Launchers of token choice over logits that stay on the GPU. Contract: Ops::argmax in
// device/ops.h.
#pragma once

#include <cuda_runtime.h>

#include "device/cuda/workspace.h"

namespace nibble::cuda {

// Row r's largest logit: ids[r], the lowest index among equals, and its log probability under the
// softmax of the row in logprobs[r] (null: not wanted). NaN and -infinity are never
// chosen: a row of nothing else gives -1.
struct ArgmaxLaunch {
  const float* logits;  // [num_rows, vocab_size]
  int32_t num_rows;
  int32_t vocab_size;
  int32_t* ids;
  float* logprobs;
};
// Takes num_rows * kArgmaxParts * 16 bytes of scratch.
constexpr int kArgmaxParts = 32;
void launch_argmax(const ArgmaxLaunch& argmax, const Workspace& workspace, cudaStream_t stream);

}  // namespace nibble::cuda
