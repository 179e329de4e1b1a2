// y = x W' for few tokens: the weight is streamed through the tensor cores exactly once, at memory
// speed; 4-bit tiles and plain 16-bit rows share the kernel.
//
// The weight is the A operand of mma.m16n8k16 (16 outputs x 16 inputs), the tokens are its 8
// columns: up to 8 tokens cost no more multiplications than one. A unit is 64 inputs of the rows of
// a block (8 warps x kRowTiles x 16). All units form one line, row blocks after one another, and
// every thread block takes an equal piece of that line, so all multiprocessors finish together
// whatever the shape. Each warp streams its rows through a ring of shared memory that only it
// touches: cp.async with several units in flight, no block-wide barrier anywhere.
//
// A row block that several thread blocks share is summed by whoever finishes last, in the order of
// the thread blocks: the result does not depend on timing.
//
// Activations are read as 16-byte vectors (the k order inside a unit is permuted alike on both
// sides, see linear.h); the 8 warps of a block read the same ones, so seven of eight reads hit L1.
// With more than 8 tokens a warp takes two row tiles to halve those reads.
//
// Cost per unit and row tile: 512 bytes of weights + 64 of scales in 4 bits, 2048 bytes in 16 bits.
// Dequantization: (magic | nibble) - zero exactly, times scale rounded once, both on pairs.
#include "device/cuda/linear.h"
#include "device/cuda/scalar.cuh"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kUnit = 64;

enum class Kind { kW4, kW4Group32, kDense };

struct SkinnyArgs {
  const void* x;
  const void* values;
  const void* scale;
  void* out;
  bool out_is_float;
  int num_tokens;
  int64_t out_features;
  int64_t in_features;
  int64_t units;        // of the whole weight
  int64_t row_tiles;    // ceil(out / 16)
  int units_per_row;    // in / 64
  int units_per_group;  // kW4
  int64_t num_groups;
  float* partials;
  uint32_t* counters;
};

template <Kind kind>
constexpr int kTileBytes = kind == Kind::kDense ? 2048
                           : kind == Kind::kW4  ? 576
                                                : 640;

template <Kind kind, int kRowTiles>
constexpr int kStages = kind == Kind::kDense ? (kRowTiles == 1 ? 4 : 3) : (kRowTiles == 1 ? 8 : 6);

template <Kind kind, int kRowTiles>
constexpr size_t kSharedBytes =
    size_t{kWarps} * kStages<kind, kRowTiles>* kRowTiles* kTileBytes<kind>;

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
  asm volatile("cp.async.commit_group;\n" ::);
}
template <int kPending>
__device__ __forceinline__ void wait_async() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending));
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

// Starts the copies of one unit of one row tile into this warp's ring.
template <Kind kind>
__device__ __forceinline__ void fetch(const SkinnyArgs& args, int64_t row_tile, int unit, int lane,
                                      char* to) {
  if constexpr (kind == Kind::kDense) {
    const char* values = static_cast<const char*>(args.values);
    const int64_t last_row = args.out_features - 1;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = min(row_tile * 16 + lane / 4 + 8 * half, last_row);
      const char* from = values + (row * args.in_features + unit * kUnit + lane % 4 * 8) * 2;
#pragma unroll
      for (int j = 0; j < 2; ++j)
        copy_async_16(to + ((half * 2 + j) * 32 + lane) * 16, from + j * 64);
    }
  } else {
    copy_async_16(to + lane * 16, static_cast<const char*>(args.values) +
                                      ((row_tile * args.units_per_row + unit) * 32 + lane) * 16);
    constexpr int kScaleLanes = kind == Kind::kW4 ? 8 : 16;
    if (lane < kScaleLanes) {
      const int64_t group = kind == Kind::kW4 ? unit / args.units_per_group : 2 * unit;
      copy_async_8(to + 512 + lane * 8, static_cast<const char*>(args.scale) +
                                            (row_tile * args.num_groups + group) * 64 + lane * 8);
    }
  }
}

// The A operand of step 0..3 of a unit.
template <class T, Kind kind>
struct Operand {
  uint4 raw[kind == Kind::kDense ? 4 : 1];
  uint2 scale[kind == Kind::kW4Group32 ? 2 : 1];

