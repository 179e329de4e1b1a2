// Products of many rows with the weights of experts that the device has chosen, in one launch: a
// block takes 128 or 256 outputs of one expert times up to 64 of its rows, gathered through a list.
//
// The list is made on the device (plan_kernel), so nothing is asked of the host: a counting sort by
// expert, and tiles of at most kTokens rows of one expert each (of 128 they took 1.1 times as long,
// with 16 to 80 rows an expert). The grid has room for as many tiles
// as there could be; blocks without one end at once. The order of an expert's rows may differ from
// run to run, their results do not: each has a row of its own in the output.
//
// Weights are the A operand of mma.m16n8k16 as in linear_stream.cuh, from global memory straight
// into registers, one unit of 64 inputs ahead; a weight is widened once for all rows of the tile.
// Rows go through a ring in shared memory.
#include "device/cuda/activation.cuh"
#include "device/cuda/launch.h"
#include "device/cuda/linear_stream.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = kWarps * 32;
constexpr int kTokens = kExpertTileRows;
constexpr int kDepth = 4;         // stages of the ring
constexpr int kPitch = 128 + 64;  // bytes of a row in a stage: two rows fill the banks
constexpr int kMostExperts = 1024;

constexpr int kStage = kTokens * kPitch;
constexpr int kShared = kDepth * kStage;

// Each warp has two row tiles, all rows. kSwiGlu: one of each weight.
template <Kind kKind, bool kSwiGluOfParts>
struct GroupedShape {
  static constexpr Kind kind = kKind;
  static constexpr bool kSwiGlu = kSwiGluOfParts;
  static constexpr int kOutTiles = kWarps * (kSwiGlu ? 1 : 2);  // row tiles of the output
  static constexpr int kOutPitch = kOutTiles * 32 + 16;
  static_assert(kTokens * kOutPitch <= kShared, "the output takes the place of the ring");
};

// One block. Grid 1, 1024 threads.
__global__ void __launch_bounds__(kMostExperts)
    plan_kernel(const int32_t* experts, int num_pairs, int num_experts, int most_tiles,
                ExpertLists lists) {
  __shared__ int32_t counts[kMostExperts];
  __shared__ int32_t warp_sums[2][32];
  const auto thread = static_cast<int>(threadIdx.x);
  const int lane = thread & 31;
  counts[thread] = 0;
  __syncthreads();
  for (int p = thread; p < num_pairs; p += kMostExperts) atomicAdd(&counts[experts[p]], 1);
  __syncthreads();
  // Rows and tiles of this expert and all before it.
  const int own = thread < num_experts ? counts[thread] : 0;
  const int own_tiles = (own + kTokens - 1) / kTokens;
  int through[2] = {own, own_tiles};
  for (int offset = 1; offset < 32; offset <<= 1)
    for (int& sum : through) {
      const int left = __shfl_up_sync(0xffffffffu, sum, offset);
      if (lane >= offset) sum += left;
    }
  if (lane == 31)
    for (int i = 0; i < 2; ++i) warp_sums[i][thread / 32] = through[i];
  __syncthreads();
  for (int i = 0; i < 2; ++i)
    for (int w = 0; w < thread / 32; ++w) through[i] += warp_sums[i][w];
  const int first = through[0] - own;
  for (int i = 0; i < own_tiles; ++i)
    lists.tiles[through[1] - own_tiles + i] = {thread, first + i * kTokens,
                                               min(kTokens, own - i * kTokens)};
  int total_tiles = 0;
  for (int w = 0; w < 32; ++w) total_tiles += warp_sums[1][w];
  for (int i = total_tiles + thread; i < most_tiles; i += kMostExperts) lists.tiles[i] = {-1, 0, 0};
  counts[thread] = first;
  __syncthreads();
  for (int p = thread; p < num_pairs; p += kMostExperts)
    lists.list[atomicAdd(&counts[experts[p]], 1)] = p;
}

#if NB_SKINNY_CODE

// Where a lane's part of a row tile lies, unit after unit.
template <class T, Kind kind>
struct WeightSource {
  const char* values[kind == Kind::kDense ? 2 : 1];
  const char* scale = nullptr;
  int group_shift;

