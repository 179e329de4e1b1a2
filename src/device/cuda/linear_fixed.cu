// y = x W' for packed weights and up to 16 tokens on integer tensor cores: nibbles as they lie
// times the digits of FixedRows, exactly, in 32-bit integers; zeros, scales and units once per 128
// inputs, in groups of 32 or 64 (up to 8 tokens) zeros and scales once per group.
//   y[t, n] = sum over groups of scale(n) unit(t) (sum_k q[n, k] x[k, t] - zero(n) sum_k x[k, t])
// One logic instruction makes four operands of 8 bits of a packed word: the low nibbles are row g,
// the high ones, 16 times their value, row g + 8. Making 16-bit weights of them takes four times
// the instructions and is what bounds linear_vector.cu. Weights are not rounded to 16 bits here,
// which the contract of tensor/linear_weight.h would have; the result is the nearer to the exact
// one.
//
// A block per `kBlockRows` row tiles, its warps taking turns along the row, a group of 128 inputs
// each, as in linear_vector.cu; or a cluster of blocks, where there are few row tiles. A group's
// row tiles pass through the ring in sets of `kRows`, while its activations stay in registers.
#include <algorithm>
#include <climits>

#include "device/cuda/cluster.cuh"
#include "device/cuda/fixed_rows.cuh"
#include "device/cuda/launch.h"
#include "device/cuda/linear_stream.cuh"
#include "device/cuda/overlap.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;  // of the kernel that makes rows

template <int kTokenColumns, int kRowTiles, int kSetsOfRows, int kStages, int kBlocksPerSm,
          int kWarpsOfBlock, int kBlocksOfCluster = 1, int kScalesOfRow = 1>
struct FixedShape {
  static constexpr int kTokens = kTokenColumns;  // 4: both digits in one product; 8, 16: in two
  static constexpr int kRows = kRowTiles;        // row tiles of a stage
  static constexpr int kSets = kSetsOfRows;      // stages of a group: activations are read once
  static constexpr int kBlockRows = kRows * kSets;
  static constexpr int kDepth = kStages;
  static constexpr int kBlocks = kBlocksPerSm;
  static constexpr int kWarps = kWarpsOfBlock;
  static constexpr int kCluster = kBlocksOfCluster;  // blocks that share a row
  static constexpr int kScales = kScalesOfRow;       // of 128 inputs of a row
  static constexpr int kTokenTiles = kTokens <= 8 ? 1 : 2;
  static constexpr int kStage = kRows * (1024 + 64 * kScales);  // 128 inputs, then the scales
  static constexpr int kRing = kDepth * kStage;                 // of a warp
  static_assert(kBlockRows * kTokenTiles * 512 <= kRing, "sums take the place of the rings");
  static_assert(kRows * kScales <= 8, "a lane copies 16 bytes of scales");
  static_assert(kScales == 1 || kTokens <= kFixedPartTokens);
  static constexpr size_t kShared = size_t{kWarps} * kRing;
};

// Its `end` counts clusters.
struct FixedGroup : SkinnyGroup {
  FixedRows rows;
};

#if NB_SKINNY_CODE