  __device__ __forceinline__ void read(const char* from, int lane) {
#pragma unroll
    for (int i = 0; i < (kind == Kind::kDense ? 4 : 1); ++i)
      raw[i] = *reinterpret_cast<const uint4*>(from + (i * 32 + lane) * 16);
    if constexpr (kind != Kind::kDense) {
#pragma unroll
      for (int i = 0; i < (kind == Kind::kW4Group32 ? 2 : 1); ++i)
        scale[i] = *reinterpret_cast<const uint2*>(from + 512 + i * 64 + lane / 4 * 8);
    }
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
    } else {
      const uint32_t word = kStep == 0   ? raw[0].x
                            : kStep == 1 ? raw[0].y
                            : kStep == 2 ? raw[0].z
                                         : raw[0].w;
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

// This lane's part of the activations of one unit, of one tile of 8 tokens: of token 8 n + lane /
// 4, inputs 32 j + 8 (lane % 4) .. + 7.
struct Activations {
  uint4 x[2];
  __device__ __forceinline__ void read(const SkinnyArgs& args, int n, int unit, int lane) {
    const int token = 8 * n + lane / 4;
    const auto* from = reinterpret_cast<const uint4*>(
        static_cast<const char*>(args.x) +
        (token * args.in_features + unit * kUnit + lane % 4 * 8) * 2);
#pragma unroll
    for (int j = 0; j < 2; ++j)
      x[j] = token < args.num_tokens ? __ldg(from + 4 * j) : make_uint4(0, 0, 0, 0);
  }
};

template <class T, int kTokenTiles, int kRowTiles>
struct Sums {
  float c[kRowTiles][kTokenTiles][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) c[r][n][i] = 0;
  }
  static constexpr int kFloats = kRowTiles * kTokenTiles * 4 * 32;  // of a warp
  __device__ __forceinline__ void store_partial(float* to, int lane) const {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n)
        __stcg(reinterpret_cast<float4*>(to) + (r * kTokenTiles + n) * 32 + lane,
               make_float4(c[r][n][0], c[r][n][1], c[r][n][2], c[r][n][3]));
  }
  __device__ __forceinline__ void add_partial(const float* from, int lane) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
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
  __device__ __forceinline__ void store(const SkinnyArgs& args, int64_t row_tile, int lane) const {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int64_t row = (row_tile + r) * 16 + lane / 4 + i / 2 * 8;
          const int token = 8 * n + lane % 4 * 2 + i % 2;
          if (row >= args.out_features || token >= args.num_tokens) continue;
          const int64_t at = token * args.out_features + row;
          if (args.out_is_float) {
            static_cast<float*>(args.out)[at] = c[r][n][i];
          } else {
            static_cast<T*>(args.out)[at] = Round<T>::of(c[r][n][i]);
          }
        }
  }
};

// First unit of thread block `block`, and the thread block that owns a unit.
__device__ __forceinline__ int64_t first_unit(const SkinnyArgs& args, int64_t block) {
  return block * args.units / gridDim.x;
}
__device__ __forceinline__ int64_t owner(const SkinnyArgs& args, int64_t unit) {
  return ((unit + 1) * gridDim.x - 1) / args.units;
}
// Where a thread block leaves its part of row block `row_block`: it shares at most its first and
// its last one with others.
__device__ __forceinline__ int64_t slot(const SkinnyArgs& args, int64_t block, int64_t row_block) {
  return 2 * block + (row_block == first_unit(args, block) / args.units_per_row ? 0 : 1);
}

// The sums of this warp's rows over this thread block's units are complete: store them, or leave
// them for the last of the thread blocks that share the rows.
template <class S>
__device__ __forceinline__ void finish(const SkinnyArgs& args, S& sums, int64_t row_block,
                                       int64_t row_tile, int warp, int lane) {
  const int64_t first = owner(args, row_block * args.units_per_row);
  const int64_t last = owner(args, (row_block + 1) * args.units_per_row - 1);
  if (first == last) return sums.store(args, row_tile, lane);
  const auto partial = [&](int64_t block) {
    return args.partials + (slot(args, block, row_block) * kWarps + warp) * S::kFloats;
  };
  sums.store_partial(partial(blockIdx.x), lane);
  __threadfence();
  __syncwarp();
  uint32_t arrived = 0;
  uint32_t* counter = args.counters + row_block * kWarps + warp;
  if (lane == 0) arrived = atomicAdd(counter, 1);
  arrived = __shfl_sync(0xffffffffu, arrived, 0);
  if (arrived != static_cast<uint32_t>(last - first)) return;
  __threadfence();
  sums.clear();
  for (int64_t block = first; block <= last; ++block) sums.add_partial(partial(block), lane);
  sums.store(args, row_tile, lane);
  if (lane == 0) *counter = 0;
}

