// y = x W' for up to 8 tokens: a thread block per row tile, its warps taking turns along the row,
// their sums joined in shared memory. Many short blocks keep the memory busy without any hand-over
// between them.
//
// kWide: two units at a time under one scale, in groups of 128 or more: the instructions around the
// dequantization are what limits packed weights here, and this halves them.
#include <type_traits>

#include "device/cuda/launch.h"
#include "device/cuda/linear_stream.cuh"
#include "device/cuda/overlap.cuh"

namespace nibble::cuda {
namespace {

// What a block does: units in a stage, stages of a ring; what that takes.
template <Kind kKind, bool kWide, int kStages>
struct VectorShape {
  static constexpr Kind kind = kKind;
  static constexpr int kUnits = kWide ? 2 : 1;
  static constexpr int kVectors = kUnitVectors<kind>;  // of 512 bytes, of a unit
  static constexpr int kValueBytes = kUnits * kVectors * 512;
  static constexpr int kScaleLanes = 8 * kUnitScales<kind>;
  static constexpr int kStage = kValueBytes + kScaleLanes * 8;
  static constexpr int kDepth = kStages;
  static constexpr int kRing = kDepth * kStage;  // of a warp
  static constexpr int kBlocks = 3;              // on a multiprocessor
  static constexpr size_t kShared = size_t{kWarps} * kRing;
};

// Of the kernel for one weight a part and of that for experts.
template <class T, class Shape, class Experts>
__device__ __forceinline__ void vector_body(const SkinnyGroup& group, const Experts& experts) {
#if NB_SKINNY_CODE
  constexpr Kind kind = Shape::kind;
  constexpr int kUnits = Shape::kUnits;
  extern __shared__ __align__(16) char shared[];
  let_next_kernel_start();
  int part = 0;
  while (static_cast<int>(blockIdx.x) >= group.end[part]) ++part;
  const SkinnyArgs& args = group.parts[part];
  constexpr bool kExperts = std::is_same_v<Experts, ExpertArgs>;
  int row_tile = static_cast<int>(blockIdx.x) - (part == 0 ? 0 : group.end[part - 1]);
  int pair = 0;
  int64_t expert = 0;
  if constexpr (kExperts) {
    pair = row_tile / args.row_tiles;
    row_tile -= pair * args.row_tiles;
    wait_for_previous_kernel();  // which may have chosen the experts
    expert = *static_cast<const volatile int32_t*>(experts.experts + pair);
  }
  // Not variables: held from here on they cost the kernel without experts 40 instructions, and
  // decoding at batch 1 one percent.
  const auto all_values = [&] {
    if constexpr (kExperts)
      return static_cast<const char*>(args.values) + expert * experts.values_apart[part];
    return static_cast<const char*>(args.values);
  };
  const auto all_scales = [&] {
    if constexpr (kExperts)
      return static_cast<const char*>(args.scale) + expert * experts.scales_apart[part];
    return static_cast<const char*>(args.scale);
  };
  const auto all_x = [&] {
    if constexpr (kExperts)
      return static_cast<const char*>(args.x) + pair / experts.pairs_per_row * args.in_features * 2;
    return static_cast<const char*>(args.x);
  };
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  char* ring = shared + warp * Shape::kRing;
  const int count = (args.units_per_row / kUnits - warp + kWarps - 1) / kWarps;

  // Rows past the end repeat the last one; their sums are not stored.
  constexpr int kPointers = kind == Kind::kDense ? 2 : 1;
  const char* values[kPointers];
  const char* scale = nullptr;
#pragma unroll
  for (int i = 0; i < kPointers; ++i) {
    if constexpr (kind == Kind::kDense) {
      const int64_t row = min(int64_t{row_tile} * 16 + lane / 4 + 8 * i, args.out_features - 1);
      values[i] = all_values() + (row * args.in_features + warp * kUnit + lane % 4 * 8) * 2;
    } else {
      values[i] =
          all_values() +
          (int64_t{row_tile} * args.units_per_row + warp * kUnits) * (Shape::kVectors * 512) +
          lane * 16;
    }
  }
  if constexpr (Shape::kScaleLanes > 0)
    scale = all_scales() + int64_t{row_tile} * args.num_groups * 64 + lane % Shape::kScaleLanes * 8;
  int fetched = 0;
  char* fetch_stage = ring;
  const auto fetch_next = [&] {
    if (fetched < count) {
#pragma unroll
      for (int i = 0; i < kPointers; ++i) {
        if constexpr (kind == Kind::kDense) {
#pragma unroll
          for (int j = 0; j < 2; ++j)
            copy_async_16(fetch_stage + (i * 2 + j) * 512 + lane * 16, values[i] + j * 64);
          values[i] += kWarps * kUnit * 2;
        } else {
#pragma unroll
          for (int v = 0; v < kUnits * Shape::kVectors; ++v)
            copy_async_16(fetch_stage + v * 512 + lane * 16, values[i] + v * 512);
          values[i] += kWarps * kUnits * Shape::kVectors * 512;
        }
      }
      if constexpr (Shape::kScaleLanes > 0) {
        const int unit = (fetched * kWarps + warp) * kUnits;
        const int first = kind == Kind::kW4 ? unit >> args.group_shift : 2 * unit;
        if (lane < Shape::kScaleLanes)
          copy_async_8(fetch_stage + Shape::kValueBytes + lane * 8, scale + first * 64);
      }
      ++fetched;
      fetch_stage += Shape::kStage;
      if (fetch_stage == ring + Shape::kRing) fetch_stage = ring;
    }
    commit_async();
  };
#pragma unroll
  for (int i = 0; i < Shape::kDepth - 1; ++i) fetch_next();
  RowEnds<T, kind> ends;  // of the warp that stores
  if (warp == 0) ends.read(args, row_tile, lane);
  wait_for_previous_kernel();

  const bool present = lane / 4 < args.num_tokens;
  const char* x_at =
      all_x() + (lane / 4 * args.in_features + warp * kUnits * kUnit + lane % 4 * 8) * 2;
  Activations ahead[kUnits];
#pragma unroll
  for (int u = 0; u < kUnits; ++u) ahead[u].read(x_at + u * kUnit * 2, present && count > 0);
  // Two chains of products run side by side.
  Sums<T, 1, 1> sums[2];
  sums[0].clear();
  sums[1].clear();
  const char* stage = ring;
#pragma unroll 2
  for (int i = 0; i < count; ++i) {
    Activations x[kUnits];
    x_at += kWarps * kUnits * kUnit * 2;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      x[u] = ahead[u];
      ahead[u].read(x_at + u * kUnit * 2, present && i + 1 < count);
    }
    wait_async<Shape::kDepth - 2>();
    __syncwarp();
    Operand<T, kind> weights;
    // Both units of a wide stage have the same scales.
    weights.read_scales(stage + Shape::kValueBytes, 0, lane);
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      weights.read_values(stage + u * Shape::kVectors * 512, 0, lane);
      uint32_t a[4][4];
      weights.template step<0>(a[0]);
      weights.template step<1>(a[1]);
      weights.template step<2>(a[2]);
      weights.template step<3>(a[3]);
      const uint4(&b)[2] = x[u].x;
      Pair<T>::mma(sums[0].c[0][0], a[0], b[0].x, b[0].y);
      Pair<T>::mma(sums[1].c[0][0], a[1], b[0].z, b[0].w);
      Pair<T>::mma(sums[0].c[0][0], a[2], b[1].x, b[1].y);
      Pair<T>::mma(sums[1].c[0][0], a[3], b[1].z, b[1].w);
    }
    fetch_next();
    stage += Shape::kStage;
    if (stage == ring + Shape::kRing) stage = ring;
  }
  sums[0].add(sums[1]);

