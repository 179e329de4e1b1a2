// y = x W' for few tokens: the weight is streamed through the tensor cores exactly once, at memory
// speed; 4-bit tiles and plain 16-bit rows share the kernel.
//
// The weight is the A operand of mma.m16n8k16 (16 outputs x 16 inputs), the tokens are its 8
// columns: up to 8 tokens cost no more multiplications than one. A unit is 64 inputs of the rows of
// a block (8 warps x 2 tiles x 16). All units form one line, row blocks after one another, and
// every thread block takes an equal piece of that line, so all multiprocessors finish together
// whatever the shape. Each warp streams its rows through a ring of shared memory that only it
// touches: cp.async with several units in flight, no block-wide barrier anywhere.
//
// A row block that several thread blocks share is summed by whoever finishes last, in the order of
// the thread blocks: the result does not depend on timing.
//
// Activations are read as 16-byte vectors (the k order inside a unit is permuted alike on both
// sides, see linear.h); the 8 warps of a block read the same ones, so seven of eight reads hit L1.
// A warp's two row tiles share them, and the work of walking along the line.
//
// On sm_90 the kernel starts while the one before it drains, and fills its rings meanwhile.
//
// Cost per unit and row tile: 512 bytes of weights + 64 of scales in 4 bits, 2048 bytes in 16 bits,
// 1536 in 12.
// Dequantization: (magic | nibble) - zero exactly, times scale rounded once, both on pairs.
#include <algorithm>
#include <type_traits>

#include "device/cuda/launch.h"
#include "device/cuda/linear_stream.cuh"
#include "device/cuda/overlap.cuh"

namespace nibble::cuda {
namespace {

constexpr int kRowTiles = 2;  // of 16 outputs, per warp

// A stage of a warp's ring: the values of its row tiles, then their scales.
template <Kind kind>
constexpr int kValueBytes = 512 * kRowTiles* kUnitVectors<kind>;
template <Kind kind>
constexpr int kScaleBytes = 64 * kRowTiles* kUnitScales<kind>;
template <Kind kind>
constexpr int kStageBytes = kValueBytes<kind> + kScaleBytes<kind>;
template <Kind kind>
constexpr int kStages = kUnitVectors<kind> > 1 ? 3 : 8;
template <Kind kind>
constexpr size_t kSharedBytes = size_t{kWarps} * kStages<kind>* kStageBytes<kind>;

#if NB_SKINNY_CODE

// Where this lane's part of the next unit of the warp's row tiles lies; walking along the rows
// costs additions only, which matters: at full memory speed a warp has about 250 instructions per
// unit. Row tiles past the end repeat the last one; their sums are not stored.
template <Kind kind>
struct Source {
  static constexpr int kPointers = kRowTiles * (kind == Kind::kDense ? 2 : 1);
  const char* values[kPointers];  // dense: of rows g and g + 8
  const char* scale;              // lanes 0..15 of the two row tiles, in groups of 32 all lanes
  int units_left;                 // in the group, kW4

