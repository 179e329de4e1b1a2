// Element types as the launchers see them. The launchers' headers are C++17 without the tensor
// headers, so that an old toolkit compiles them too (sm_70 needs CUDA 12 or earlier).
#pragma once

#include <cstddef>
#include <cstdint>

namespace nibble::cuda {

enum class Scalar : uint8_t { kF32, kF16, kBF16, kE4M3, kE5M2 };

constexpr size_t scalar_size(Scalar scalar) {
  return scalar == Scalar::kF32 ? 4 : scalar == Scalar::kF16 || scalar == Scalar::kBF16 ? 2 : 1;
}

}  // namespace nibble::cuda