  // Rows past the end repeat the last one; what comes of them is not stored.
  __device__ __forceinline__ void seek(const GroupedArgs& args, int part, int expert, int tile,
                                       int lane) {
    const SkinnyArgs& weight = args.parts[part];
    group_shift = weight.group_shift;
    const char* base =
        static_cast<const char*>(weight.values) + expert * args.experts.values_apart[part];
    if constexpr (kind == Kind::kDense) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int64_t row = min(int64_t{tile} * 16 + lane / 4 + 8 * i, weight.out_features - 1);
        values[i] = base + (row * weight.in_features + lane % 4 * 8) * 2;
      }
    } else {
      const int64_t own = min(tile, weight.row_tiles - 1);
      values[0] = base + own * weight.units_per_row * 512 + lane * 16;
      scale = static_cast<const char*>(weight.scale) + expert * args.experts.scales_apart[part] +
              own * weight.num_groups * 64 + lane / 4 * 8;
    }
  }
  __device__ __forceinline__ void read(Operand<T, kind>& to, int unit) const {
    if constexpr (kind == Kind::kDense) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        to.raw[i] = __ldg(reinterpret_cast<const uint4*>(values[i / 2] + unit * 128 + i % 2 * 64));
    } else {
      to.raw[0] = __ldg(reinterpret_cast<const uint4*>(values[0] + unit * 512));
      constexpr int kGroups = kind == Kind::kW4Group32 ? 2 : 1;
      const int group = kind == Kind::kW4Group32 ? 2 * unit : unit >> group_shift;
#pragma unroll
      for (int i = 0; i < kGroups; ++i)
        to.scale[i] = __ldg(reinterpret_cast<const uint2*>(scale + (group + i) * 64));
    }
  }
};

#endif  // NB_SKINNY_CODE

// Grid (blocks of outputs, tiles).
template <class T, class Shape>
__global__ void __launch_bounds__(kThreads, Shape::kind == Kind::kDense ? 1 : 2)
    grouped_kernel(const __grid_constant__ GroupedArgs args) {
#if NB_SKINNY_CODE
  constexpr int kTokenTiles = kTokens / 8;
  constexpr Kind kind = Shape::kind;
  extern __shared__ __align__(16) char shared[];
  const ExpertTile tile = args.lists.tiles[blockIdx.y];
  if (tile.expert < 0) return;
  const int32_t* list = args.lists.list + tile.first;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int token_tiles = (tile.count + 7) / 8;
  const int units = args.parts[0].units_per_row;
  const int first_out_tile = static_cast<int>(blockIdx.x) * Shape::kOutTiles;

  WeightSource<T, kind> source[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int part = Shape::kSwiGlu ? r : 0;
    const int own = first_out_tile + (Shape::kSwiGlu ? warp : warp * 2 + r);
    source[r].seek(args, part, tile.expert, own, lane);
  }
  // Each thread brings the same 16 bytes of a unit of several rows; rows past the tile's end repeat
  // its first.
  constexpr int kCopies = kTokens * 8 / kThreads;
  const auto* x = static_cast<const char*>(args.parts[0].x);
  uint32_t from[kCopies];  // in units of 16 bytes
#pragma unroll
  for (int i = 0; i < kCopies; ++i) {
    const int token = (static_cast<int>(threadIdx.x) + i * kThreads) / 8;
    const int row = list[token < tile.count ? token : 0] / args.experts.pairs_per_row;
    from[i] = static_cast<uint32_t>(row) * static_cast<uint32_t>(units * 8) + threadIdx.x % 8;
  }
  const auto fetch = [&](int unit) {
    if (unit < units) {
      char* stage = shared + unit % kDepth * kStage;
#pragma unroll
      for (int i = 0; i < kCopies; ++i)
        copy_async_16(stage + (threadIdx.x + i * kThreads) / 8 * kPitch + threadIdx.x % 8 * 16,
                      x + (size_t{from[i]} + static_cast<uint32_t>(unit * 8)) * 16);
    }
    commit_async();
  };
#pragma unroll
  for (int u = 0; u < kDepth - 1; ++u) fetch(u);
  Operand<T, kind> ahead[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) source[r].read(ahead[r], 0);

  Sums<T, kTokenTiles, 2> sums;
  sums.clear();
  const char* x_of_lane = shared + lane / 4 * kPitch + lane % 4 * 16;
#pragma unroll 1
  for (int unit = 0; unit < units; ++unit) {
    // Widened before the wait for the rows (widening half a unit at a time, after it, took 1.4
    // times as long).
    uint32_t a[2][4][4];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      ahead[r].template step<0>(a[r][0]);
      ahead[r].template step<1>(a[r][1]);
      ahead[r].template step<2>(a[r][2]);
      ahead[r].template step<3>(a[r][3]);
      source[r].read(ahead[r], min(unit + 1, units - 1));
    }
    wait_async<kDepth - 2>();
    __syncthreads();  // all have copied this unit, and none needs the one before
    fetch(unit + kDepth - 1);
    const char* x_at = x_of_lane + unit % kDepth * kStage;
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
      if (n >= token_tiles) break;
      const uint4 low = *reinterpret_cast<const uint4*>(x_at + n * 8 * kPitch);
      const uint4 high = *reinterpret_cast<const uint4*>(x_at + n * 8 * kPitch + 64);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        Pair<T>::mma(sums.c[r][n], a[r][0], low.x, low.y);
        Pair<T>::mma(sums.c[r][n], a[r][1], low.z, low.w);
        Pair<T>::mma(sums.c[r][n], a[r][2], high.x, high.y);
        Pair<T>::mma(sums.c[r][n], a[r][3], high.z, high.w);
      }
    }
  }

  // The ring becomes [row][outputs of the block], so that whole lines go out.
  wait_async<0>();
  __syncthreads();
  const auto put = [&](int token, int out, T value) {
    *reinterpret_cast<T*>(shared + token * Shape::kOutPitch + out * 2) = value;
  };
