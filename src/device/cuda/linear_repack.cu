// Disk layout to tiles at load, and weights back to 16 bits for the products of many tokens. Both
// are bound by memory: a warp per tile.
#include "device/cuda/launch.h"
#include "device/cuda/linear_values.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 8;

// One warp per tile of 16 x 64; lane 4 g + t gathers the eight disk words it needs: rows g and
// g + 8, j in {0, 1}: word (32 j + 8 t) / 8 of the chunk.
__global__ void repack_kernel(const RepackLaunch args) {
  const int64_t chunks = args.to.in_features / 64;
  const int64_t tiles = (args.end - args.begin + 15) / 16 * chunks;
  const int64_t tile = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
  if (tile >= tiles) return;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int64_t words_per_row = args.to.in_features / 8;
  uint32_t result[4] = {};
  for (int half = 0; half < 2; ++half) {
    const int64_t row = tile / chunks * 16 + g + 8 * half;
    if (row >= args.end - args.begin) continue;
    for (int j = 0; j < 2; ++j) {
      const uint32_t word = args.packed[row * words_per_row + tile % chunks * 8 + 4 * j + t];
      for (int e = 0; e < 8; ++e) {
        const int pair = e % 4 / 2 * 2 + half;
        result[2 * j + e / 4] |= ((word >> (4 * e)) & 15u) << (4 * (pair + 4 * (e % 2)));
      }
    }
  }
  const int64_t to = (args.begin / 16 * chunks + tile) * 32 + lane;
  static_cast<uint4*>(const_cast<void*>(args.to.values))[to] =
      make_uint4(result[0], result[1], result[2], result[3]);
}

// One thread per (padded row, group).
template <class T>
__global__ void repack_scales_kernel(const RepackLaunch args) {
  const int64_t num_groups = args.to.num_groups;
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t rows = args.end - args.begin;
  if (index >= (rows + 15) / 16 * 16 * num_groups) return;
  const int64_t row = index / num_groups;
  const int64_t group = index % num_groups;
  float scale = 0;
  float zero = 0;
  if (row < rows) {
    scale = to_float(static_cast<const T*>(args.scale)[index]);
    if (args.zero_point != nullptr) zero = args.zero_point[index];
  }
  T* to = static_cast<T*>(const_cast<void*>(args.to.scale)) +
          tiled_scale_index(args.begin + row, group, num_groups);
  to[0] = Round<T>::of(scale);
  to[1] = Round<T>::of(magic<T>() + 8.0f + zero);
}

// One thread per 8 inputs of a row.
template <class T, class W, Layout layout>
__global__ void dequantize_kernel(const Weight weight, int64_t begin, int64_t end, T* to) {
  const int64_t per_row = (weight.in_features + 7) / 8;
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= (end - begin) * per_row) return;
  const int64_t row = index / per_row;
  const int64_t first = index % per_row * 8;
  T* out = to + row * weight.in_features + first;
  const auto count = static_cast<int>(min(int64_t{8}, weight.in_features - first));
  for (int i = 0; i < count; ++i)
    out[i] = Round<T>::of(weight_value<W, layout>(weight, begin + row, first + i));
}

// Tiles to elements of the type of their scales: a warp per tile, blockIdx.y the row tile.
// Lane 4 g + t writes inputs 32 j + 8 t .. + 7 of rows g and g + 8. Half-units (32 inputs) count
// groups, and nothing divides by a 64-bit number: memory should be the only limit.
template <class T>
__global__ void dequantize_tiles_kernel(const Weight weight, int64_t begin, int64_t end,
                                        int halves_per_group, T* to) {
  const auto chunks = static_cast<int>(weight.in_features / 64);
  const int chunk = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  if (chunk >= chunks) return;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int64_t row_tile = begin / 16 + blockIdx.y;
  const uint4 words =
      __ldcs(static_cast<const uint4*>(weight.values) + (row_tile * chunks + chunk) * 32 + lane);
  const uint32_t word[4] = {words.x, words.y, words.z, words.w};
  struct alignas(16) Vector {
    T values[8];
  };
  struct alignas(8) Scales {
    T values[4];
  };
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int group = (chunk * 2 + j) / halves_per_group;
    const Scales scales =
        static_cast<const Scales*>(weight.scale)[(row_tile * weight.num_groups + group) * 8 + g];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = int64_t{blockIdx.y} * 16 + g + 8 * half;
      const float s = to_float(scales.values[2 * half]);
      const float zero = to_float(scales.values[2 * half + 1]);
      Vector out;
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int pair = e % 4 / 2 * 2 + half;
        const uint32_t q = (word[2 * j + e / 4] >> (4 * (pair + 4 * (e % 2)))) & 15u;
        // 2^23 + q is exact, so is the difference: no conversion instruction.
        const float value = __uint_as_float(0x4b000000u | q) - (8388608.0f - magic<T>() + zero);
        out.values[e] = Round<T>::of(value * s);
      }
      if (begin + row < end)
        *reinterpret_cast<Vector*>(to + row * weight.in_features + chunk * 64 + 32 * j + 8 * t) =
            out;
    }
  }
}

