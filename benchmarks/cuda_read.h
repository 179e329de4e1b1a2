// Reads device memory and does nothing with it.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace nibble::bench {

// Reads `bytes` at `data`, both multiples of 16; `sink` is 4 bytes of device memory.
void enqueue_read(const void* data, size_t bytes, int num_sms, void* sink, cudaStream_t stream);

}  // namespace nibble::bench