__device__ __forceinline__ void mma_digits(int (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                           uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two packed words as the A operand: rows g (low nibbles) and g + 8 (high ones).
__device__ __forceinline__ void operand_of(uint32_t first, uint32_t second, uint32_t (&a)[4]) {
  a[0] = first & 0x0f0f0f0fu;
  a[1] = first & 0xf0f0f0f0u;
  a[2] = second & 0x0f0f0f0fu;
  a[3] = second & 0xf0f0f0f0u;
}

// The 16-bit scale in the low half of a word.
template <class T>
__device__ __forceinline__ float scale_of(uint32_t word);
template <>
__device__ __forceinline__ float scale_of<BFloat>(uint32_t word) {
  return __uint_as_float(word << 16);
}
template <>
__device__ __forceinline__ float scale_of<Half>(uint32_t word) {
  return __half2float(__ushort_as_half(static_cast<uint16_t>(word)));
}
// The zero in the high half: magic + zero has it in its low byte in both types.
__device__ __forceinline__ int zero_of(uint32_t word) {
  return static_cast<int>(__byte_perm(word, 0, 0x4442));
}

// This lane's part of the digits and columns of one group.
template <class Shape>
struct Digits {
  static constexpr int kParts = Shape::kTokens <= 4 ? 1 : 2;
  uint4 x[2][Shape::kTokenTiles][kParts];  // [half]
  uint4 columns[Shape::kTokenTiles];
  uint4 parts[2];  // of both columns in turns, of 32 inputs each; with more than one scale

  // Minus the sum of the inputs of scale `g`; column 0 or 1 of this lane.
  __device__ __forceinline__ int minus(int g, int column) const {
    const uint4& four = parts[Shape::kScales == 4 ? g / 2 : g];
    const auto first = static_cast<int>(column == 0 ? four.x : four.y);
    const auto second = static_cast<int>(column == 0 ? four.z : four.w);
    return Shape::kScales == 2 ? first + second : g % 2 == 0 ? first : second;
  }
};

// Where that lies for this lane's warp.
template <class Shape>
struct DigitsSource {
  const char* digits[Shape::kTokenTiles];
  const char* columns;
  const char* parts;
  bool present[Shape::kTokenTiles];
  int digit_bytes;

  // Columns without a token have digits of zero; what their sums hold is not stored.
  __device__ __forceinline__ DigitsSource(const FixedRows& rows, int first_group, int lane)
      : columns(static_cast<const char*>(rows.columns) + first_group * 64 * Shape::kTokenTiles +
                lane % 4 * 16),
        parts(reinterpret_cast<const char*>(rows.parts) + first_group * 128 + lane % 4 * 32),
        digit_bytes(rows.num_tokens * 64) {
#pragma unroll
    for (int n = 0; n < Shape::kTokenTiles; ++n) {
      const int token = Shape::kTokens <= 4 ? lane / 4 % 4 : 8 * n + lane / 4;
      const int column = Shape::kTokens <= 4 ? lane / 16 * rows.num_tokens + token : token;
      present[n] = token < rows.num_tokens;
      digits[n] = reinterpret_cast<const char*>(rows.digits) + first_group * 4 * digit_bytes +
                  column * 64 + lane % 4 * 16;
    }
  }
  __device__ __forceinline__ void advance(int groups) {
#pragma unroll
    for (int n = 0; n < Shape::kTokenTiles; ++n) digits[n] += groups * 4 * digit_bytes;
    columns += groups * 64 * Shape::kTokenTiles;
    parts += groups * 128;
  }
  __device__ __forceinline__ void read_half(Digits<Shape>& to, int half, bool more) const {
#pragma unroll
    for (int n = 0; n < Shape::kTokenTiles; ++n)
#pragma unroll
      for (int q = 0; q < Digits<Shape>::kParts; ++q)
        to.x[half][n][q] = present[n] && more
                               ? load_written_16(digits[n] + (2 * half + q) * digit_bytes)
                               : make_uint4(0, 0, 0, 0);
  }
  __device__ __forceinline__ void read_columns(Digits<Shape>& to, bool more) const {
#pragma unroll
    for (int n = 0; n < Shape::kTokenTiles; ++n)
      to.columns[n] = more ? load_written_16(columns + n * 64) : make_uint4(0, 0, 0, 0);
    if constexpr (Shape::kScales > 1) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        to.parts[i] = more ? load_written_16(parts + i * 16) : make_uint4(0, 0, 0, 0);
    }
  }
  __device__ __forceinline__ void read(Digits<Shape>& to, bool more) const {
    read_half(to, 0, more);
    read_half(to, 1, more);
    read_columns(to, more);
  }
};

// Adds the products of a set's row tiles where 128 inputs have several scales.
template <class T, class Shape, class S>
__device__ __forceinline__ void add_groups(S& sums, int first_row, const char* stage, int lane,
                                           const Digits<Shape>& now) {
  constexpr int kParts = Digits<Shape>::kParts;
  constexpr int kSteps = 4 / Shape::kScales;  // of 32 inputs
#pragma unroll
  for (int r = 0; r < Shape::kRows; ++r) {
    uint32_t a[4][4];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint4 w = *reinterpret_cast<const uint4*>(stage + r * 1024 + h * 512 + lane * 16);
      operand_of(w.x, w.y, a[2 * h]);
      operand_of(w.z, w.w, a[2 * h + 1]);
    }
    float total[4] = {};
#pragma unroll
    for (int g = 0; g < Shape::kScales; ++g) {
      const uint2 scales = *reinterpret_cast<const uint2*>(
          stage + Shape::kRows * 1024 + (r * Shape::kScales + g) * 64 + lane / 4 * 8);
      const int zero[2] = {zero_of(scales.x), zero_of(scales.y) << 4};
      const float scale[2] = {scale_of<T>(scales.x), scale_of<T>(scales.y)};
      int products[kParts][4] = {};
#pragma unroll
      for (int k = 0; k < 4; ++k) products[kParts - 1][k] = zero[k / 2] * now.minus(g, k % 2);
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const int step = g * kSteps + i;
#pragma unroll
        for (int q = 0; q < kParts; ++q) {
          const uint4& x = now.x[step / 2][0][q];
          mma_digits(products[q], a[step], step % 2 == 0 ? x.x : x.z, step % 2 == 0 ? x.y : x.w);
        }
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        int product = products[0][k];
        if constexpr (kParts > 1) product = product * 256 + products[1][k];
        total[k] += static_cast<float>(product) * scale[k / 2];
      }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k)
      sums.c[first_row + r][0][k] +=
          total[k] * __uint_as_float(k % 2 == 0 ? now.columns[0].y : now.columns[0].w);
  }
}

