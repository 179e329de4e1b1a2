// y = x W' for tens to hundreds of tokens on sm_90a: packed weights are widened in registers, once
// for all tokens of a tile, and are the left operand of wgmma; tokens are its columns, in panels of
// shared memory.
//
// A tile is 256 outputs times up to 128 tokens; a turn is 128 inputs of it, two units of the tiled
// layouts. The turns of all tiles form one line, tile after tile, and every thread block takes an
// equal run of it, so all multiprocessors finish together whatever the shape. What runs have of a
// tile they share is summed in their order: the result does not depend on timing.
//
// panels_kernel writes activations once as the tensor cores want them, in the order of inputs that
// the tiled layouts have (linear.h), so that one bulk copy brings a turn's. Weights go through
// rings that only their warp touches. No barrier of the block is in the loop: a panel says when it
// has come, warps say when they have left it. One unit is widened while the tensor cores multiply
// the other.
//
// Widening is most of what this costs: of some 180 instructions that a row tile (16 outputs) needs
// for a turn, 130. Two row tiles a warp share the rest; weights in 12 bits, whose copies are
// longer, have more warps instead.
#include <algorithm>
#include <climits>
#include <type_traits>

#include "device/cuda/bulk_copy.cuh"
#include "device/cuda/launch.h"
#include "device/cuda/linear_stream.cuh"
#include "device/cuda/overlap.cuh"
#include "device/cuda/tensor_core.cuh"

namespace nibble::cuda {
namespace {

constexpr int kParts = static_cast<int>(kMostLinearParts);

// kWideGroups: both units of a turn have the same scale.
template <Kind kKind, bool kWideGroups, int kTokensOfTile>
struct TileShape {
  static constexpr Kind kind = kKind;
  static constexpr bool kWide = kWideGroups;
  static constexpr int kTokens = kTokensOfTile;
  static constexpr int kWarps = kind == Kind::kCompact ? 16 : 8;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kRowTiles = 16 / kWarps;  // of 16 outputs, per warp
  // Of a turn, in stages and panels.
  static constexpr int kScales = kRowTiles * (kWide ? 1 : 2 * kUnitScales<kind>);
  static constexpr int kValueBytes = 2 * 512 * kRowTiles * kUnitVectors<kind>;
  static constexpr int kStageBytes = kValueBytes + 64 * kScales;
  static constexpr int kPanelBytes = 2 * kTokens * kPanelRowBytes;
  static constexpr int kDepth = kind == Kind::kCompact ? 2 : 4;
  static constexpr int kPanels = kTokens == 32 ? 6 : 4;
  static constexpr int kRingBytes = kDepth * kStageBytes;
  static constexpr size_t kSharedBytes =
      size_t{kPanels} * kPanelBytes + size_t{kWarps} * kRingBytes;
};

// The tiles of several weights in one line: row blocks of a weight, token tiles of a row block.
struct TileArgs {
  SkinnyArgs parts[kParts];
  int first_tile[kParts];  // INT_MAX from the last part on
  int token_tiles;
  int turns_per_row;
  int turns;  // of all tiles
  int turns_per_block;
  const char* panels;
  float* partials;
  uint32_t* counters;
};

#if NIBBLE_HAS_WGMMA

// What a warp has of a tile.
struct TilePart {
  int part;
  int row_tile;  // its first
  int first_token;
};
template <class Shape>
__device__ __forceinline__ TilePart part_of(const TileArgs& args, int tile, int warp) {
  int part = 0;
#pragma unroll
  for (int i = 1; i < kParts; ++i)
    if (tile >= args.first_tile[i]) part = i;
  const int own = tile - args.first_tile[part];
  const int row_block = own / args.token_tiles;
  return {part, (row_block * Shape::kWarps + warp) * Shape::kRowTiles,
          (own - row_block * args.token_tiles) * Shape::kTokens};
}

// Where this lane's part of the next turn of the warp's row tiles lies. Row tiles past the end
// repeat the last one; their sums are not stored.
template <class Shape>
struct TurnSource {
  static constexpr Kind kind = Shape::kind;
  static constexpr int kRowTiles = Shape::kRowTiles;
  const char* values[kRowTiles];
  const char* scale;  // 16 bytes a lane
  int turns_left;     // with this scale, wide groups
  int turns_per_group;