#pragma unroll
  for (int n = 0; n < kTokenTiles; ++n)
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int token = 8 * n + lane % 4 * 2 + k % 2;
      const int row = lane / 4 + k / 2 * 8;
      const T first = Round<T>::of(sums.c[0][n][k]);
      const T second = Round<T>::of(sums.c[1][n][k]);
      if constexpr (Shape::kSwiGlu) {
        put(token, warp * 16 + row, silu_mul(first, second));
      } else {
        put(token, warp * 32 + row, first);
        put(token, warp * 32 + 16 + row, second);
      }
    }
  __syncthreads();
  constexpr int kVectors = Shape::kOutTiles * 2;  // of 8 outputs
  const SkinnyArgs& result = args.parts[0];
  for (int i = threadIdx.x; i < tile.count * kVectors; i += kThreads) {
    const int token = i / kVectors;
    const int64_t out = int64_t{first_out_tile} * 16 + i % kVectors * 8;
    if (out >= result.out_features) continue;
    *reinterpret_cast<uint4*>(static_cast<T*>(result.out) + list[token] * result.out_features +
                              out) =
        *reinterpret_cast<const uint4*>(shared + token * Shape::kOutPitch + i % kVectors * 16);
  }
#endif
}

template <class T, class Shape>
void launch_shape(const GroupedArgs& args, int most_tiles, cudaStream_t stream) {
  allow_shared_memory(grouped_kernel<T, Shape>, kShared);
  const int blocks = (args.parts[0].row_tiles + Shape::kOutTiles - 1) / Shape::kOutTiles;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(most_tiles));
  grouped_kernel<T, Shape><<<grid, kThreads, kShared, stream>>>(args);
  NB_CUDA_LAUNCHED();
}

template <class T>
void launch(Kind kind, bool swiglu, const GroupedArgs& args, int most_tiles, cudaStream_t stream) {
  const auto run = [&](auto one, auto two) {
    if (swiglu) return launch_shape<T, decltype(two)>(args, most_tiles, stream);
    launch_shape<T, decltype(one)>(args, most_tiles, stream);
  };
  switch (kind) {
    case Kind::kW4: return run(GroupedShape<Kind::kW4, false>{}, GroupedShape<Kind::kW4, true>{});
    case Kind::kW4Group32:
      return run(GroupedShape<Kind::kW4Group32, false>{}, GroupedShape<Kind::kW4Group32, true>{});
    case Kind::kDense:
      return run(GroupedShape<Kind::kDense, false>{}, GroupedShape<Kind::kDense, true>{});
    case Kind::kCompact: return;  // describe_experts() turns them away
  }
}

}  // namespace

ExpertPlan expert_plan_of(int num_pairs, int num_experts) {
  ExpertPlan plan;
  plan.num_pairs = num_pairs;
  plan.num_experts = num_experts;
  plan.most_tiles = num_pairs / kTokens + (num_experts < num_pairs ? num_experts : num_pairs);
  plan.bytes = static_cast<size_t>(num_pairs) * sizeof(int32_t) +
               static_cast<size_t>(plan.most_tiles) * sizeof(ExpertTile);
  return plan;
}

void launch_expert_plan(const int32_t* experts, const ExpertPlan& plan, cudaStream_t stream) {
  plan_kernel<<<1, kMostExperts, 0, stream>>>(experts, plan.num_pairs, plan.num_experts,
                                              plan.most_tiles, lists_of(plan));
  NB_CUDA_LAUNCHED();
}

bool can_group_experts(const ExpertsLaunch& args, size_t num_experts) {
  return num_experts <= kMostExperts && args.parts[0].first.out_features % 8 == 0;
}

void launch_grouped(Scalar type, Kind kind, const SkinnyArgs* parts, int count,
                    const ExpertArgs& experts, const ExpertPlan& plan, cudaStream_t stream) {
  const GroupedArgs args{{parts[0], parts[count - 1]}, experts, lists_of(plan)};
  if (type == Scalar::kBF16) {
    launch<BFloat>(kind, count == 2, args, plan.most_tiles, stream);
  } else {
    launch<Half>(kind, count == 2, args, plan.most_tiles, stream);
  }
}

}  // namespace nibble::cuda
