// What the kernels that stream a weight through the tensor cores share: asynchronous copies into a
// ring that only one warp touches, and a warp's view of one unit (64 inputs) of a row tile (16
// outputs) as operands of mma.m16n8k16. Layouts: linear.h.
//
// Dequantization is (magic | nibble) - zero exactly, times scale rounded once, both on pairs.
#pragma once

#include "device/cuda/cluster.cuh"
#include "device/cuda/compact.cuh"
#include "device/cuda/linear_kernels.h"
#include "device/cuda/scalar.cuh"

namespace nibble::cuda {

constexpr int kWarps = 8;

// Vectors of 16 bytes a lane takes of one unit of a row tile; units of packed kinds lie together.
template <Kind kind>
constexpr int kUnitVectors = kind == Kind::kDense     ? 4
                             : kind == Kind::kCompact ? 3
                                                      : 1;
// Groups in such a unit that have a scale of their own.
template <Kind kind>
constexpr int kUnitScales = kind == Kind::kW4          ? 1
                            : kind == Kind::kW4Group32 ? 2
                                                       : 0;
template <Kind kind>
constexpr bool kHasScales = kUnitScales<kind> != 0;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define NB_SKINNY_CODE 1
#else
#define NB_SKINNY_CODE 0
#endif

#if NB_SKINNY_CODE

__device__ __forceinline__ void copy_async_16(void* shared, const void* global) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;\n" ::"r"(to), "l"(global));
}
__device__ __forceinline__ void copy_async_8(void* shared, const void* global) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;\n" ::"r"(to), "l"(global));
}
__device__ __forceinline__ void commit_async() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wait_async() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

template <class T>
struct Pair;
template <>
struct Pair<BFloat> {
  static constexpr uint32_t kMagic = 0x43004300u;
  static __device__ __forceinline__ uint32_t value(uint32_t q, uint32_t zero, uint32_t scale) {
    const __nv_bfloat162 difference =
        __hsub2(*reinterpret_cast<__nv_bfloat162*>(&q), *reinterpret_cast<__nv_bfloat162*>(&zero));
    const __nv_bfloat162 product = __hmul2(difference, *reinterpret_cast<__nv_bfloat162*>(&scale));
    return *reinterpret_cast<const uint32_t*>(&product);
  }
  static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};
template <>
struct Pair<Half> {
  static constexpr uint32_t kMagic = 0x64006400u;
  static __device__ __forceinline__ uint32_t value(uint32_t q, uint32_t zero, uint32_t scale) {
    const __half2 difference =
        __hsub2(*reinterpret_cast<__half2*>(&q), *reinterpret_cast<__half2*>(&zero));
    const __half2 product = __hmul2(difference, *reinterpret_cast<__half2*>(&scale));
    return *reinterpret_cast<const uint32_t*>(&product);
  }
  static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

// (x >> shift) & 0x000f000f | magic, one logic instruction after the shift.
template <class T>
__device__ __forceinline__ uint32_t nibbles(uint32_t word, int shift) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;\n"
      : "=r"(result)
      : "r"(word >> shift), "r"(0x000f000fu), "r"(Pair<T>::kMagic));
  return result;
}

template <int kIndex>
__device__ __forceinline__ uint32_t component(const uint4& vector) {
  return kIndex == 0 ? vector.x : kIndex == 1 ? vector.y : kIndex == 2 ? vector.z : vector.w;
}

// The A operand of step 0..3 of a unit.
template <class T, Kind kind>
struct Operand {
  uint4 raw[kUnitVectors<kind>];
  uint2 scale[kind == Kind::kW4Group32 ? 2 : 1];

