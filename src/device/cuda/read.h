// Reads device memory and does nothing with it: the bound of products of few tokens.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "device/cuda/workspace.h"

namespace nibble::cuda {

// Reads `bytes` at `data`, both multiples of 16. Uses four bytes of the workspace's scratch.
void enqueue_read(const void* data, size_t bytes, const Workspace& workspace, cudaStream_t stream);

}  // namespace nibble::cuda