  __device__ __forceinline__ void seek(const SkinnyArgs& args, int first_tile, int turn, int lane) {
    const auto* base = static_cast<const char*>(args.values);
    const int unit = 2 * turn;
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      const int64_t tile = min(first_tile + r, args.row_tiles - 1);
      values[r] =
          base + (tile * args.units_per_row + unit) * (kUnitVectors<kind> * 512) + lane * 16;
    }
    if constexpr (kHasScales<kind>) {
      constexpr int kLanes = 4 * Shape::kScales / kRowTiles;  // of one row tile
      const int64_t tile = min(first_tile + lane / kLanes % kRowTiles, args.row_tiles - 1);
      const int group = Shape::kWide ? unit / args.units_per_group : unit * kUnitScales<kind>;
      scale = static_cast<const char*>(args.scale) + (tile * args.num_groups + group) * 64 +
              lane % kLanes * 16;
      if constexpr (Shape::kWide) {
        turns_per_group = args.units_per_group / 2;
        turns_left = turns_per_group - turn % turns_per_group;
      }
    }
  }
  // Starts the copies of a turn and moves on to the next.
  __device__ __forceinline__ void fetch(int lane, char* to) {
    constexpr int kVectors = 2 * kUnitVectors<kind>;  // of a row tile
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v)
        copy_async_16(to + (r * kVectors + v) * 512 + lane * 16, values[r] + v * 512);
      values[r] += kVectors * 512;
    }
    if constexpr (kHasScales<kind>) {
      if (lane < 4 * Shape::kScales) copy_async_16(to + Shape::kValueBytes + lane * 16, scale);
      if constexpr (Shape::kWide) {
        if (--turns_left == 0) {
          turns_left = turns_per_group;
          scale += 64;
        }
      } else {
        scale += 64 * Shape::kScales / kRowTiles;
      }
    }
  }
};

