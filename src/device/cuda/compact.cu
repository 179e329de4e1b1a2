// To 12 bits at load and back to 16 for the products of many tokens.
#include "device/cuda/compact.cuh"
#include "device/cuda/cuda_check.h"
#include "device/cuda/launch.h"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kPlaces = 16;
constexpr int kMostFirst = 239;  // the window ends below the exponent of infinity

__device__ __forceinline__ bool in_window(uint32_t bits, int first) {
  const int place = static_cast<int>(bits >> 7 & 255u) - first;
  return place >= 0 && place < kPlaces;
}

// A block per row, padding included: the window that holds the most weights, of several the
// highest.
__global__ void __launch_bounds__(kThreads)
    choose_windows_kernel(const uint16_t* from, int64_t begin, int64_t end,
                          const CompactWeight to) {
  if (begin + blockIdx.x >= end) {
    if (threadIdx.x == 0) to.rows[begin + blockIdx.x] = {0, kCompactExponent, 0, {}};
    return;
  }
  __shared__ int counts[256];
  __shared__ int best[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  counts[thread] = 0;
  __syncthreads();
  const auto* row = reinterpret_cast<const uint4*>(from + int64_t{blockIdx.x} * to.in_features);
  for (int i = thread; i < to.in_features / 8; i += kThreads) {
    const uint4 values = row[i];
    const uint32_t pairs[4] = {values.x, values.y, values.z, values.w};
    for (int p = 0; p < 4; ++p) {
      atomicAdd(counts + (pairs[p] >> 7 & 255u), 1);
      atomicAdd(counts + (pairs[p] >> 23 & 255u), 1);
    }
  }
  __syncthreads();
  int inside = -1;
  if (thread >= 1 && thread <= kMostFirst) {
    inside = 0;
    for (int i = 0; i < kPlaces; ++i) inside += counts[thread + i];
  }
  best[thread] = inside < 0 ? -1 : inside << 8 | thread;  // at most 65535 inside
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (thread < half) best[thread] = max(best[thread], best[thread + half]);
    __syncthreads();
  }
  if (thread > 0) return;
  const auto outside = static_cast<uint16_t>(to.in_features - (best[0] >> 8));
  to.rows[begin + blockIdx.x] = {0, static_cast<uint16_t>(best[0] & 255), outside, {}};
}

// One block: where each row's list begins, behind those of the rows before.
__global__ void __launch_bounds__(kThreads)
    place_rest_kernel(CompactRow* rows, int count, uint32_t* used) {
  __shared__ uint32_t sums[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const int each = (count + kThreads - 1) / kThreads;
  const int begin = min(thread * each, count);
  const int end = min(begin + each, count);
  uint32_t sum = 0;
  for (int i = begin; i < end; ++i) sum += rows[i].rest_count;
  sums[thread] = sum;
  __syncthreads();
  uint32_t at = *used;
  for (int i = 0; i < thread; ++i) at += sums[i];
  for (int i = begin; i < end; ++i) {
    rows[i].rest_begin = at;
    at += rows[i].rest_count;
  }
  __syncthreads();
  if (thread == kThreads - 1) *used = at;
}

// A warp per row: its list, by input.
__global__ void __launch_bounds__(kThreads)
    list_rest_kernel(const uint16_t* from, int64_t begin, int64_t end, const CompactWeight to) {
  const int64_t row = begin + int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= end) return;
  const auto lane = static_cast<int>(threadIdx.x % 32);
  const CompactRow window = to.rows[row];
  const uint16_t* values = from + (row - begin) * to.in_features;
  uint32_t at = window.rest_begin;
  const auto in_features = static_cast<int>(to.in_features);
  for (int k = lane; k < in_features; k += 32) {
    const uint32_t bits = values[k];
    const bool outside = !in_window(bits, window.first);
    const uint32_t all = __ballot_sync(0xffffffffu, outside);
    const uint32_t own = at + static_cast<uint32_t>(__popc(all & ((1u << lane) - 1)));
    const uint32_t entry = static_cast<uint32_t>(k) << 16 | bits;
    if (outside && own < to.rest_capacity) to.rest[own] = entry;
    if (outside && own - window.rest_begin < kCompactAhead)
      to.rows[row].ahead[own - window.rest_begin] = entry;
    at += static_cast<uint32_t>(__popc(all));
  }
}

__device__ __forceinline__ uint32_t stored_bits(uint32_t bits, int first) {
  if (!in_window(bits, first)) return 0;
  return (bits & 0x807fu) | ((bits >> 7 & 255u) - static_cast<uint32_t>(first)) << 7;
}
__device__ __forceinline__ uint32_t stored_pair(uint32_t pair, int first) {
  return stored_bits(pair & 0xffffu, first) | stored_bits(pair >> 16, first) << 16;
}

