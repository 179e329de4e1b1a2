// y = x W' for 9 to 16 tokens. A warp owns one or two row tiles (16 outputs each) and every S-th
// stage of their units along the row; weights go from memory straight to the registers of the lane
// that multiplies them, a few stages ahead, and around the first-level cache, which is left to the
// activations: they are read by every warp, and hit there.
//
// A thread block is `row_warps` x `slices` warps: row tiles side by side, each row cut into slices
// whose stages alternate. The sums of the slices meet in shared memory, in a fixed order; on sm_90
// a cluster of blocks may share a row and read each other's sums there. So blocks are many and
// short, and nothing is handed over through memory.
//
// kUnits = 2: two units at a time under one scale, in groups of 128 or more: instructions are what
// limits packed weights.

#include "device/cuda/cluster.cuh"
#include "device/cuda/launch.h"
#include "device/cuda/linear_stream.cuh"
#include "device/cuda/overlap.cuh"

namespace nibble::cuda {
namespace {

// How a product is cut up; powers of two. row_warps * slices <= kWarps.
struct Geometry {
  int row_warps;
  int slices;
  int cluster;
};

// Its `end` counts clusters.
struct DirectGroup : SkinnyGroup {
  int slice_shift;  // logarithms of the geometry
  int cluster_shift;
};

constexpr int kTokenTiles = 2;  // of 8

// What a block does: units in a stage, tiles of 16 rows of a warp, stages ahead.
template <Kind kKind, bool kWide, int kRows, int kStages, int kMinBlocks>
struct DirectShape {
  static constexpr Kind kind = kKind;
  static constexpr int kUnits = kWide ? 2 : 1;
  static constexpr int kRowTiles = kRows;
  static constexpr int kDepth = kStages;
  static constexpr int kBlocks = kMinBlocks;  // on a multiprocessor
  static_assert(kDepth * kUnits % 2 == 0, "activations alternate between two buffers");
  static_assert(kUnits == 1 || kind == Kind::kW4, "two units of other kinds have two scales");
};

#if NB_SKINNY_CODE

// Of memory that is constant after load and read once.
__device__ __forceinline__ uint4 load_weight_16(const char* from) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(from));
  return value;
}
__device__ __forceinline__ uint2 load_weight_8(const char* from) {
  uint2 value;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];\n"
               : "=r"(value.x), "=r"(value.y)
               : "l"(from));
  return value;
}

// Brings the line to the second-level cache: of constant memory that is read at the end, where
// nothing is left to hide the way from memory.
__device__ __forceinline__ void prefetch_l2(const void* from) {
  asm volatile("prefetch.global.L2 [%0];\n" ::"l"(from));
}

// Activations, in whatever order between other memory accesses the compiler likes: volatile keeps
// them behind the wait.
__device__ __forceinline__ void read(Activations& to, const char* from) {
#pragma unroll
  for (int j = 0; j < 2; ++j)
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(to.x[j].x), "=r"(to.x[j].y), "=r"(to.x[j].z), "=r"(to.x[j].w)
                 : "l"(from + 64 * j));
}

// A stage of a warp's weights in registers.
template <class Shape>
struct StageValues {
  static constexpr Kind kind = Shape::kind;
  static constexpr int kVectors = kUnitVectors<kind>;
  static constexpr int kScales = kUnitScales<kind>;
  uint4 raw[Shape::kUnits][Shape::kRowTiles][kVectors];
  uint2 scale[Shape::kRowTiles][kScales == 0 ? 1 : kScales];

  template <class T>
  __device__ __forceinline__ void operand(int unit, int tile, uint32_t (&a)[4][4]) const {
    Operand<T, kind> weights;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) weights.raw[i] = raw[unit][tile][i];
#pragma unroll
    for (int i = 0; i < kScales; ++i) weights.scale[i] = scale[tile][i];
    weights.template step<0>(a[0]);
    weights.template step<1>(a[1]);
    weights.template step<2>(a[2]);
    weights.template step<3>(a[3]);
  }
};

// Where this lane's part of the next stage to fetch lies.
template <class Shape>
struct StageSource {
  static constexpr Kind kind = Shape::kind;
  const char* values[Shape::kRowTiles * (kind == Kind::kDense ? 2 : 1)];
  const char* scale[Shape::kRowTiles];
  int unit;
  int step;  // units to the next stage of this warp