#endif  // NB_SKINNY_CODE

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kWarps * 32, Shape::kBlocks)
    fixed_kernel(const __grid_constant__ FixedGroup group) {
#if NB_SKINNY_CODE
  constexpr int kWarps = Shape::kWarps;
  constexpr int kRows = Shape::kRows;
  constexpr int kSets = Shape::kSets;
  constexpr int kTokenTiles = Shape::kTokenTiles;
  constexpr int kDepth = Shape::kDepth;
  constexpr int kParts = Digits<Shape>::kParts;
  constexpr int kSlices = kWarps * Shape::kCluster;
  // Many tokens leave no registers for the next group's digits beside this one's: each half is
  // replaced as soon as the last set has used it.
  constexpr bool kAhead = Shape::kTokens <= 8;
  extern __shared__ __align__(16) char shared[];
  let_next_kernel_start();
  const int cluster = static_cast<int>(blockIdx.x) / Shape::kCluster;
  const int rank = static_cast<int>(blockIdx.x) % Shape::kCluster;
  int part = 0;
  while (cluster >= group.end[part]) ++part;
  const SkinnyArgs& args = group.parts[part];
  // The last of a part's blocks begins early rather than ending late, and what it has in common
  // with the one before it is that one's to store. With one set, fewer tiles will do: rows repeat
  // the last.
  const int own_tile = (cluster - (part == 0 ? 0 : group.end[part - 1])) * Shape::kBlockRows;
  const int first_tile = max(0, min(own_tile, args.row_tiles - Shape::kBlockRows));
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int slice = rank * kWarps + warp;
  const int groups = args.units_per_row / 2;
  const int count = (groups - slice + kSlices - 1) / kSlices;
  char* ring = shared + warp * Shape::kRing;

  // Where the next stage to fetch lies.
  const int last = args.row_tiles - 1;
  const int64_t row_bytes = int64_t{args.units_per_row} * 512;
  const int64_t scale_bytes = args.num_groups * 64;
  const char* values[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    values[r] = static_cast<const char*>(args.values) + min(first_tile + r, last) * row_bytes +
                slice * 1024 + lane * 16;
  constexpr int kScaleLanes = 4 * Shape::kScales;  // of a row tile
  const char* scale = static_cast<const char*>(args.scale) +
                      min(first_tile + lane / kScaleLanes % kRows, last) * scale_bytes +
                      lane % kScaleLanes * 16;
  int fetched = 0;  // groups
  const auto fetch = [&](int set, char* to) {
    if (fetched < count) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        copy_async_16(to + r * 1024 + lane * 16, values[r]);
        copy_async_16(to + r * 1024 + 512 + lane * 16, values[r] + 512);
        values[r] +=
            set == kSets - 1 ? kSlices * 1024 - (kSets - 1) * kRows * row_bytes : kRows * row_bytes;
      }
      const int group_of_row = fetched * kSlices + slice;
      const int weight_group =
          Shape::kScales > 1 ? group_of_row * Shape::kScales : 2 * group_of_row >> args.group_shift;
      if (lane < kScaleLanes * kRows)
        copy_async_16(to + kRows * 1024 + lane * 16,
                      scale + weight_group * 64 + set * kRows * scale_bytes);
      if (set == kSets - 1) ++fetched;
    }
    commit_async();
  };