  // All copies have landed: the rings become room for the sums, [warp][32 lanes x 4].
  __syncthreads();
  auto* parts = reinterpret_cast<float4*>(shared);
  const float(&c)[4] = sums[0].c[0][0];
  parts[warp * 32 + lane] = make_float4(c[0], c[1], c[2], c[3]);
  __syncthreads();
  if (warp > 0) return;
  Sums<T, 1, 1> total;
  total.clear();
#pragma unroll
  for (int w = 0; w < kWarps; ++w)
    total.add_shared(reinterpret_cast<const float*>(parts + w * 32), lane);
  ends.apply(args, total.c[0][0], lane, 0);
  total.store(args, row_tile, lane, 0, pair * args.out_features);
#endif
}

template <class T, class Shape>
__global__ void __launch_bounds__(kWarps * 32, Shape::kBlocks)
    vector_kernel(const __grid_constant__ SkinnyGroup group) {
  vector_body<T, Shape>(group, NoExperts{});
}
template <class T, class Shape>
__global__ void __launch_bounds__(kWarps * 32, Shape::kBlocks)
    expert_kernel(const __grid_constant__ SkinnyGroup group,
                  const __grid_constant__ ExpertArgs experts) {
  vector_body<T, Shape>(group, experts);
}

// `experts`: nothing, or one ExpertArgs.
template <class T, class Shape, class... Experts>
void launch_vector(const SkinnyArgs* parts, int count, const Workspace& workspace,
                   cudaStream_t stream, const Experts&... experts) {
  const int num_pairs = (1 * ... * experts.num_pairs);
  SkinnyGroup group;
  const int blocks = group.fill(parts, count, 1, num_pairs);
  const auto kernel = [] {
    if constexpr (sizeof...(Experts) == 0) {
      return vector_kernel<T, Shape>;
    } else {
      return expert_kernel<T, Shape>;
    }
  }();
  allow_shared_memory(kernel, Shape::kShared);
  launch_overlapped(kernel, static_cast<unsigned>(blocks), kWarps * 32, Shape::kShared, stream,
                    workspace.compute_capability, group, experts...);
}

