// Room for BF16 Linears in 12 bits, as device/cuda/compact.h describes them: for the GPU that fills
// it and for the planner that only counts.
#pragma once

#include "tensor/arena.h"
#include "tensor/linear_weight.h"

namespace nibble {

// Whether the form is for a weight of this type and shape. Below a row tile of outputs it would be
// larger than the weight.
inline bool compact_fits(const LinearWeight& on_disk) {
  return !on_disk.quantized() && on_disk.dense.dtype == DType::kBF16 &&
         on_disk.in_features % 64 == 0 && on_disk.in_features <= UINT16_MAX &&
         on_disk.out_features >= 16;
}

// Up to how many sequences decode faster so, on a GPU whose code is for this compute capability, 0
// if unknown. On sm_90a tens of tokens have kernels of their own (`nibble bench decode
// --compact-weights on|off`, docs/performance.md).
inline int compact_seqs_of(int compute_capability) {
  return compute_capability < 80 ? 0 : compute_capability == 90 ? 64 : 16;
}

// Weights outside their row's window that there is room for: one in 256, 1 % of the bytes.
inline int64_t compact_rest_capacity(const LinearWeight& on_disk) {
  return (on_disk.out_features * on_disk.in_features + 255) / 256;
}

// Unfilled. The last of `rest` counts those in use.
inline LinearWeight place_compact(const LinearWeight& on_disk, Arena& arena) {
  LinearWeight weight = on_disk;
  weight.dense = {};
  const int64_t row_tiles = (on_disk.out_features + 15) / 16;
  weight.compact = {
      arena.tensor(DType::kI32, {row_tiles, on_disk.in_features / 64, 3, 32, 4}, "12-bit weight"),
      arena.tensor(DType::kI32, {row_tiles * 16, 4}, "rows of a 12-bit weight"),
      arena.tensor(DType::kI32, {compact_rest_capacity(on_disk) + 1}, "rest of a 12-bit weight")};
  return weight;
}

}  // namespace nibble