#pragma unroll
  for (int i = 0; i < kDepth - 1; ++i) fetch(i % kSets, ring + i * Shape::kStage);
  wait_for_previous_kernel();

  DigitsSource<Shape> source(group.rows, slice, lane);
  Digits<Shape> now;
  Digits<Shape> ahead;
  source.read(kAhead ? ahead : now, count > 0);
  if constexpr (!kAhead) source.read_columns(ahead, count > 0);
  Sums<T, kTokenTiles, Shape::kBlockRows> sums;
  sums.clear();
  char* stage = ring;
  char* used = ring + (kDepth - 1) * Shape::kStage;  // the stage before, free again
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const bool more = i + 1 < count;
    source.advance(kSlices);
    if constexpr (kAhead) {
      now = ahead;
      source.read(ahead, more);
    } else {
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n) now.columns[n] = ahead.columns[n];
      source.read_columns(ahead, more);
    }
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      wait_async<kDepth - 2>();
      __syncwarp();
      fetch((set + kDepth - 1) % kSets, used);
      if constexpr (Shape::kScales > 1) {
        add_groups<T, Shape>(sums, set * kRows, stage, lane, now);
      } else {
        // The low digits' sums begin with what the zeros take away.
        int products[kRows][kTokenTiles][kParts][4] = {};
        float scale_float[kRows][2];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const uint2 scales =
              *reinterpret_cast<const uint2*>(stage + kRows * 1024 + r * 64 + lane / 4 * 8);
          const int zero[2] = {zero_of(scales.x), zero_of(scales.y) << 4};
          scale_float[r][0] = scale_of<T>(scales.x);
          scale_float[r][1] = scale_of<T>(scales.y);
#pragma unroll
          for (int n = 0; n < kTokenTiles; ++n)
#pragma unroll
            for (int k = 0; k < 4; ++k)
              products[r][n][kParts - 1][k] =
                  zero[k / 2] * static_cast<int>(k % 2 == 0 ? now.columns[n].x : now.columns[n].z);
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            const uint4 w = *reinterpret_cast<const uint4*>(stage + r * 1024 + h * 512 + lane * 16);
            uint32_t a[2][4];
            operand_of(w.x, w.y, a[0]);
            operand_of(w.z, w.w, a[1]);
#pragma unroll
            for (int n = 0; n < kTokenTiles; ++n)
#pragma unroll
              for (int q = 0; q < kParts; ++q)
                mma_digits(products[r][n][q], a[0], now.x[h][n][q].x, now.x[h][n][q].y);
#pragma unroll
            for (int n = 0; n < kTokenTiles; ++n)
#pragma unroll
              for (int q = 0; q < kParts; ++q)
                mma_digits(products[r][n][q], a[1], now.x[h][n][q].z, now.x[h][n][q].w);
          }
          if constexpr (!kAhead)
            if (set == kSets - 1) source.read_half(now, h, more);
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r)
#pragma unroll
          for (int n = 0; n < kTokenTiles; ++n) {
            const float unit[2] = {__uint_as_float(now.columns[n].y),
                                   __uint_as_float(now.columns[n].w)};
#pragma unroll
            for (int k = 0; k < 4; ++k) {
              int product = products[r][n][0][k];
              if constexpr (kParts > 1) product = product * 256 + products[r][n][1][k];
              sums.c[set * kRows + r][n][k] +=
                  static_cast<float>(product) * (scale_float[r][k / 2] * unit[k % 2]);
            }
          }
      }
      used = stage;
      stage += Shape::kStage;
      if (stage == ring + Shape::kRing) stage = ring;
    }
  }

  // All copies have landed: the rings become room for the sums, [row tile][token tile][warp][32
  // lanes x 4].
  __syncthreads();
  auto* parts = reinterpret_cast<float4*>(shared);
#pragma unroll
  for (int r = 0; r < Shape::kBlockRows; ++r)
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
      const float(&c)[4] = sums.c[r][n];
      parts[((r * kTokenTiles + n) * kWarps + warp) * 32 + lane] =
          make_float4(c[0], c[1], c[2], c[3]);
    }
  __syncthreads();
  const auto store = [&](Sums<T, 1, 1>& total, int tile) {
    float(&c)[4] = total.c[0][0];
    c[2] *= 0.0625f;  // high nibbles
    c[3] *= 0.0625f;
    if constexpr (Shape::kTokens <= 4) {
#pragma unroll
      for (int k = 0; k < 4; ++k) c[k] += __shfl_xor_sync(0xffffffffu, c[k], 2);  // other digit
      if (lane % 4 >= 2) return;
    }
    const int row_tile = first_tile + tile / kTokenTiles;
    if (row_tile >= own_tile) total.store(args, row_tile, lane, 8 * (tile % kTokenTiles));
  };
  constexpr int kTiles = Shape::kBlockRows * kTokenTiles;
  for (int tile = warp; tile < kTiles; tile += kWarps) {
    Sums<T, 1, 1> total;
    total.clear();
#pragma unroll
    for (int w = 0; w < kWarps; ++w)
      total.add_shared(reinterpret_cast<const float*>(parts + (tile * kWarps + w) * 32), lane);
    if constexpr (Shape::kCluster == 1) {
      store(total, tile);
    } else {
      const float(&c)[4] = total.c[0][0];
      parts[tile * kWarps * 32 + lane] = make_float4(c[0], c[1], c[2], c[3]);
    }
  }
  if constexpr (Shape::kCluster > 1) {
    cluster_barrier();
    for (int tile = warp * Shape::kCluster + rank; tile < kTiles; tile += kSlices) {
      Sums<T, 1, 1> total = cluster_total<T>(parts + tile * kWarps * 32 + lane, Shape::kCluster);
      store(total, tile);
    }
    cluster_barrier();  // a block's sums stay until all have read them
  }
