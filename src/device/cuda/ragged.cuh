// What kernels over ragged batches share: 16-bit pairs in registers, and finding a block's
// sequence.
#pragma once

#include "device/cuda/device_batch.h"
#include "device/cuda/scalar.cuh"

namespace nibble::cuda {

// Two neighbours packed into 32 bits, the first in the low half.
template <class T>
__device__ inline uint32_t pack_pair(float first, float second);
template <>
__device__ inline uint32_t pack_pair<Half>(float first, float second) {
  const __half2 pair = __floats2half2_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ inline uint32_t pack_pair<BFloat>(float first, float second) {
#if __CUDA_ARCH__ >= 800
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&pair);
#else
  return Round<BFloat>::of(first).bits | (uint32_t{Round<BFloat>::of(second).bits} << 16);
#endif
}
template <class T>
__device__ inline float2 unpack_pair(uint32_t bits);
template <>
__device__ inline float2 unpack_pair<Half>(uint32_t bits) {
  return __half22float2(*reinterpret_cast<const __half2*>(&bits));
}
template <>
__device__ inline float2 unpack_pair<BFloat>(uint32_t bits) {
  return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u)};
}

// The row of the paged cache where a sequence's token number `position` lies; `table` is the
// sequence's row of batch.block_table.
__device__ __forceinline__ int32_t cache_row_at(const DeviceBatch& batch, const int32_t* table,
                                                int32_t position) {
  return table[position / batch.block_size] * batch.block_size + position % batch.block_size;
}

// A ragged batch cut into tiles of `tile_tokens`: only sequences with more than `longer_than` and
// at most `at_most` new tokens have tiles; the others belong to another kernel of the same
// launcher.
struct Tiling {
  const int32_t* query_start;
  int32_t num_seqs;
  int32_t tile_tokens;
  int32_t longer_than = 0;
  int32_t at_most = INT32_MAX;

  __device__ int32_t tiles_of(int32_t seq) const {
    const int32_t count = query_start[seq + 1] - query_start[seq];
    return count > longer_than && count <= at_most ? (count + tile_tokens - 1) / tile_tokens : 0;
  }
};

struct TilePlace {
  int32_t seq;   // -1: the item lies past the last tile
  int32_t tile;  // within the sequence
};

// Where tile number `item` of the batch lies. All 32 lanes of the warp must call it.
__device__ inline TilePlace find_tile(const Tiling& tiling, int32_t item) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  int32_t before = 0;
  for (int32_t first = 0; first < tiling.num_seqs; first += 32) {
    const int32_t seq = first + lane;
    const int32_t own = seq < tiling.num_seqs ? tiling.tiles_of(seq) : 0;
    int32_t through = own;
    for (int offset = 1; offset < 32; offset <<= 1) {
      const int32_t left = __shfl_up_sync(0xffffffffu, through, offset);
      if (lane >= offset) through += left;
    }
    const uint32_t past = __ballot_sync(0xffffffffu, before + through > item);
    if (past != 0) {
      const int owner = __ffs(static_cast<int>(past)) - 1;
      const int32_t start = before + __shfl_sync(0xffffffffu, through - own, owner);
      return {first + owner, item - start};
    }
    before += __shfl_sync(0xffffffffu, through, 31);
  }
  return {-1, 0};
}

// Tiles of all sequences before `seq`. All 32 lanes of the warp must call it.
__device__ inline int32_t tiles_before(const Tiling& tiling, int32_t seq) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  int32_t sum = 0;
  for (int32_t s = lane; s < seq; s += 32) sum += tiling.tiles_of(s);
  for (int offset = 16; offset > 0; offset >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  return sum;
}

}  // namespace nibble::cuda