__device__ __forceinline__ void add_release(uint32_t* to, uint32_t value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
__device__ __forceinline__ uint32_t load_acquire(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

// Two tokens' sums of a row are one token's of two rows after a transposition: whole words go out.
template <class T, class S>
__device__ __forceinline__ void store_tile(const SkinnyArgs& args, const S& sums, int row_tile,
                                           int first_token, int lane) {
  if (args.out_is_float || args.out_features % 2 != 0)
    return sums.store(args, row_tile, lane, first_token);
#pragma unroll
  for (int r = 0; r < S::kRows; ++r)
#pragma unroll
    for (int n = 0; n < S::kTokens; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t pair =
            transpose_8x8(pack_pair<T>(sums.c[r][n][2 * half], sums.c[r][n][2 * half + 1]));
        const int64_t row = int64_t{row_tile + r} * 16 + 8 * half + lane % 4 * 2;
        const int token = first_token + 8 * n + lane / 4;
        if (row < args.out_features && token < args.num_tokens)
          *reinterpret_cast<uint32_t*>(static_cast<T*>(args.out) + token * args.out_features +
                                       row) = pair;
      }
}

// What sums of weights in 12 bits still lack: the rows' powers of two and the listed weights.
template <class T, class S>
__device__ __forceinline__ void end_rows(const SkinnyArgs& args, S& sums, const TilePart& place,
                                         int lane) {
#pragma unroll
  for (int i = 0; i < 2 * S::kRows; ++i) {
    const int r = i / 2;
    const int half = i % 2;
    if (place.row_tile + r >= args.row_tiles) break;
    const CompactRow row = args.rows[(place.row_tile + r) * 16 + lane / 4 + 8 * half];
    const float scale = compact_scale(row);
#pragma unroll
    for (int n = 0; n < S::kTokens; ++n)
#pragma unroll
      for (int k = 2 * half; k < 2 * half + 2; ++k) sums.c[r][n][k] *= scale;
#pragma unroll 1
    for (int listed = 0; listed < row.rest_count; ++listed) {
      const uint32_t entry = args.rest[row.rest_begin + static_cast<uint32_t>(listed)];
      const float value = compact_rest_value(entry) - compact_lowest(row);
      const T* x = static_cast<const T*>(args.x) + (entry >> 16);
#pragma unroll
      for (int n = 0; n < S::kTokens; ++n)
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const int token = place.first_token + 8 * n + lane % 4 * 2 + k;
          if (token < args.num_tokens)
            sums.c[r][n][2 * half + k] += value * to_float(x[token * args.in_features]);
        }
    }
  }
}

// The sums of this warp's rows over this run are complete. Of the runs that share a tile the first
// adds what the others leave, in their order, and stores. It ends in the tile, so it comes to that
// last; the last run begins in the tile and has left its part long before.
template <class T, class Shape, class S>
__device__ __forceinline__ void finish(const TileArgs& args, S& sums, int run, int tile,
                                       const TilePart& place, int warp, int lane) {
  const SkinnyArgs& part = args.parts[place.part];
  if (place.row_tile >= part.row_tiles) return;
  const int begin = tile * args.turns_per_row;
  const int first = begin / args.turns_per_block;
  const int last = (begin + args.turns_per_row - 1) / args.turns_per_block;
  const auto partial = [&](int of) {
    return args.partials + (int64_t{of} * Shape::kWarps + warp) * S::kFloats;
  };
  uint32_t* counter = args.counters + tile * Shape::kWarps + warp;
  if (run != first) {
    sums.store_partial(partial(run), lane);
    __syncwarp();
    if (lane == 0) add_release(counter, 1);
    return;
  }
  if (first != last) {
    if (lane == 0) {
      while (load_acquire(counter) != static_cast<uint32_t>(last - first)) {
      }
      *counter = 0;
    }
    __syncwarp();
#pragma unroll 1
    for (int other = first + 1; other <= last; ++other) sums.add_partial(partial(other), lane);
  }
  if constexpr (Shape::kind == Kind::kCompact) end_rows<T>(part, sums, place, lane);
  store_tile<T>(part, sums, place.row_tile, place.first_token, lane);
}

// Slots of a ring in turn, and the parity of the phase that a wait in this round is for.
struct Slot {
  int index;
  uint32_t phase;
  __device__ __forceinline__ void advance(int slots) {
    if (++index < slots) return;
    index = 0;
    phase ^= 1;
  }
};
constexpr uint32_t kFirstPhase = 0;
constexpr uint32_t kPhaseBefore = 1;  // of what a slot held before it was first filled: nothing

#endif  // NIBBLE_HAS_WGMMA

// Activations to panels, one after the other: [token tile][unit][token][128 bytes]. Inputs
// 32 j + 8 t .. + 7 of a unit are four pairs; pair q is word t of chunk 4 j + q, so that steps of
// 16 inputs lie as the weights have them. A thread has the inputs of one j. Grid (j of a row / 32,
// tokens of all tiles / 8).
template <class T>
__global__ void __launch_bounds__(256)
    panels_kernel(const T* x, int num_tokens, int units_per_row, int tile_tokens, char* panels) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int half = static_cast<int>(blockIdx.x * 32 + threadIdx.x % 32);
  const int token = static_cast<int>(blockIdx.y * 8 + threadIdx.x / 32);
  if (half >= units_per_row * 2) return;
  uint4 vectors[4] = {};
  if (token < num_tokens)
#pragma unroll
    for (int t = 0; t < 4; ++t)
      vectors[t] =
          reinterpret_cast<const uint4*>(x + (int64_t{token} * units_per_row * 2 + half) * 32)[t];
  const int tile = token / tile_tokens;
  const int row = token - tile * tile_tokens;
  char* panel = panels + (int64_t{tile} * units_per_row + half / 2) * tile_tokens * kPanelRowBytes;
  const int first = half % 2 * 4;
  const auto put = [&](int q, uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3) {
    *reinterpret_cast<uint4*>(panel + panel_offset(row, first + q)) = make_uint4(w0, w1, w2, w3);
  };
  put(0, vectors[0].x, vectors[1].x, vectors[2].x, vectors[3].x);
  put(1, vectors[0].y, vectors[1].y, vectors[2].y, vectors[3].y);
  put(2, vectors[0].z, vectors[1].z, vectors[2].z, vectors[3].z);
  put(3, vectors[0].w, vectors[1].w, vectors[2].w, vectors[3].w);
}

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    tiles_kernel(const __grid_constant__ TileArgs args) {
#if NIBBLE_HAS_WGMMA
  constexpr Kind kind = Shape::kind;
  constexpr int kDepth = Shape::kDepth;
  constexpr int kPanels = Shape::kPanels;
  constexpr int kTokenTiles = Shape::kTokens / 8;
  constexpr int kRowTiles = Shape::kRowTiles;
  extern __shared__ __align__(1024) char shared[];
  __shared__ uint64_t full[kPanels];   // the panel has come
  __shared__ uint64_t empty[kPanels];  // every warp has left it
  let_next_kernel_start();
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  char* ring = shared + kPanels * Shape::kPanelBytes + warp * Shape::kRingBytes;

  // The first blocks to start take the last runs: a block waits only for ones before it.
  const auto run = static_cast<int>(gridDim.x - 1 - blockIdx.x);
  const int begin = run * args.turns_per_block;
  const int total = min(args.turns_per_block, args.turns - begin);
  int tile = begin / args.turns_per_row;
  const int first_turn = begin - tile * args.turns_per_row;
  const int first_length = min(total, args.turns_per_row - first_turn);
  const auto place_of = [&](int of) { return part_of<Shape>(args, of, warp); };

  // Weights run ahead of the products along the line, panels as well.
  TurnSource<Shape> weights;
  int fetch_tile = tile;
  int fetch_run = first_length;  // turns of this tile
  int fetch_left = total - first_length;
  char* fetch_stage = ring;
  const auto seek_weights = [&](int turn) {
    const TilePart place = place_of(fetch_tile);
    weights.seek(args.parts[place.part], place.row_tile, turn, lane);
  };
  const auto fetch = [&] {
    if (fetch_run == 0 && fetch_left > 0) {
      ++fetch_tile;
      seek_weights(0);
      fetch_run = min(fetch_left, args.turns_per_row);
      fetch_left -= fetch_run;
    }
    if (fetch_run > 0) {
      weights.fetch(lane, fetch_stage);
      --fetch_run;
      fetch_stage += Shape::kStageBytes;
      if (fetch_stage == ring + Shape::kRingBytes) fetch_stage = ring;
    }
    commit_async();
  };
  seek_weights(first_turn);
#pragma unroll 1
  for (int i = 0; i < kDepth; ++i) fetch();

  const char* stage = ring;
  using Operands = uint32_t[kRowTiles][4][4];
  const auto widen = [&](Operands& a, int unit) {
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) {
      Operand<T, kind> packed;
      packed.read_values(stage, 2 * r + unit, lane);
      if constexpr (kHasScales<kind>)
        packed.read_scales(stage + Shape::kValueBytes, Shape::kWide ? r : 2 * r + unit, lane);
      packed.template step<0>(a[r][0]);
      packed.template step<1>(a[r][1]);
      packed.template step<2>(a[r][2]);
      packed.template step<3>(a[r][3]);
    }
  };
  const auto widen_first = [&](Operands& a) {
    wait_async<kDepth - 1>();
    __syncwarp();
    widen(a, 0);
  };
  const auto widen_second = [&](Operands& a) {
    widen(a, 1);
    __syncwarp();  // all have read the stage before it is filled again
    stage += Shape::kStageBytes;
    if (stage == ring + Shape::kRingBytes) stage = ring;
  };

  // One thread asks for panels. They lie in the order of the line, but all row blocks have the
  // same.
  const bool asks = threadIdx.x == 0;
  const int panels_of_row_block = args.token_tiles * args.turns_per_row;
  int asked_panel = begin % panels_of_row_block;
  int to_ask = asks ? total : 0;
  Slot asked{0, kPhaseBefore};
  const auto ask = [&] {
    if (to_ask == 0) return;
    wait_barrier(empty[asked.index], asked.phase);
    expect_bytes(full[asked.index], Shape::kPanelBytes);
    copy_bulk(shared + asked.index * Shape::kPanelBytes,
              args.panels + int64_t{asked_panel} * Shape::kPanelBytes, Shape::kPanelBytes,
              full[asked.index]);
    --to_ask;
    if (++asked_panel == panels_of_row_block) asked_panel = 0;
    asked.advance(kPanels);
  };
  if (asks) {
    for (int i = 0; i < kPanels; ++i) {
      init_barrier(full[i], 1);
      init_barrier(empty[i], Shape::kWarps);
    }
    fence_barrier_init();
  }
  __syncthreads();
  // Weights are constant; everything else may still be the work of the kernel before.
  wait_for_previous_kernel();
  // Two slots stay free: the thread that asks must not wait for warps that are a turn behind.