#endif
}

// 16 threads per group.
template <class T>
__global__ void fix_rows_kernel(const T* x, const FixedRows to) {
  let_next_kernel_start();
  wait_for_previous_kernel();
  const int64_t pieces = to.in_features / 8;
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at >= pieces * to.num_tokens) return;  // a multiple of 16
  float values[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = to_float(x[at * 8 + i]);
  write_fixed(values, static_cast<int>(at / pieces), at % pieces, to);
}

template <class T, class Shape>
void launch_shape(const SkinnyArgs* parts, int count, const FixedRows& rows,
                  const Workspace& workspace, cudaStream_t stream) {
  FixedGroup group;
  group.rows = rows;
  const int clusters = group.fill(parts, count, Shape::kBlockRows);
  allow_shared_memory(fixed_kernel<T, Shape>, Shape::kShared);
  launch_overlapped_clusters(
      fixed_kernel<T, Shape>, static_cast<unsigned>(clusters * Shape::kCluster), Shape::kCluster,
      Shape::kWarps * 32, Shape::kShared, stream, workspace.compute_capability, group);
}

// Shapes by the size of the weights, as a sweep found for those of benchmarks/cuda_linear.cc on an
// H200. More row tiles a block lessen what the activations and the instructions around the products
// cost, if the card is as full with them as with three; shorter rings leave activations more of the
// first-level cache. Where there are few row tiles, clusters of blocks spread them.
constexpr int kFewRowTiles = 500;

// With several scales for 128 inputs of a row.
template <int kTokens, int kScales, class Run>
void launch_small_groups(bool wide, bool few, bool clusters, Run run) {
  if (wide) return run(FixedShape<kTokens, 2, 3, 3, 3, 4, 1, kScales>{});
  if (clusters && few) return run(FixedShape<kTokens, 2, 2, 4, 3, 4, 4, kScales>{});
  if (clusters) return run(FixedShape<kTokens, 2, 2, 4, 3, 4, 2, kScales>{});
  run(FixedShape<kTokens, 2, 1, 4, 2, 8, 1, kScales>{});
}

template <class T>
void launch(const SkinnyArgs* parts, int count, int scales, const FixedRows& rows,
            const Workspace& workspace, cudaStream_t stream) {
  int row_tiles = 0;
  int smallest = INT_MAX;
  for (int i = 0; i < count; ++i) {
    row_tiles += parts[i].row_tiles;
    smallest = std::min(smallest, parts[i].row_tiles);
  }
  const auto run = [&](auto shape) {
    launch_shape<T, decltype(shape)>(parts, count, rows, workspace, stream);
  };
  const auto filled = [&](int rows_of_block) {
    return fullness(static_cast<int>(blocks_of(row_tiles, rows_of_block)), 3 * workspace.num_sms);
  };
  const bool few = row_tiles < kFewRowTiles;
  const bool wide = !few && smallest >= 6 && filled(6) + 0.05f >= filled(3);
  const bool clusters = workspace.compute_capability >= 90 && smallest >= 4;
  if (scales > 1) {
    const bool four = rows.num_tokens <= 4;
    if (scales == 2)
      return four ? launch_small_groups<4, 2>(wide, few, clusters, run)
                  : launch_small_groups<8, 2>(wide, few, clusters, run);
    return four ? launch_small_groups<4, 4>(wide, few, clusters, run)
                : launch_small_groups<8, 4>(wide, few, clusters, run);
  }
  if (rows.num_tokens <= 4) {
    if (wide) return run(FixedShape<4, 2, 3, 3, 3, 4>{});
    if (few && clusters) return run(FixedShape<4, 3, 1, 3, 4, 4, 4>{});
    if (few) return run(FixedShape<4, 1, 1, 6, 3, 8>{});
    // A second round of few blocks is short with them.
    if (clusters && filled(2) < 0.6f) return run(FixedShape<4, 2, 2, 4, 3, 4, 2>{});
    return run(FixedShape<4, 3, 1, 3, 3, 4>{});
  }
  if (rows.num_tokens <= 8) {
    if (wide) return run(FixedShape<8, 2, 3, 3, 3, 4>{});
    if (few && clusters) return run(FixedShape<8, 2, 2, 4, 3, 4, 4>{});
    if (few) return run(FixedShape<8, 2, 1, 4, 2, 8>{});
    return run(FixedShape<8, 3, 1, 3, 3, 4>{});
  }
  if (wide) return run(FixedShape<16, 2, 3, 3, 3, 4>{});
  if (few && clusters) return run(FixedShape<16, 2, 2, 3, 3, 4, 4>{});
  run(FixedShape<16, 3, 1, 3, 3, 4>{});
}

}  // namespace