unsigned blocks_for(int64_t threads) {
  return blocks_of(threads, kWarps * 32);
}

}  // namespace

CompactWeight compact_of(const Weight& weight) {
  CompactWeight view{};
  view.words = static_cast<uint32_t*>(const_cast<void*>(weight.values));
  view.rows = const_cast<CompactRow*>(weight.rows);
  view.rest = const_cast<uint32_t*>(weight.rest);
  view.out_features = weight.out_features;
  view.in_features = weight.in_features;
  return view;
}

int code_capability() {
  cudaFuncAttributes attributes{};
  const bool found = cudaFuncGetAttributes(&attributes, repack_kernel) == cudaSuccess;
  cudaGetLastError();  // a missing kernel is an answer, not a fault
  return found ? attributes.ptxVersion : 0;
}

bool tiles_fit(int64_t in_features, int num_bits, int64_t num_groups, Scalar scale_type) {
  if (num_bits != 4 || in_features % 64 != 0 || scalar_size(scale_type) != 2) return false;
  const int64_t group_size = in_features / num_groups;
  return num_groups == 1 || group_size == 32 || group_size % 64 == 0;
}

void launch_repack(const RepackLaunch& args, cudaStream_t stream) {
  const int64_t row_tiles = (args.end - args.begin + 15) / 16;
  if (row_tiles == 0) return;
  repack_kernel<<<blocks_for(row_tiles * (args.to.in_features / 64) * 32), kWarps * 32, 0,
                  stream>>>(args);
  NB_CUDA_LAUNCHED();
  with_type(args.to.type, [&](auto type) {
    repack_scales_kernel<typename decltype(type)::type>
        <<<blocks_for(row_tiles * 16 * args.to.num_groups), kWarps * 32, 0, stream>>>(args);
  });
  NB_CUDA_LAUNCHED();
}

void launch_dequantize(const Weight& weight, int64_t begin, int64_t end, void* to, Scalar to_type,
                       cudaStream_t stream) {
  if (begin >= end) return;
  if (weight.layout == Layout::kTiled && weight.type == to_type && begin % 16 == 0) {
    const dim3 grid(blocks_for(weight.in_features / 64 * 32),
                    static_cast<unsigned>((end - begin + 15) / 16));
    const auto halves = static_cast<int>(
        weight.num_groups == 1 ? weight.in_features : weight.in_features / weight.num_groups / 32);
    if (to_type == Scalar::kBF16) {
      dequantize_tiles_kernel<BFloat>
          <<<grid, kWarps * 32, 0, stream>>>(weight, begin, end, halves, static_cast<BFloat*>(to));
    } else {
      dequantize_tiles_kernel<Half>
          <<<grid, kWarps * 32, 0, stream>>>(weight, begin, end, halves, static_cast<Half*>(to));
    }
    NB_CUDA_LAUNCHED();
    return;
  }
  if (weight.layout == Layout::kCompact && to_type == Scalar::kBF16 && begin % 16 == 0)
    return launch_expand(compact_of(weight), begin, end, static_cast<uint16_t*>(to), stream);
  const int64_t threads = (end - begin) * ((weight.in_features + 7) / 8);
  with_type(to_type, [&](auto to_type_tag) {
    with_weight(weight, [&](auto w_type, auto layout) {
      using T = typename decltype(to_type_tag)::type;
      using W = typename decltype(w_type)::type;
      dequantize_kernel<T, W, decltype(layout)::value>
          <<<blocks_for(threads), kWarps * 32, 0, stream>>>(weight, begin, end,
                                                            static_cast<T*>(to));
    });
  });
  NB_CUDA_LAUNCHED();
}

}  // namespace nibble::cuda