  __device__ __forceinline__ void seek(const SkinnyArgs& args, int first_tile, int unit, int lane) {
    const auto* base = static_cast<const char*>(args.values);
#pragma unroll
    for (int i = 0; i < kPointers; ++i) {
      if constexpr (kind == Kind::kDense) {
        const int64_t row = min(int64_t{first_tile} * 16 + lane / 4 + 8 * i, args.out_features - 1);
        values[i] = base + (row * args.in_features + unit * kUnit + lane % 4 * 8) * 2;
      } else {
        const int64_t tile = min(first_tile + i, args.row_tiles - 1);
        values[i] =
            base + (tile * args.units_per_row + unit) * (kUnitVectors<kind> * 512) + lane * 16;
      }
    }
    if constexpr (kHasScales<kind>) {
      constexpr int kLanes = kScaleBytes<kind> / kRowTiles / 8;  // of one row tile
      const int64_t tile = min(first_tile + lane / kLanes % kRowTiles, args.row_tiles - 1);
      const int64_t group = kind == Kind::kW4 ? unit / args.units_per_group : 2 * unit;
      scale = static_cast<const char*>(args.scale) + (tile * args.num_groups + group) * 64 +
              lane % kLanes * 8;
      if constexpr (kind == Kind::kW4)
        units_left = args.units_per_group - unit % args.units_per_group;
    }
  }
  // Starts the copies of one unit and moves on to the next.
  __device__ __forceinline__ void fetch(const SkinnyArgs& args, int lane, char* to) {
#pragma unroll
    for (int i = 0; i < kPointers; ++i) {
      if constexpr (kind == Kind::kDense) {
#pragma unroll
        for (int j = 0; j < 2; ++j)
          copy_async_16(to + (i * 2 + j) * 512 + lane * 16, values[i] + j * 64);
        values[i] += kUnit * 2;
      } else {
        constexpr int kVectors = kUnitVectors<kind>;
#pragma unroll
        for (int v = 0; v < kVectors; ++v)
          copy_async_16(to + (i * kVectors + v) * 512 + lane * 16, values[i] + v * 512);
        values[i] += kVectors * 512;
      }
    }
    if constexpr (kHasScales<kind>) {
      if (lane < kScaleBytes<kind> / 8) copy_async_8(to + kValueBytes<kind> + lane * 8, scale);
      if constexpr (kind == Kind::kW4Group32) {
        scale += 128;
      } else if (--units_left == 0) {
        units_left = args.units_per_group;
        scale += 64;
      }
    }
  }
};

// The sums of this warp's rows over this thread block's units are complete: store them, or leave
// them for the last of the thread blocks that share the rows.
//
// A thread block leaves its part in slot 2 b if the row block is its first, else in slot 2 b + 1:
// it shares at most its first and its last row block. Of those that share a row block only the
// first can have begun before it.
template <class T, Kind kind, class S>
__device__ __forceinline__ void finish(const SkinnyArgs& args, S& sums, int row_block, int row_tile,
                                       int warp, int lane) {
  const auto store = [&] {
    if constexpr (kind == Kind::kCompact) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        if (row_tile + r >= args.row_tiles) break;
        RowEnds<T, kind> ends;
        ends.read(args, row_tile + r, lane);
#pragma unroll
        for (int n = 0; n < S::kTokens; ++n) ends.apply(args, sums.c[r][n], lane, 8 * n);
      }
    }
    sums.store(args, row_tile, lane);
  };
  const int begin = row_block * args.units_per_row;
  const int first = begin / args.units_per_block;
  const int last = (begin + args.units_per_row - 1) / args.units_per_block;
  if (first == last) return store();
  const bool first_began_before = first * args.units_per_block < begin;
  const auto partial = [&](int block) {
    const int slot = 2 * block + (block == first && first_began_before ? 1 : 0);
    return args.partials + (int64_t{slot} * kWarps + warp) * S::kFloats;
  };
  sums.store_partial(partial(static_cast<int>(blockIdx.x)), lane);
  __threadfence();
  __syncwarp();
  uint32_t arrived = 0;
  uint32_t* counter = args.counters + row_block * kWarps + warp;
  if (lane == 0) arrived = atomicAdd(counter, 1);
  arrived = __shfl_sync(0xffffffffu, arrived, 0);
  if (arrived != static_cast<uint32_t>(last - first)) return;
  __threadfence();
  sums.clear();
#pragma unroll(S::kFloats <= 256 ? 4 : 1)
  for (int block = first; block <= last; ++block) sums.add_partial(partial(block), lane);
  store();
  if (lane == 0) *counter = 0;
}

#endif  // NB_SKINNY_CODE

