// What launchers work out on the host.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/cuda/cuda_check.h"

namespace nibble::cuda {

// Blocks that `count` things take, `each` to a block.
inline unsigned blocks_of(int64_t count, int64_t each) {
  return static_cast<unsigned>((count + each - 1) / each);
}

// How full the card is, of 1, while so many blocks run: the last of them may leave places empty.
inline float fullness(int blocks, int places) {
  const int rounds = (blocks + places - 1) / places;
  return static_cast<float>(blocks) / static_cast<float>(rounds * places);
}

// Whether vectors of so many bytes may be read and written there.
inline bool aligned(const void* pointer, size_t bytes = 16) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// Blocks of `kernel` may use this much dynamic shared memory on this GPU. Needed when it and the
// kernel's static arrays together pass 48 KiB. At every launch: several GPUs each want to be told.
template <class Kernel>
void allow_shared_memory(Kernel* kernel, size_t bytes) {
  NB_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes)));
}

}  // namespace nibble::cuda