bool takes_wide(const SkinnyArgs& args) {
  return args.group_shift >= 1 && args.units_per_row % 2 == 0;
}

template <class T>
void launch(Kind kind, const SkinnyArgs* parts, int count, const ExpertArgs* experts,
            const Workspace& workspace, cudaStream_t stream) {
  const auto of_shape = [&](auto shape) {
    using Shape = decltype(shape);
    if (experts != nullptr)
      return launch_vector<T, Shape>(parts, count, workspace, stream, *experts);
    launch_vector<T, Shape>(parts, count, workspace, stream);
  };
  switch (kind) {
    case Kind::kW4:
      if (takes_wide(parts[0])) return of_shape(VectorShape<Kind::kW4, true, 6>{});
      return of_shape(VectorShape<Kind::kW4, false, 8>{});
    case Kind::kW4Group32: return of_shape(VectorShape<Kind::kW4Group32, false, 8>{});
    case Kind::kDense:
      // More tokens need more of the first-level cache, which shorter rings leave them.
      if (parts[0].num_tokens > 4) return of_shape(VectorShape<Kind::kDense, false, 3>{});
      return of_shape(VectorShape<Kind::kDense, false, 4>{});
    case Kind::kCompact:
      if constexpr (std::is_same_v<T, BFloat>) {
        if (parts[0].num_tokens > 4) return of_shape(VectorShape<Kind::kCompact, false, 4>{});
        return of_shape(VectorShape<Kind::kCompact, false, 5>{});
      }
      return;
  }
}

}  // namespace

bool launch_linear_vector(Scalar type, Kind kind, const SkinnyArgs* parts, int count,
                          const Workspace& workspace, cudaStream_t stream,
                          const ExpertArgs* experts) {
  for (int i = 0; i < count; ++i)
    if (parts[i].num_tokens > kRingTokens || parts[i].group_shift < 0 ||
        takes_wide(parts[i]) != takes_wide(parts[0]))
      return false;
  if (type == Scalar::kBF16) {
    launch<BFloat>(kind, parts, count, experts, workspace, stream);
  } else {
    launch<Half>(kind, parts, count, experts, workspace, stream);
  }
  return true;
}

}  // namespace nibble::cuda