FixedRows fixed_rows_of(int64_t num_tokens, int64_t in_features, bool with_parts,
                        const Workspace& workspace, FixedArea area) {
  FixedRows rows;
  if (workspace.compute_capability < 80 || num_tokens < 1 || num_tokens > kFixedTokens ||
      in_features % kFixedGroup != 0)
    return rows;
  const auto groups = static_cast<size_t>(in_features / kFixedGroup);
  const auto digits = static_cast<size_t>(num_tokens * in_features) * 2;
  const size_t columns = groups * static_cast<size_t>(fixed_columns(num_tokens)) * 8;
  with_parts = with_parts && num_tokens <= kFixedPartTokens;
  const size_t parts = with_parts ? groups * 32 * sizeof(int32_t) : 0;
  const size_t room = workspace.fixed_rows_size / 512 * 256;
  if (digits + columns + parts > room) return rows;
  rows.digits = static_cast<int8_t*>(workspace.fixed_rows);
  if (area == FixedArea::kProduct) rows.digits += room;
  rows.columns = rows.digits + digits;
  if (with_parts) rows.parts = reinterpret_cast<int32_t*>(rows.digits + digits + columns);
  rows.num_tokens = static_cast<int>(num_tokens);
  rows.in_features = in_features;
  return rows;
}

void launch_fix_rows(const void* x, Scalar type, const FixedRows& to, const Workspace& workspace,
                     cudaStream_t stream) {
  const int64_t threads = to.num_tokens * (to.in_features / 8);
  const auto run = [&](auto t) {
    using T = decltype(t);
    launch_overlapped(fix_rows_kernel<T>,
                      static_cast<unsigned>((threads + kThreads - 1) / kThreads), kThreads, 0,
                      stream, workspace.compute_capability, static_cast<const T*>(x), to);
  };
  if (type == Scalar::kBF16) return run(BFloat{});
  run(Half{});
}

bool launch_linear_fixed(Scalar type, Kind kind, const SkinnyArgs* parts, int count,
                         const FixedRows& ready, const Workspace& workspace, cudaStream_t stream) {
  const auto scales_of = [&](const SkinnyArgs& part) {  // of 128 inputs; 0: not served
    if (kind == Kind::kW4Group32) return 4;
    return part.group_shift == 0 ? 2 : part.group_shift > 0 ? 1 : 0;
  };
  const int scales = scales_of(parts[0]);
  for (int i = 0; i < count; ++i)
    if (scales_of(parts[i]) != scales || scales == 0 || parts[i].units_per_row % 2 != 0)
      return false;
  const bool needs_parts = scales > 1;
  if (needs_parts && parts[0].num_tokens > kFixedPartTokens) return false;
  FixedRows rows = ready;
  if (rows.digits == nullptr || (needs_parts && rows.parts == nullptr)) {
    rows = fixed_rows_of(parts[0].num_tokens, parts[0].in_features, needs_parts, workspace,
                         FixedArea::kProduct);
    if (rows.digits == nullptr) return false;
    launch_fix_rows(parts[0].x, type, rows, workspace, stream);
  }
  if (type == Scalar::kBF16) {
    launch<BFloat>(parts, count, scales, rows, workspace, stream);
  } else {
    launch<Half>(parts, count, scales, rows, workspace, stream);
  }
  return true;
}

}  // namespace nibble::cuda