#endif  // NB_SKINNY_CODE

template <class T, Kind kind, int kTokenTiles, int kRowTiles>
__global__ void __launch_bounds__(kWarps * 32, kRowTiles == 1     ? 3
                                               : kTokenTiles <= 4 ? 2
                                                                  : 1)
    skinny_kernel(const SkinnyArgs args) {
#if NB_SKINNY_CODE
  constexpr int kDepth = kStages<kind, kRowTiles>;
  constexpr int kStageBytes = kRowTiles * kTileBytes<kind>;
  constexpr bool kPrefetch = kTokenTiles == 1;  // activations one unit ahead, in registers
  extern __shared__ __align__(16) char shared[];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  char* ring = shared + warp * kDepth * kStageBytes;

  const int64_t begin = first_unit(args, blockIdx.x);
  const auto count = static_cast<int>(first_unit(args, blockIdx.x + 1) - begin);
  int64_t row_block = begin / args.units_per_row;
  auto unit = static_cast<int>(begin % args.units_per_row);
  const auto row_tile_of = [&](int64_t block) { return (block * kWarps + warp) * kRowTiles; };

  // The producer runs ahead of the consumer along the same line.
  int64_t fetch_block = row_block;
  int fetch_unit = unit;
  int fetched = 0;
  int fetch_stage = 0;
  const auto fetch_next = [&] {
    if (fetched < count) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r)
        fetch<kind>(args, min(row_tile_of(fetch_block) + r, args.row_tiles - 1), fetch_unit, lane,
                    ring + fetch_stage * kStageBytes + r * kTileBytes<kind>);
      ++fetched;
      fetch_stage = fetch_stage + 1 == kDepth ? 0 : fetch_stage + 1;
      if (++fetch_unit == args.units_per_row) {
        fetch_unit = 0;
        ++fetch_block;
      }
    }
    commit_async();
  };
#pragma unroll
  for (int i = 0; i < kDepth - 1; ++i) fetch_next();

  Sums<T, kTokenTiles, kRowTiles> sums;
  sums.clear();
  Activations ahead;
  if constexpr (kPrefetch) ahead.read(args, 0, unit, lane);
  int stage = 0;
  for (int i = 0; i < count; ++i) {
    const int next_unit = unit + 1 == args.units_per_row ? 0 : unit + 1;
    Activations x;
    if constexpr (kPrefetch) {
      x = ahead;
      ahead.read(args, 0, next_unit, lane);
    }
    wait_async<kDepth - 2>();
    __syncwarp();
    uint32_t a[kRowTiles][4][4];
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      Operand<T, kind> weights;
      weights.read(ring + stage * kStageBytes + r * kTileBytes<kind>, lane);
      weights.template step<0>(a[r][0]);
      weights.template step<1>(a[r][1]);
      weights.template step<2>(a[r][2]);
      weights.template step<3>(a[r][3]);
    }
    fetch_next();
    stage = stage + 1 == kDepth ? 0 : stage + 1;
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
      if constexpr (!kPrefetch) x.read(args, n, unit, lane);
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        Pair<T>::mma(sums.c[r][n], a[r][0], x.x[0].x, x.x[0].y);
        Pair<T>::mma(sums.c[r][n], a[r][1], x.x[0].z, x.x[0].w);
        Pair<T>::mma(sums.c[r][n], a[r][2], x.x[1].x, x.x[1].y);
        Pair<T>::mma(sums.c[r][n], a[r][3], x.x[1].z, x.x[1].w);
      }
    }
    if (unit + 1 == args.units_per_row || i + 1 == count) {
      const int64_t row_tile = row_tile_of(row_block);
      if (row_tile < args.row_tiles) finish(args, sums, row_block, row_tile, warp, lane);
      sums.clear();
      if (unit + 1 == args.units_per_row) ++row_block;
    }
    unit = next_unit;
  }
#endif
}