#pragma unroll 1
  for (int i = 0; i < kPanels - 2; ++i) ask();

  Sums<T, kTokenTiles, kRowTiles> sums;
  sums.clear();
  Operands a[2];
  widen_first(a[0]);

  // Asks for the products of a unit; on return those of the unit before are complete.
  const uint64_t panels = panel_descriptor(shared_address(shared));
  Slot panel{0, kFirstPhase};
  const auto multiply = [&](const Operands& now, int unit) {
    // The same in all lanes, which the compiler knows now.
    const int index = __shfl_sync(0xffffffffu, panel.index, 0);
    const uint64_t first = panel_descriptor_at(
        panels,
        static_cast<uint32_t>(index * Shape::kPanelBytes + unit * (Shape::kPanelBytes / 2)));
    wgmma_begin();
#pragma unroll
    for (int step = 0; step < 4; ++step)
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        const uint64_t right = panel_descriptor_at(first, static_cast<uint32_t>(step) * 32);
        wgmma<T, 0, Shape::kTokens>(sums.c[r], now[r][step], right);
      }
    wgmma_commit();
    wgmma_wait<1>();
  };

  for (int left = total; left > 0;) {
    const int length = left == total ? first_length : min(left, args.turns_per_row);
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) pin(sums.c[r]);
#pragma unroll 1
    for (int i = 0; i < length; ++i) {
      wait_barrier(full[panel.index], panel.phase);
      multiply(a[0], 0);
      if ((i > 0 || left < total) && lane == 0)
        arrive(empty[(panel.index == 0 ? kPanels : panel.index) - 1]);
      widen_second(a[1]);
      fetch();
      multiply(a[1], 1);
      panel.advance(kPanels);
      ask();
      __syncwarp();
      widen_first(a[0]);
    }
    wgmma_wait<0>();
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) pin(sums.c[r]);
    finish<T, Shape>(args, sums, run, tile, place_of(tile), warp, lane);
    sums.clear();
    left -= length;
    ++tile;
  }
  wait_async<0>();