// A warp per tile, blockIdx.y the row tile.
__global__ void __launch_bounds__(kThreads)
    compact_kernel(const uint16_t* from, int64_t begin, int64_t end, const CompactWeight to) {
  const auto chunks = static_cast<int>(to.in_features / 64);
  const int chunk = static_cast<int>(blockIdx.x * kWarps + threadIdx.x / 32);
  if (chunk >= chunks) return;
  const auto lane = static_cast<int>(threadIdx.x % 32);
  uint32_t pairs[4][4] = {};  // by step
  for (int half = 0; half < 2; ++half) {
    const int64_t row = begin + int64_t{blockIdx.y} * 16 + lane / 4 + 8 * half;
    if (row >= end) continue;
    const int first = to.rows[row].first;
    const auto* values = reinterpret_cast<const uint4*>(from + (row - begin) * to.in_features +
                                                        chunk * 64 + lane % 4 * 8);
    for (int j = 0; j < 2; ++j) {
      const uint4 eight = values[4 * j];
      pairs[2 * j][half] = stored_pair(eight.x, first);
      pairs[2 * j][2 + half] = stored_pair(eight.y, first);
      pairs[2 * j + 1][half] = stored_pair(eight.z, first);
      pairs[2 * j + 1][2 + half] = stored_pair(eight.w, first);
    }
  }
  uint32_t* tile = to.words + ((begin / 16 + blockIdx.y) * chunks + chunk) * kCompactTileWords;
  for (int s = 0; s < 4; ++s) {
    const uint32_t last = pairs[s][3];
    tile[lane * 4 + s] = pairs[s][0] | (last & 0x000f000fu) << 11;
    tile[128 + lane * 4 + s] = pairs[s][1] | (last & 0x00f000f0u) << 7;
    tile[256 + lane * 4 + s] = pairs[s][2] | (last & 0x07000700u) << 3 | (last & 0x80008000u) >> 1;
  }
}

// Exponents back to where they were; no half's sum leaves its half.
__device__ __forceinline__ uint32_t moved(uint32_t pair, int first) {
  const uint32_t by = static_cast<uint32_t>(first - kCompactExponent) << 7;
  return ((pair + by) & 0xffffu) | ((pair >> 16) + by) << 16;
}

// A block per row tile: the words, then the lists.
__global__ void __launch_bounds__(kThreads)
    expand_kernel(const CompactWeight from, int64_t begin, int64_t end, uint16_t* to) {
  const int64_t first_row = begin + int64_t{blockIdx.x} * 16;
  const auto chunks = static_cast<int>(from.in_features / 64);
  const auto warp = static_cast<int>(threadIdx.x / 32);
  const auto lane = static_cast<int>(threadIdx.x % 32);
  const int64_t rows[2] = {first_row + lane / 4, first_row + lane / 4 + 8};
  const int first[2] = {from.rows[rows[0]].first, from.rows[rows[1]].first};
  const auto* words =
      reinterpret_cast<const uint4*>(from.words) + first_row / 16 * chunks * 96 + lane;
  for (int chunk = warp; chunk < chunks; chunk += kWarps) {
    const uint4 w0 = __ldcs(words + chunk * 96);
    const uint4 w1 = __ldcs(words + chunk * 96 + 32);
    const uint4 w2 = __ldcs(words + chunk * 96 + 64);
    uint32_t a[4][4];
    compact_step(w0.x, w1.x, w2.x, a[0]);
    compact_step(w0.y, w1.y, w2.y, a[1]);
    compact_step(w0.z, w1.z, w2.z, a[2]);
    compact_step(w0.w, w1.w, w2.w, a[3]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (rows[half] >= end) continue;
      auto* out = reinterpret_cast<uint4*>(to + (rows[half] - begin) * from.in_features +
                                           chunk * 64 + lane % 4 * 8);
#pragma unroll
      for (int j = 0; j < 2; ++j)
        out[4 * j] = make_uint4(
            moved(a[2 * j][half], first[half]), moved(a[2 * j][2 + half], first[half]),
            moved(a[2 * j + 1][half], first[half]), moved(a[2 * j + 1][2 + half], first[half]));
    }
  }
  __syncthreads();
  for (int64_t row = first_row + warp; row < min(first_row + 16, end); row += kWarps) {
    const CompactRow own = from.rows[row];
    for (int i = lane; i < own.rest_count; i += 32) {
      const uint32_t entry = from.rest[own.rest_begin + static_cast<uint32_t>(i)];
      to[(row - begin) * from.in_features + (entry >> 16)] = static_cast<uint16_t>(entry);
    }
  }
}

}  // namespace

void launch_compact(const uint16_t* from, int64_t begin, int64_t end, const CompactWeight& to,
                    uint32_t* rest_used, cudaStream_t stream) {
  if (begin >= end) return;
  const int64_t rows = end - begin;
  choose_windows_kernel<<<blocks_of(rows, 16) * 16, kThreads, 0, stream>>>(from, begin, end, to);
  NB_CUDA_LAUNCHED();
  place_rest_kernel<<<1, kThreads, 0, stream>>>(to.rows + begin, static_cast<int>(rows), rest_used);
  NB_CUDA_LAUNCHED();
  list_rest_kernel<<<blocks_of(rows, kWarps), kThreads, 0, stream>>>(from, begin, end, to);
  NB_CUDA_LAUNCHED();
  const dim3 tiles(blocks_of(to.in_features / 64, kWarps), blocks_of(rows, 16));
  compact_kernel<<<tiles, kThreads, 0, stream>>>(from, begin, end, to);
  NB_CUDA_LAUNCHED();
}

void launch_expand(const CompactWeight& from, int64_t begin, int64_t end, uint16_t* to,
                   cudaStream_t stream) {
  if (begin >= end) return;
  expand_kernel<<<blocks_of(end - begin, 16), kThreads, 0, stream>>>(from, begin, end, to);
  NB_CUDA_LAUNCHED();
}

}  // namespace nibble::cuda
