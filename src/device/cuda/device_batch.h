// The ragged batch as launchers take it. Plain C++17 without the tensor headers, as scalar.h.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "device/cuda/scalar.h"
#include "device/cuda/workspace.h"

namespace nibble::cuda {

// RaggedBatch of device/ops.h with all arrays in device memory. Launchers size their grids from the
// counts alone and kernels read the arrays, so a captured graph may be replayed over new contents.
struct DeviceBatch {
  int32_t num_tokens = 0;
  int32_t num_seqs = 0;
  const int32_t* query_start = nullptr;
  const int32_t* context_len = nullptr;
  const int32_t* block_table = nullptr;
  int32_t max_blocks = 0;
  int32_t block_size = 0;
  const int32_t* state_slot = nullptr;
  const uint8_t* state_is_fresh = nullptr;
};

}  // namespace nibble::cuda