  // Row tiles past the end repeat the last one; their sums are not stored.
  __device__ __forceinline__ StageSource(const SkinnyArgs& args, int first_tile, int first_unit,
                                         int units_apart, int lane)
      : unit(first_unit), step(units_apart) {
#pragma unroll
    for (int r = 0; r < Shape::kRowTiles; ++r) {
      const int64_t tile = min(first_tile + r, args.row_tiles - 1);
      if constexpr (kind == Kind::kDense) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int64_t row = min(tile * 16 + lane / 4 + 8 * half, args.out_features - 1);
          values[2 * r + half] = static_cast<const char*>(args.values) +
                                 (row * args.in_features + unit * kUnit + lane % 4 * 8) * 2;
        }
      } else {
        values[r] = static_cast<const char*>(args.values) +
                    (tile * args.units_per_row + unit) * (kUnitVectors<kind> * 512) + lane * 16;
        if constexpr (kHasScales<kind>)
          scale[r] =
              static_cast<const char*>(args.scale) + tile * args.num_groups * 64 + lane / 4 * 8;
      }
    }
  }
  __device__ __forceinline__ void fetch(const SkinnyArgs& args, StageValues<Shape>& to) {
#pragma unroll
    for (int r = 0; r < Shape::kRowTiles; ++r) {
      if constexpr (kind == Kind::kDense) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          to.raw[0][r][i] = load_weight_16(values[2 * r + i / 2] + i % 2 * 64);
        values[2 * r] += step * kUnit * 2;
        values[2 * r + 1] += step * kUnit * 2;
      } else {
#pragma unroll
        for (int u = 0; u < Shape::kUnits; ++u)
#pragma unroll
          for (int v = 0; v < kUnitVectors<kind>; ++v)
            to.raw[u][r][v] = load_weight_16(values[r] + (u * kUnitVectors<kind> + v) * 512);
        values[r] += step * (kUnitVectors<kind> * 512);
        if constexpr (kind == Kind::kW4) {
          const uint32_t group =
              __umulhi(2 * static_cast<uint32_t>(unit) + 1, args.group_reciprocal);
          to.scale[r][0] = load_weight_8(scale[r] + group * 64);
        } else if constexpr (kind == Kind::kW4Group32) {
          to.scale[r][0] = load_weight_8(scale[r] + unit * 128);
          to.scale[r][1] = load_weight_8(scale[r] + unit * 128 + 64);
        }
      }
    }
    unit += step;
  }
};

// The sum of a tile over the block's slices. `shared` holds the block's sums, [tile][slice][32
// lanes]; tiles are [row tile][token tile].
template <class T>
__device__ __forceinline__ Sums<T, 1, 1> total_of(const DirectGroup& group, const float4* shared,
                                                  int tile, int lane) {
  Sums<T, 1, 1> total;
  total.clear();
  for (int s = 0; s < 1 << group.slice_shift; ++s)
    total.add_shared(
        reinterpret_cast<const float*>(shared + ((tile << group.slice_shift) + s) * 32), lane);
  return total;
}

// Adds up the slices of each tile, and stores it.
template <class T, Kind kind>
__device__ __forceinline__ void join_slices(const DirectGroup& group, const SkinnyArgs& args,
                                            float4* shared, int tiles, int first_row_tile,
                                            uint32_t rank) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int warps = blockDim.x / 32;
  const auto store = [&](Sums<T, 1, 1> total, int tile) {
    const int row_tile = first_row_tile + tile / kTokenTiles;
    const int first_token = 8 * (tile % kTokenTiles);
    if (row_tile >= args.row_tiles) return;
    RowEnds<T, kind> ends;
    ends.read(args, row_tile, lane);
    ends.apply(args, total.c[0][0], lane, first_token);
    total.store(args, row_tile, lane, first_token);
  };
  for (int tile = warp; tile < tiles; tile += warps) {
    const Sums<T, 1, 1> total = total_of<T>(group, shared, tile, lane);
    if (group.cluster_shift == 0) {
      store(total, tile);
    } else {
      const float(&c)[4] = total.c[0][0];
      shared[(tile << group.slice_shift) * 32 + lane] = make_float4(c[0], c[1], c[2], c[3]);
    }
  }
  if (group.cluster_shift == 0) return;
  cluster_barrier();
  const int blocks = 1 << group.cluster_shift;
  for (int tile = warp * blocks + static_cast<int>(rank); tile < tiles; tile += warps * blocks) {
    store(cluster_total<T>(shared + (tile << group.slice_shift) * 32 + lane, blocks), tile);
  }
  cluster_barrier();  // a block's sums stay until all have read them
}

#endif  // NB_SKINNY_CODE