#endif
}

// False if the workspace is too small.
template <class T, class Shape>
bool launch_shape(const SkinnyArgs* parts, int count, const Workspace& workspace,
                  cudaStream_t stream) {
  const auto kernel = tiles_kernel<T, Shape>;
  allow_shared_memory(kernel, Shape::kSharedBytes);
  constexpr int kRows = Shape::kWarps * Shape::kRowTiles;
  TileArgs args{};
  args.token_tiles = (parts[0].num_tokens + Shape::kTokens - 1) / Shape::kTokens;
  int tiles = 0;
  for (int i = 0; i < kParts; ++i) {
    args.first_tile[i] = i < count ? tiles : INT_MAX;
    if (i >= count) continue;
    args.parts[i] = parts[i];
    tiles += (parts[i].row_tiles + kRows - 1) / kRows * args.token_tiles;
  }
  args.turns_per_row = parts[0].units_per_row / 2;
  args.turns = tiles * args.turns_per_row;
  // At least two turns a block: below that the start costs more than the work.
  args.turns_per_block = std::max(2, (args.turns + workspace.num_sms - 1) / workspace.num_sms);
  const int blocks = (args.turns + args.turns_per_block - 1) / args.turns_per_block;
  const size_t panels =
      size_t{Shape::kPanelBytes} * static_cast<size_t>(args.token_tiles * args.turns_per_row);
  constexpr size_t kPartial = size_t{kRows} * Shape::kTokens * 16 * sizeof(float);
  if (panels + kPartial * static_cast<size_t>(blocks) > workspace.scratch_size ||
      tiles * Shape::kWarps > workspace.num_counters)
    return false;
  auto* scratch = static_cast<char*>(workspace.scratch);
  args.panels = scratch;
  args.partials = reinterpret_cast<float*>(scratch + panels);
  args.counters = workspace.counters;
  const dim3 grid(static_cast<unsigned>(args.turns_per_row + 7) / 8,
                  static_cast<unsigned>(args.token_tiles) * Shape::kTokens / 8);
  launch_overlapped(panels_kernel<T>, grid, 256, 0, stream, workspace.compute_capability,
                    static_cast<const T*>(parts[0].x), parts[0].num_tokens, parts[0].units_per_row,
                    Shape::kTokens, scratch);
  launch_overlapped(kernel, static_cast<unsigned>(blocks), Shape::kThreads, Shape::kSharedBytes,
                    stream, workspace.compute_capability, args);
  return true;
}