template <class T, Kind kind, int kTokenTiles>
__global__ void __launch_bounds__(kWarps * 32, kTokenTiles <= 4 ? 2 : 1)
    skinny_kernel(const SkinnyArgs args) {
#if NB_SKINNY_CODE
  constexpr int kDepth = kStages<kind>;
  constexpr bool kPrefetch = kTokenTiles == 1;  // activations one unit ahead, in registers
  extern __shared__ __align__(16) char shared[];
  let_next_kernel_start();
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  char* ring = shared + warp * kDepth * kStageBytes<kind>;
  char* ring_end = ring + kDepth * kStageBytes<kind>;

  const int begin = static_cast<int>(blockIdx.x) * args.units_per_block;
  int left = min(args.units_per_block, args.units - begin);
  int row_block = begin / args.units_per_row;
  int unit = begin - row_block * args.units_per_row;
  const auto row_tile_of = [&](int block) { return (block * kWarps + warp) * kRowTiles; };

  // The producer runs ahead of the consumer along the same line.
  Source<kind> source;
  int fetch_block = row_block;
  int fetch_unit = unit;
  int to_fetch = left;
  char* fetch_stage = ring;
  const auto fetch_next = [&] {
    if (to_fetch > 0) {
      if (fetch_unit == args.units_per_row) {
        fetch_unit = 0;
        ++fetch_block;
        source.seek(args, row_tile_of(fetch_block), fetch_unit, lane);
      }
      source.fetch(args, lane, fetch_stage);
      --to_fetch;
      ++fetch_unit;
      fetch_stage += kStageBytes<kind>;
      if (fetch_stage == ring_end) fetch_stage = ring;
    }
    commit_async();
  };
  source.seek(args, row_tile_of(fetch_block), fetch_unit, lane);
#pragma unroll
  for (int i = 0; i < kDepth - 1; ++i) fetch_next();

  // Weights are constant; everything else may still be the work of the kernel before.
  wait_for_previous_kernel();

  // Activations of the tokens 8 n + lane / 4, one unit ahead of the sums: `x_at` walks with them.
  const char* x_row =
      static_cast<const char*>(args.x) + (lane / 4 * args.in_features + lane % 4 * 8) * 2;
  const char* x_at = x_row + unit * (kUnit * 2);
  const int64_t x_stride = 16 * args.in_features;  // bytes of 8 tokens
  int x_unit = unit;
  const auto read_x = [&](Activations& x, int n) {
    x.read(x_at + n * x_stride, 8 * n + lane / 4 < args.num_tokens);
  };
  const auto next_x = [&] {
    x_at += kUnit * 2;
    if (++x_unit == args.units_per_row) {
      x_unit = 0;
      x_at = x_row;
    }
  };
  Activations ahead[kPrefetch ? kTokenTiles : 1];
  if constexpr (kPrefetch) {
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) read_x(ahead[n], n);
    next_x();
  }

  const char* stage = ring;
  while (left > 0) {
    // Two sums per output where registers allow, for even and odd steps: shorter chains.
    constexpr int kChains = kTokenTiles == 1 ? 2 : 1;
    Sums<T, kTokenTiles, kRowTiles> sums[kChains];
#pragma unroll
    for (int c = 0; c < kChains; ++c) sums[c].clear();
    const int length = min(left, args.units_per_row - unit);
#pragma unroll(kPrefetch ? 2 : 1)
    for (int i = 0; i < length; ++i) {
      Activations x[kPrefetch ? kTokenTiles : 2];
      if constexpr (kPrefetch) {
#pragma unroll
        for (int n = 0; n < kTokenTiles; ++n) {
          x[n] = ahead[n];
          read_x(ahead[n], n);
        }
        next_x();
      } else {
        read_x(x[0], 0);
      }
      wait_async<kDepth - 2>();
      __syncwarp();
      const auto operand = [&](int r, uint32_t(&a)[4][4]) {
        Operand<T, kind> weights;
        weights.read(stage, stage + kValueBytes<kind>, r, lane);
        weights.template step<0>(a[0]);
        weights.template step<1>(a[1]);
        weights.template step<2>(a[2]);
        weights.template step<3>(a[3]);
      };
      const auto multiply = [&](int r, int n, const uint32_t(&a)[4][4], const Activations& b) {
        Pair<T>::mma(sums[0].c[r][n], a[0], b.x[0].x, b.x[0].y);
        Pair<T>::mma(sums[kChains - 1].c[r][n], a[1], b.x[0].z, b.x[0].w);
        Pair<T>::mma(sums[0].c[r][n], a[2], b.x[1].x, b.x[1].y);
        Pair<T>::mma(sums[kChains - 1].c[r][n], a[3], b.x[1].z, b.x[1].w);
      };
      if constexpr (kPrefetch) {
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          uint32_t a[4][4];
          operand(r, a);
#pragma unroll
          for (int n = 0; n < kTokenTiles; ++n) multiply(r, n, a, x[n]);
        }
      } else {
        uint32_t a[kRowTiles][4][4];
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) operand(r, a[r]);
#pragma unroll
        for (int n = 0; n < kTokenTiles; ++n) {
          if (n + 1 < kTokenTiles) read_x(x[(n + 1) % 2], n + 1);
#pragma unroll
          for (int r = 0; r < kRowTiles; ++r) multiply(r, n, a[r], x[n % 2]);
        }
      }
      fetch_next();
      stage += kStageBytes<kind>;
      if (stage == ring_end) stage = ring;
      if constexpr (!kPrefetch) next_x();
    }
    if constexpr (kChains == 2) sums[0].add(sums[1]);
    const int row_tile = row_tile_of(row_block);
    if (row_tile < args.row_tiles) finish<T, kind>(args, sums[0], row_block, row_tile, warp, lane);
    left -= length;
    unit = 0;
    ++row_block;
  }
