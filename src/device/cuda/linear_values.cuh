// One weight at a time out of any layout, by the contract of tensor/linear_weight.h: (q - zero) *
// scale in f32, rounded to the type of the scale. For the kernels that are not in a hurry.
#pragma once

#include "device/cuda/compact.cuh"
#include "device/cuda/linear.h"
#include "device/cuda/scalar.cuh"

namespace nibble::cuda {

// Where element (row, k) of the tiled layout lies; the picture is in linear.h.
struct TiledIndex {
  int64_t word;
  int shift;
};
__device__ __forceinline__ TiledIndex tiled_index(int64_t row, int64_t k, int64_t in_features) {
  const int64_t tile = row / 16 * (in_features / 64) + k / 64;
  const int inner = static_cast<int>(k % 64);
  const int lane = static_cast<int>(row % 8) * 4 + inner % 32 / 8;
  const int word = inner / 32 * 2 + inner % 8 / 4;
  const int pair = inner % 4 / 2 * 2 + static_cast<int>(row % 16) / 8;
  return {(tile * 32 + lane) * 4 + word, 4 * (pair + 4 * (inner % 2))};
}
// Of the tiled scales: the scale; the zero follows it.
__device__ __forceinline__ int64_t tiled_scale_index(int64_t row, int64_t group,
                                                     int64_t num_groups) {
  return ((row / 16 * num_groups + group) * 8 + row % 8) * 4 + row % 16 / 8 * 2;
}

template <class T>
__device__ __forceinline__ float magic();
template <>
__device__ __forceinline__ float magic<BFloat>() {
  return 128.0f;
}
template <>
__device__ __forceinline__ float magic<Half>() {
  return 1024.0f;
}
template <>
__device__ __forceinline__ float magic<float>() {
  return 0.0f;
}

// A weight in 12 bits.
__device__ __forceinline__ float compact_value(const Weight& weight, int64_t row, int64_t k) {
  const CompactRow own = weight.rows[row];
  for (uint32_t i = 0; i < own.rest_count; ++i) {
    const uint32_t entry = weight.rest[own.rest_begin + i];
    if (entry >> 16 == static_cast<uint32_t>(k)) return compact_rest_value(entry);
  }
  const int inner = static_cast<int>(k % 64);
  const int pair = inner % 4 / 2 * 2 + static_cast<int>(row % 16) / 8;
  const uint32_t* words = static_cast<const uint32_t*>(weight.values) +
                          (row / 16 * (weight.in_features / 64) + k / 64) * kCompactTileWords +
                          (row % 8 * 4 + inner % 32 / 8) * 4 + inner / 32 * 2 + inner % 8 / 4;
  uint32_t pairs[4];
  compact_step(words[0], words[128], words[256], pairs);
  return __uint_as_float(pairs[pair] >> (16 * (inner % 2)) << 16) * compact_scale(own);
}

// T: the type of the dense elements, or of the scales.
template <class T, Layout layout>
__device__ __forceinline__ float weight_value(const Weight& weight, int64_t row, int64_t k) {
  if constexpr (layout == Layout::kCompact) {
    return compact_value(weight, row, k);
  } else if constexpr (layout == Layout::kDense) {
    return to_float(static_cast<const T*>(weight.values)[row * weight.in_features + k]);
  } else if constexpr (layout == Layout::kPlain) {
    const int per_word = 32 / weight.num_bits;
    const uint32_t word = static_cast<const uint32_t*>(
        weight.values)[row * (weight.in_features / per_word) + k / per_word];
    const auto q = static_cast<int>((word >> (weight.num_bits * static_cast<int>(k % per_word))) &
                                    ((1u << weight.num_bits) - 1));
    const int64_t group = row * weight.num_groups + k / (weight.in_features / weight.num_groups);
    const int zero = weight.zero_point == nullptr ? 0 : weight.zero_point[group];
    const float scale = to_float(static_cast<const T*>(weight.scale)[group]);
    return rounded<T>(static_cast<float>(q - (1 << (weight.num_bits - 1)) - zero) * scale);
  } else {
    const TiledIndex at = tiled_index(row, k, weight.in_features);
    const uint32_t q = (static_cast<const uint32_t*>(weight.values)[at.word] >> at.shift) & 15u;
    const int64_t group = k / (weight.in_features / weight.num_groups);
    const T* scale =
        static_cast<const T*>(weight.scale) + tiled_scale_index(row, group, weight.num_groups);
    return rounded<T>((static_cast<float>(q) + magic<T>() - to_float(scale[1])) *
                      to_float(scale[0]));
  }
}

// Calls body(Type<T>, std::integral_constant<Layout>).
template <Layout layout>
struct LayoutIs {
  static constexpr Layout value = layout;
};
template <class Body>
void with_weight(const Weight& weight, Body body) {
  with_type(weight.type, [&](auto type) {
    switch (weight.layout) {
      case Layout::kDense: return body(type, LayoutIs<Layout::kDense>{});
      case Layout::kPlain: return body(type, LayoutIs<Layout::kPlain>{});
      case Layout::kTiled: return body(type, LayoutIs<Layout::kTiled>{});
      case Layout::kCompact: return body(type, LayoutIs<Layout::kCompact>{});
    }
  });
}

}  // namespace nibble::cuda