template <class T, Kind kind, int kTokenTiles, int kRowTiles>
void launch_of(SkinnyArgs args, const Workspace& workspace, cudaStream_t stream) {
  const auto kernel = skinny_kernel<T, kind, kTokenTiles, kRowTiles>;
  constexpr size_t kShared = kSharedBytes<kind, kRowTiles>;
  static const int blocks_per_sm = [&] {
    NB_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(kShared)));
    int blocks = 0;
    NB_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kWarps * 32, kShared));
    return blocks;
  }();
  const int64_t row_blocks = (args.row_tiles + kWarps * kRowTiles - 1) / (kWarps * kRowTiles);
  args.units = row_blocks * args.units_per_row;
  // At least four units a block: below that the start costs more than the work.
  int64_t blocks = int64_t{workspace.num_sms} * blocks_per_sm;
  if (blocks > (args.units + 3) / 4) blocks = (args.units + 3) / 4;
  const int64_t partials_bytes =
      blocks * 2 * kWarps * kRowTiles * kTokenTiles * 128 * int64_t{sizeof(float)};
  if (partials_bytes > static_cast<int64_t>(workspace.scratch_size) ||
      row_blocks * kWarps > workspace.num_counters)
    fail(cudaErrorMemoryAllocation, "workspace of a product of few tokens", __FILE__, __LINE__);
  args.partials = static_cast<float*>(workspace.scratch);
  args.counters = workspace.counters;
  kernel<<<static_cast<unsigned>(blocks), kWarps * 32, kShared, stream>>>(args);
  NB_CUDA_LAUNCHED();
}

template <class T, Kind kind>
void launch_tokens(const SkinnyArgs& args, const Workspace& workspace, cudaStream_t stream) {
  if (args.num_tokens <= 8) return launch_of<T, kind, 1, 1>(args, workspace, stream);
  if (args.num_tokens <= 16) return launch_of<T, kind, 2, 2>(args, workspace, stream);
  if (args.num_tokens <= 32) return launch_of<T, kind, 4, 2>(args, workspace, stream);
  launch_of<T, kind, 8, 2>(args, workspace, stream);
}

template <class T>
void launch_kind(Kind kind, const SkinnyArgs& args, const Workspace& workspace,
                 cudaStream_t stream) {
  switch (kind) {
    case Kind::kW4: return launch_tokens<T, Kind::kW4>(args, workspace, stream);
    case Kind::kW4Group32: return launch_tokens<T, Kind::kW4Group32>(args, workspace, stream);
    case Kind::kDense: return launch_tokens<T, Kind::kDense>(args, workspace, stream);
  }
}

}  // namespace

bool launch_linear_skinny(const LinearLaunch& args, const Workspace& workspace,
                          cudaStream_t stream) {
  constexpr int64_t kTokensAtOnce = 64;
  const Weight& weight = args.weight;
  const bool aligned = reinterpret_cast<uintptr_t>(args.x) % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(weight.values) % 16 == 0;
  if (workspace.compute_capability < 80 || weight.layout == Layout::kPlain ||
      weight.type != args.x_type || scalar_size(args.x_type) != 2 ||
      weight.in_features % kUnit != 0 || !aligned)
    return false;
  SkinnyArgs launch{};
  launch.values = weight.values;
  launch.scale = weight.scale;
  launch.out_is_float = args.out_type == Scalar::kF32;
  launch.out_features = weight.out_features;
  launch.in_features = weight.in_features;
  launch.row_tiles = (weight.out_features + 15) / 16;
  launch.units_per_row = static_cast<int>(weight.in_features / kUnit);
  launch.num_groups = weight.num_groups;
  Kind kind = Kind::kDense;
  if (weight.layout == Layout::kTiled) {
    const int64_t group_size = weight.in_features / weight.num_groups;
    kind = group_size == 32 ? Kind::kW4Group32 : Kind::kW4;
    launch.units_per_group = static_cast<int>(group_size / kUnit);
  }
  for (int64_t begin = 0; begin < args.num_tokens; begin += kTokensAtOnce) {
    const int64_t rest = args.num_tokens - begin;
    launch.num_tokens = static_cast<int>(rest < kTokensAtOnce ? rest : kTokensAtOnce);
    launch.x = static_cast<const char*>(args.x) + begin * weight.in_features * 2;
    launch.out = static_cast<char*>(args.out) +
                 begin * weight.out_features * static_cast<int64_t>(scalar_size(args.out_type));
    if (args.x_type == Scalar::kBF16) {
      launch_kind<BFloat>(kind, launch, workspace, stream);
    } else {
      launch_kind<Half>(kind, launch, workspace, stream);
    }
  }
  return true;
}

}  // namespace nibble::cuda