template <class T, class Shape>
__global__ void __launch_bounds__(kWarps * 32, Shape::kBlocks)
    direct_kernel(const __grid_constant__ DirectGroup group) {
#if NB_SKINNY_CODE
  constexpr int kUnits = Shape::kUnits;
  constexpr int kRowTiles = Shape::kRowTiles;
  constexpr int kDepth = Shape::kDepth;
  extern __shared__ __align__(16) char shared[];
  let_next_kernel_start();
  const int cluster = static_cast<int>(blockIdx.x) >> group.cluster_shift;
  const uint32_t rank = blockIdx.x & ((1u << group.cluster_shift) - 1);
  int part = 0;
  while (cluster >= group.end[part]) ++part;
  const SkinnyArgs& args = group.parts[part];
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x / 32), 0);  // uniform
  const int lane = threadIdx.x % 32;
  const int row_warps = static_cast<int>(blockDim.x / 32) >> group.slice_shift;
  const int block_tile =
      (cluster - (part == 0 ? 0 : group.end[part - 1])) * row_warps * Shape::kRowTiles;
  const int row_warp = warp >> group.slice_shift;
  const int own_slice = warp & ((1 << group.slice_shift) - 1);
  const int slice = (static_cast<int>(rank) << group.slice_shift) + own_slice;
  const int all_slices = 1 << (group.slice_shift + group.cluster_shift);
  const int count = (args.units_per_row / kUnits - slice + all_slices - 1) >>
                    (group.slice_shift + group.cluster_shift);
  const int step = all_slices * kUnits;

  StageSource<Shape> source(args, block_tile + row_warp * kRowTiles, slice * kUnits, step, lane);
  StageValues<Shape> ring[kDepth];
#pragma unroll
  for (int d = 0; d < kDepth; ++d)
    if (d < count) source.fetch(args, ring[d]);
  if constexpr (Shape::kind == Kind::kCompact) {
    // Of the tile that this warp will store.
    const int row_tile = min(block_tile + warp / kTokenTiles, args.row_tiles - 1);
    if (lane < 16) prefetch_l2(args.rows + row_tile * 16 + lane);
  }
  wait_for_previous_kernel();

  // Columns past the last token repeat it, and so do stages past the last: nobody stores the sums.
  const char* x_at[kTokenTiles];
  Activations x[2][kTokenTiles];
#pragma unroll
  for (int n = 0; n < kTokenTiles; ++n) {
    const int token = min(lane / 4 + 8 * n, args.num_tokens - 1);
    const int unit = count > 0 ? slice * kUnits : 0;
    x_at[n] = static_cast<const char*>(args.x) +
              (token * args.in_features + unit * kUnit + lane % 4 * 8) * 2;
    read(x[0][n], x_at[n]);
  }
  Sums<T, kTokenTiles, kRowTiles> sums;
  sums.clear();
  for (int i = 0; i < count; i += kDepth) {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const int left = count - i - d;
      if (left <= 0) break;
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const int now = (d * kUnits + u) % 2;
        const bool last = u + 1 == kUnits;
#pragma unroll
        for (int n = 0; n < kTokenTiles; ++n) {
          if (last && left > 1) x_at[n] += step * kUnit * 2;
          read(x[1 - now][n], x_at[n] + (last ? 0 : (u + 1) * kUnit * 2));
        }
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          uint32_t a[4][4];
          ring[d].template operand<T>(u, r, a);
#pragma unroll
          for (int n = 0; n < kTokenTiles; ++n) {
            const uint4(&b)[2] = x[now][n].x;
            Pair<T>::mma(sums.c[r][n], a[0], b[0].x, b[0].y);
            Pair<T>::mma(sums.c[r][n], a[1], b[0].z, b[0].w);
            Pair<T>::mma(sums.c[r][n], a[2], b[1].x, b[1].y);
            Pair<T>::mma(sums.c[r][n], a[3], b[1].z, b[1].w);
          }
        }
      }
      if (left > kDepth) source.fetch(args, ring[d]);
    }
  }
  auto* parts = reinterpret_cast<float4*>(shared);
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r)
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
      const float(&c)[4] = sums.c[r][n];
      const int tile = (row_warp * kRowTiles + r) * kTokenTiles + n;
      parts[((tile << group.slice_shift) + own_slice) * 32 + lane] =
          make_float4(c[0], c[1], c[2], c[3]);
    }
  __syncthreads();
  join_slices<T, Shape::kind>(group, args, parts, row_warps * kRowTiles * kTokenTiles, block_tile,
                              rank);
#endif
}