  // Of row tile `tile` of a stage whose scales lie at `scales`.
  __device__ __forceinline__ void read(const char* stage, const char* scales, int tile, int lane) {
    read_values(stage, tile, lane);
    read_scales(scales, tile, lane);
  }
  __device__ __forceinline__ void read_values(const char* stage, int tile, int lane) {
    constexpr int kVectors = kUnitVectors<kind>;
#pragma unroll
    for (int i = 0; i < kVectors; ++i)
      raw[i] = *reinterpret_cast<const uint4*>(stage + (tile * kVectors + i) * 512 + lane * 16);
  }
  __device__ __forceinline__ void read_scales(const char* scales, int tile, int lane) {
    constexpr int kGroups = kUnitScales<kind>;
#pragma unroll
    for (int i = 0; i < kGroups; ++i)
      scale[i] = *reinterpret_cast<const uint2*>(scales + (tile * kGroups + i) * 64 + lane / 4 * 8);
  }
  template <int kStep>
  __device__ __forceinline__ void step(uint32_t (&a)[4]) const {
    if constexpr (kind == Kind::kDense) {
      const uint4& low = raw[kStep / 2];
      const uint4& high = raw[2 + kStep / 2];
      a[0] = kStep % 2 == 0 ? low.x : low.z;
      a[1] = kStep % 2 == 0 ? high.x : high.z;
      a[2] = kStep % 2 == 0 ? low.y : low.w;
      a[3] = kStep % 2 == 0 ? high.y : high.w;
    } else if constexpr (kind == Kind::kCompact) {
      compact_step(component<kStep>(raw[0]), component<kStep>(raw[1]), component<kStep>(raw[2]), a);
    } else {
      const uint32_t word = component<kStep>(raw[0]);
      const uint2& pair = scale[kind == Kind::kW4Group32 ? kStep / 2 : 0];
      const uint32_t scale_low = __byte_perm(pair.x, pair.x, 0x1010);
      const uint32_t zero_low = __byte_perm(pair.x, pair.x, 0x3232);
      const uint32_t scale_high = __byte_perm(pair.y, pair.y, 0x1010);
      const uint32_t zero_high = __byte_perm(pair.y, pair.y, 0x3232);
      a[0] = Pair<T>::value(nibbles<T>(word, 0), zero_low, scale_low);
      a[1] = Pair<T>::value(nibbles<T>(word, 4), zero_high, scale_high);
      a[2] = Pair<T>::value(nibbles<T>(word, 8), zero_low, scale_low);
      a[3] = Pair<T>::value(nibbles<T>(word, 12), zero_high, scale_high);
    }
  }
};

// Not __ldg(): a load that is said to be of constant memory may move above the wait for the kernel
// that writes it.
__device__ __forceinline__ uint4 load_written_16(const void* from) {
  uint4 value;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from)
               : "memory");
  return value;
}

// This lane's part of the activations of one unit of one token: inputs 32 j + 8 (lane % 4) .. + 7.
struct Activations {
  uint4 x[2];
  __device__ __forceinline__ void read(const char* from, bool present) {
#pragma unroll
    for (int j = 0; j < 2; ++j)
      x[j] = present ? load_written_16(from + 64 * j) : make_uint4(0, 0, 0, 0);
  }
};