#endif
}

template <class T, Kind kind, int kTokenTiles>
void launch_of(SkinnyArgs args, const Workspace& workspace, cudaStream_t stream) {
  const auto kernel = skinny_kernel<T, kind, kTokenTiles>;
  constexpr size_t kShared = kSharedBytes<kind>;
  allow_shared_memory(kernel, kShared);
  static const int blocks_per_sm = [&] {
    int blocks = 0;
    NB_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kWarps * 32, kShared));
    return blocks;
  }();
  const int row_blocks = (args.row_tiles + kWarps * kRowTiles - 1) / (kWarps * kRowTiles);
  args.units = row_blocks * args.units_per_row;
  // At least four units a block: below that the start costs more than the work.
  const int slots = workspace.num_sms * blocks_per_sm;
  args.units_per_block = std::max(4, (args.units + slots - 1) / slots);
  const int blocks = (args.units + args.units_per_block - 1) / args.units_per_block;
  const size_t partials_bytes =
      size_t{2} * blocks * kWarps * kRowTiles * kTokenTiles * 128 * sizeof(float);
  if (partials_bytes > workspace.scratch_size || row_blocks * kWarps > workspace.num_counters)
    fail(cudaErrorMemoryAllocation, "workspace of a product of few tokens", __FILE__, __LINE__);
  args.partials = static_cast<float*>(workspace.scratch);
  args.counters = workspace.counters;
  launch_overlapped(kernel, static_cast<unsigned>(blocks), kWarps * 32, kShared, stream,
                    workspace.compute_capability, args);
}

template <class T, Kind kind>
void launch_tokens(const SkinnyArgs& args, const Workspace& workspace, cudaStream_t stream) {
  if (args.num_tokens <= 8) return launch_of<T, kind, 1>(args, workspace, stream);
  if (args.num_tokens <= 32) return launch_of<T, kind, 4>(args, workspace, stream);
  launch_of<T, kind, 8>(args, workspace, stream);
}

template <class T>
void launch_kind(Kind kind, const SkinnyArgs& args, const Workspace& workspace,
                 cudaStream_t stream) {
  switch (kind) {
    case Kind::kW4: return launch_tokens<T, Kind::kW4>(args, workspace, stream);
    case Kind::kW4Group32: return launch_tokens<T, Kind::kW4Group32>(args, workspace, stream);
    case Kind::kDense: return launch_tokens<T, Kind::kDense>(args, workspace, stream);
    case Kind::kCompact:
      if constexpr (std::is_same_v<T, BFloat>)
        return launch_tokens<T, Kind::kCompact>(args, workspace, stream);
      return;
  }
}

}  // namespace

void launch_linear_streamed(Scalar type, Kind kind, const SkinnyArgs& args,
                            const Workspace& workspace, cudaStream_t stream) {
  if (type == Scalar::kBF16) return launch_kind<BFloat>(kind, args, workspace, stream);
  launch_kind<Half>(kind, args, workspace, stream);
}

}  // namespace nibble::cuda
