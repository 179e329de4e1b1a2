// What launchers work out on the host.
#pragma once

#include <cstddef>
#include <cstdint>

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

}  // namespace nibble::cuda