template <class T, int kTokenTiles, int kTiles>
struct Sums {
  static constexpr int kTokens = kTokenTiles;  // in eights
  static constexpr int kRows = kTiles;         // in sixteens
  float c[kTiles][kTokenTiles][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int r = 0; r < kTiles; ++r)
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) c[r][n][i] = 0;
  }
  __device__ __forceinline__ void add(const Sums& other) {
#pragma unroll
    for (int r = 0; r < kTiles; ++r)
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) c[r][n][i] += other.c[r][n][i];
  }
  static constexpr int kFloats = kTiles * kTokenTiles * 4 * 32;  // of a warp
  __device__ __forceinline__ void add_shared(const float* from, int lane) {
    const float4 part = reinterpret_cast<const float4*>(from)[lane];
    c[0][0][0] += part.x;
    c[0][0][1] += part.y;
    c[0][0][2] += part.z;
    c[0][0][3] += part.w;
  }
  __device__ __forceinline__ void store_partial(float* to, int lane) const {
#pragma unroll
    for (int r = 0; r < kTiles; ++r)
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n)
        __stcg(reinterpret_cast<float4*>(to) + (r * kTokenTiles + n) * 32 + lane,
               make_float4(c[r][n][0], c[r][n][1], c[r][n][2], c[r][n][3]));
  }
  __device__ __forceinline__ void add_partial(const float* from, int lane) {
#pragma unroll
    for (int r = 0; r < kTiles; ++r)
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n) {
        const float4 part =
            __ldcg(reinterpret_cast<const float4*>(from) + (r * kTokenTiles + n) * 32 + lane);
        c[r][n][0] += part.x;
        c[r][n][1] += part.y;
        c[r][n][2] += part.z;
        c[r][n][3] += part.w;
      }
  }
  __device__ __forceinline__ void store(const SkinnyArgs& args, int row_tile, int lane,
                                        int first_token = 0, int64_t first_out = 0) const {
#pragma unroll
    for (int r = 0; r < kTiles; ++r)
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int64_t row = int64_t{row_tile + r} * 16 + lane / 4 + i / 2 * 8;
          const int token = first_token + 8 * n + lane % 4 * 2 + i % 2;
          if (row >= args.out_features || token >= args.num_tokens) continue;
          const int64_t at = first_out + token * args.out_features + row;
          if (args.out_is_float) {
            static_cast<float*>(args.out)[at] = c[r][n][i];
          } else {
            static_cast<T*>(args.out)[at] = Round<T>::of(c[r][n][i]);
          }
        }
  }
};

// What sums of a row tile still lack: for weights in 12 bits the rows' powers of two and the
// weights that are listed beside. For other kinds nothing.
template <class T, Kind kind>
struct RowEnds {
  __device__ __forceinline__ void read(const SkinnyArgs&, int, int) {}
  __device__ __forceinline__ void apply(const SkinnyArgs&, float (&)[4], int, int) const {}
};
template <class T>
struct RowEnds<T, Kind::kCompact> {
  CompactRow rows[2];  // g, g + 8

  // Constant after load: may be read before the wait.
  __device__ __forceinline__ void read(const SkinnyArgs& args, int row_tile, int lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 row =
          __ldg(reinterpret_cast<const uint4*>(args.rows) + row_tile * 16 + lane / 4 + 8 * half);
      rows[half] = {
          row.x, static_cast<uint16_t>(row.y), static_cast<uint16_t>(row.y >> 16), {row.z, row.w}};
    }
  }
  // c: of rows g, g, g + 8, g + 8 and of tokens 2 t, 2 t + 1 behind `first_token`.
  __device__ __forceinline__ void apply(const SkinnyArgs& args, float (&c)[4], int lane,
                                        int first_token) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float scale = compact_scale(rows[half]);
      const float lowest = compact_lowest(rows[half]);
      const int count = rows[half].rest_count;
      const auto add = [&](uint32_t entry, bool present) {
        const float value = compact_rest_value(entry) - lowest;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int token = first_token + lane % 4 * 2 + i;
          if (present && token < args.num_tokens)
            c[2 * half + i] +=
                value *
                to_float(static_cast<const T*>(args.x)[token * args.in_features + (entry >> 16)]);
        }
      };
#pragma unroll
      for (int i = 0; i < 2; ++i) c[2 * half + i] *= scale;
#pragma unroll
      for (int i = 0; i < kCompactAhead; ++i) add(rows[half].ahead[i], i < count);
      for (int i = kCompactAhead; i < count; ++i)
        add(__ldg(args.rest + rows[half].rest_begin + static_cast<uint32_t>(i)), true);
    }
  }
};

// The sum of a tile over the blocks of a cluster, each of which holds its own at `own`.
template <class T>
__device__ __forceinline__ Sums<T, 1, 1> cluster_total(const float4* own, int blocks) {
  Sums<T, 1, 1> total;
  total.clear();
  for (int block = 0; block < blocks; ++block) {
    const float4 part = load_cluster(own, static_cast<uint32_t>(block));
    total.c[0][0][0] += part.x;
    total.c[0][0][1] += part.y;
    total.c[0][0][2] += part.z;
    total.c[0][0][3] += part.w;
  }
  return total;
}

#endif  // NB_SKINNY_CODE

}  // namespace nibble::cuda