template <Kind kKind, bool kIsWide>
struct KindIs {
  static constexpr Kind kind = kKind;
  static constexpr bool kWide = kIsWide;
};

int logarithm_of(int power_of_two) {
  int result = 0;
  while ((1 << result) < power_of_two) ++result;
  return result;
}

template <class T, class Shape>
void launch_direct(const SkinnyArgs* parts, int count, Geometry geometry,
                   const Workspace& workspace, cudaStream_t stream) {
  if (workspace.compute_capability < 90) geometry.cluster = 1;
  DirectGroup group;
  group.slice_shift = logarithm_of(geometry.slices);
  group.cluster_shift = logarithm_of(geometry.cluster);
  const int row_tiles = geometry.row_warps * Shape::kRowTiles;
  const int clusters = group.fill(parts, count, row_tiles);
  const int warps = geometry.row_warps * geometry.slices;
  const size_t shared_bytes = size_t{512} * warps * Shape::kRowTiles * kTokenTiles;
  launch_overlapped_clusters(
      direct_kernel<T, Shape>, static_cast<unsigned>(clusters * geometry.cluster),
      static_cast<unsigned>(geometry.cluster), static_cast<unsigned>(warps) * 32, shared_bytes,
      stream, workspace.compute_capability, group);
}

bool takes_wide(const SkinnyArgs& args) {
  return args.units_per_group % 2 == 0 && args.units_per_row % 2 == 0;
}

template <class Body>
void with_16_bit(Scalar type, Body body) {
  if (type == Scalar::kBF16) return body(BFloat{});
  body(Half{});
}
template <class Body>
void with_kind(Kind kind, bool wide, Body body) {
  switch (kind) {
    case Kind::kW4:
      if (wide) return body(KindIs<Kind::kW4, true>{});
      return body(KindIs<Kind::kW4, false>{});
    case Kind::kW4Group32: return body(KindIs<Kind::kW4Group32, false>{});
    case Kind::kDense: return body(KindIs<Kind::kDense, false>{});
    case Kind::kCompact: return body(KindIs<Kind::kCompact, false>{});
  }
}

// Shapes and geometries by the size of the weights, as a sweep over all of them found for the
// shapes of benchmarks/cuda_linear.cc on an H100: many row tiles go to blocks of few warps, few of
// them are cut into more slices. In 12 bits, on an H200: four row tiles a block read a quarter of
// the activations of one, which pays unless they leave more of the card empty (qkv, z, a and b of a
// 40B layer: 258 blocks for 264 places).
template <class T, class K>
void launch(const SkinnyArgs* parts, int count, const Workspace& workspace, cudaStream_t stream) {
  constexpr int kDepth = K::kWide || K::kind != Kind::kW4 ? 2 : 4;
  using One = DirectShape<K::kind, K::kWide, 1, kDepth, 3>;
  using Two = DirectShape<K::kind, K::kWide, 2, kDepth, 2>;
  int row_tiles = 0;
  for (int i = 0; i < count; ++i) row_tiles += parts[i].row_tiles;
  const auto one = [&](Geometry geometry) {
    launch_direct<T, One>(parts, count, geometry, workspace, stream);
  };
  const auto two = [&](Geometry geometry) {
    launch_direct<T, Two>(parts, count, geometry, workspace, stream);
  };
  if (K::kind == Kind::kDense || K::kind == Kind::kCompact) {
    if (row_tiles < 500) return two({1, 8, 1});
    const int num_sms = workspace.num_sms;
    if (K::kind == Kind::kCompact &&
        fullness((row_tiles + 3) / 4, Two::kBlocks * num_sms) + 0.05f >=
            fullness(row_tiles, One::kBlocks * num_sms))
      return two({2, 4, 1});
    return one({1, 8, 1});
  }
  if (row_tiles < 150) return two({1, 8, 4});
  if (row_tiles < 500) return one({2, 4, 2});
  one({1, 4, 1});
}

}  // namespace

bool launch_linear_direct(Scalar type, Kind kind, const SkinnyArgs* parts, int count,
                          const Workspace& workspace, cudaStream_t stream) {
  for (int i = 0; i < count; ++i)
    if (parts[i].num_tokens > kDirectTokens || takes_wide(parts[i]) != takes_wide(parts[0]))
      return false;
  with_16_bit(type, [&](auto t) {
    with_kind(kind, takes_wide(parts[0]),
              [&](auto k) { launch<decltype(t), decltype(k)>(parts, count, workspace, stream); });
  });
  return true;
}

}  // namespace nibble::cuda