template <class T, Kind kind, bool kWide>
bool launch_kind(const SkinnyArgs* parts, int count, const Workspace& workspace,
                 cudaStream_t stream) {
  if (parts[0].num_tokens <= 32)
    return launch_shape<T, TileShape<kind, kWide, 32>>(parts, count, workspace, stream);
  if (parts[0].num_tokens <= 64)
    return launch_shape<T, TileShape<kind, kWide, 64>>(parts, count, workspace, stream);
  return launch_shape<T, TileShape<kind, kWide, 128>>(parts, count, workspace, stream);
}

template <class T>
bool launch_type(Kind kind, const SkinnyArgs* parts, int count, const Workspace& workspace,
                 cudaStream_t stream) {
  switch (kind) {
    case Kind::kW4:
      if (parts[0].units_per_group > 1)
        return launch_kind<T, Kind::kW4, true>(parts, count, workspace, stream);
      return launch_kind<T, Kind::kW4, false>(parts, count, workspace, stream);
    case Kind::kW4Group32:
      return launch_kind<T, Kind::kW4Group32, false>(parts, count, workspace, stream);
    case Kind::kCompact:
      if constexpr (std::is_same_v<T, BFloat>)
        return launch_kind<T, Kind::kCompact, false>(parts, count, workspace, stream);
      return false;
    case Kind::kDense: return false;  // cuBLASLt's
  }
  return false;
}

}  // namespace

bool launch_linear_tiles(Scalar type, Kind kind, const SkinnyArgs* parts, int count,
                         const Workspace& workspace, cudaStream_t stream) {
  static const bool on_hopper =
      compiled_for_hopper(tiles_kernel<BFloat, TileShape<Kind::kCompact, false, 64>>, workspace);
  if (!on_hopper || parts[0].units_per_row % 2 != 0) return false;
  if (kind == Kind::kW4)
    for (int i = 0; i < count; ++i) {
      const int group = parts[i].units_per_group;
      if ((group > 1) != (parts[0].units_per_group > 1) || (group > 1 && group % 2 != 0))
        return false;
    }
  return type == Scalar::kBF16 ? launch_type<BFloat>(kind, parts, count, workspace, stream)
                               : launch_type<Half>(kind, parts, count, workspace, stream);
}

}  // namespace nibble::cuda
