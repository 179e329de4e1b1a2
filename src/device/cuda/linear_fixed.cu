// y = x W' for packed weights and up to 8 tokens on integer tensor cores: nibbles as they lie times
// the digits of FixedRows, exactly, in 32-bit integers; zeros, scales and units once per 128
// inputs.
//   y[t, n] = sum over groups of scale(n) unit(t) (sum_k q[n, k] x[k, t] - zero(n) sum_k x[k, t])
// One logic instruction makes four operands of 8 bits of a packed word: the low nibbles are row g,
// the high ones, 16 times their value, row g + 8. Making 16-bit weights of them takes four times
// the instructions and is what bounds linear_vector.cu. Weights are not rounded to 16 bits here,
// which the contract of tensor/linear_weight.h would have; the result is the nearer to the exact
// one.
//
// A block per `kRows` row tiles, its warps taking turns along the row, as in linear_vector.cu.
#include <climits>

#include "device/cuda/fixed_rows.cuh"
#include "device/cuda/linear_stream.cuh"
#include "device/cuda/overlap.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;  // of the kernel that makes rows

template <int kTokenColumns, int kRowTiles, int kStages, int kBlocksPerSm>
struct FixedShape {
  static constexpr int kTokens = kTokenColumns;  // 4: both digits in one product; 8: in two
  static constexpr int kRows = kRowTiles;        // row tiles of a block
  static constexpr int kDepth = kStages;
  static constexpr int kBlocks = kBlocksPerSm;
  static constexpr int kStage = kRows * (1024 + 64);  // 128 inputs, then the scales
  static constexpr int kRing = kDepth * kStage;       // of a warp
  static constexpr size_t kShared = size_t{kWarps} * kRing;
};

struct FixedGroup {
  SkinnyArgs parts[kMostLinearParts];
  int end[kMostLinearParts];  // blocks of this part and those before it; INT_MAX from the last
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
template <int kTokens>
struct Digits {
  static constexpr int kParts = kTokens <= 4 ? 1 : 2;
  uint4 x[kParts][2];
  uint4 columns;
};

#endif  // NB_SKINNY_CODE

template <class T, class Shape>
__global__ void __launch_bounds__(kWarps * 32, Shape::kBlocks)
    fixed_kernel(const __grid_constant__ FixedGroup group) {
#if NB_SKINNY_CODE
  constexpr int kRows = Shape::kRows;
  constexpr int kDepth = Shape::kDepth;
  constexpr int kParts = Digits<Shape::kTokens>::kParts;
  extern __shared__ __align__(16) char shared[];
  let_next_kernel_start();
  int part = 0;
  while (static_cast<int>(blockIdx.x) >= group.end[part]) ++part;
  const SkinnyArgs& args = group.parts[part];
  const int first_tile =
      (static_cast<int>(blockIdx.x) - (part == 0 ? 0 : group.end[part - 1])) * kRows;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int groups = args.units_per_row / 2;
  const int count = (groups - warp + kWarps - 1) / kWarps;
  char* ring = shared + warp * Shape::kRing;

  // Row tiles past the end repeat the last one; their sums are not stored.
  const int last = args.row_tiles - 1;
  const char* values[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    values[r] = static_cast<const char*>(args.values) +
                (int64_t{min(first_tile + r, last)} * args.units_per_row + 2 * warp) * 512 +
                lane * 16;
  const char* scale = static_cast<const char*>(args.scale) +
                      int64_t{min(first_tile + lane / 4 % kRows, last)} * args.num_groups * 64 +
                      lane % 4 * 16;
  int fetched = 0;
  char* fetch_stage = ring;
  const auto fetch_next = [&] {
    if (fetched < count) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        copy_async_16(fetch_stage + r * 1024 + lane * 16, values[r]);
        copy_async_16(fetch_stage + r * 1024 + 512 + lane * 16, values[r] + 512);
        values[r] += kWarps * 1024;
      }
      const int weight_group = 2 * (fetched * kWarps + warp) >> args.group_shift;
      if (lane < 4 * kRows)
        copy_async_16(fetch_stage + kRows * 1024 + lane * 16, scale + weight_group * 64);
      ++fetched;
      fetch_stage += Shape::kStage;
      if (fetch_stage == ring + Shape::kRing) fetch_stage = ring;
    }
    commit_async();
  };
#pragma unroll
  for (int i = 0; i < kDepth - 1; ++i) fetch_next();
  wait_for_previous_kernel();

  // Columns without a token have digits of zero; what their sums hold is not stored.
  const int num_tokens = args.num_tokens;
  const int token = Shape::kTokens <= 4 ? lane / 4 % 4 : lane / 4;
  const int column = Shape::kTokens <= 4 ? lane / 16 * num_tokens + token : token;
  const bool present = token < num_tokens;
  const int digit_bytes = num_tokens * 64;
  const auto* digits_at = reinterpret_cast<const char*>(group.rows.digits) +
                          (warp * 4 * num_tokens + column) * 64 + lane % 4 * 16;
  const auto* columns_at = static_cast<const char*>(group.rows.columns) + warp * 64 + lane % 4 * 16;
  const auto read = [&](Digits<Shape::kTokens>& to, bool more) {
#pragma unroll
    for (int q = 0; q < kParts; ++q)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        to.x[q][h] = present && more ? load_written_16(digits_at + (2 * h + q) * digit_bytes)
                                     : make_uint4(0, 0, 0, 0);
    to.columns = more ? load_written_16(columns_at) : make_uint4(0, 0, 0, 0);
  };
  Digits<Shape::kTokens> ahead;
  read(ahead, count > 0);
  Sums<T, 1, kRows> sums;
  sums.clear();
  const char* stage = ring;
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const Digits<Shape::kTokens> now = ahead;
    digits_at += kWarps * 4 * digit_bytes;
    columns_at += kWarps * 64;
    read(ahead, i + 1 < count);
    wait_async<kDepth - 2>();
    __syncwarp();
    const int sum[2] = {static_cast<int>(now.columns.x), static_cast<int>(now.columns.z)};
    const float unit[2] = {__uint_as_float(now.columns.y), __uint_as_float(now.columns.w)};
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const uint2 scales =
          *reinterpret_cast<const uint2*>(stage + kRows * 1024 + r * 64 + lane / 4 * 8);
      int products[kParts][4] = {};
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint4 w = *reinterpret_cast<const uint4*>(stage + r * 1024 + h * 512 + lane * 16);
        uint32_t a[2][4];
        operand_of(w.x, w.y, a[0]);
        operand_of(w.z, w.w, a[1]);
#pragma unroll
        for (int q = 0; q < kParts; ++q) {
          mma_digits(products[q], a[0], now.x[q][h].x, now.x[q][h].y);
          mma_digits(products[q], a[1], now.x[q][h].z, now.x[q][h].w);
        }
      }
      const int zero[2] = {zero_of(scales.x), zero_of(scales.y) << 4};
      const float scale_float[2] = {scale_of<T>(scales.x), scale_of<T>(scales.y)};
#pragma unroll
      for (int i4 = 0; i4 < 4; ++i4) {
        int product = products[0][i4];
        if constexpr (kParts > 1) product = product * 256 + products[1][i4];
        product -= zero[i4 / 2] * sum[i4 % 2];
        sums.c[r][0][i4] += static_cast<float>(product) * (scale_float[i4 / 2] * unit[i4 % 2]);
      }
    }
    __syncwarp();
    fetch_next();
    stage += Shape::kStage;
    if (stage == ring + Shape::kRing) stage = ring;
  }

  // All copies have landed: the rings become room for the sums, [row tile][warp][32 lanes x 4].
  __syncthreads();
  auto* parts = reinterpret_cast<float4*>(shared);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float(&c)[4] = sums.c[r][0];
    parts[(r * kWarps + warp) * 32 + lane] = make_float4(c[0], c[1], c[2], c[3]);
  }
  __syncthreads();
  if (warp >= kRows) return;
  Sums<T, 1, 1> total;
  total.clear();
#pragma unroll
  for (int w = 0; w < kWarps; ++w)
    total.add_shared(reinterpret_cast<const float*>(parts + (warp * kWarps + w) * 32), lane);
  float(&c)[4] = total.c[0][0];
  c[2] *= 0.0625f;  // high nibbles
  c[3] *= 0.0625f;
  if constexpr (Shape::kTokens <= 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) c[i] += __shfl_xor_sync(0xffffffffu, c[i], 2);  // the other digit
    if (lane % 4 >= 2) return;
  }
  total.store(args, first_tile + warp, lane);
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
  int blocks = 0;
  for (int i = 0; i < static_cast<int>(kMostLinearParts); ++i) {
    if (i < count) {
      group.parts[i] = parts[i];
      blocks += (parts[i].row_tiles + Shape::kRows - 1) / Shape::kRows;
    }
    group.end[i] = i + 1 < count ? blocks : INT_MAX;
  }
  static const bool ready = [&] {
    NB_CUDA(cudaFuncSetAttribute(fixed_kernel<T, Shape>,
                                 cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(Shape::kShared)));
    return true;
  }();
  static_cast<void>(ready);
  launch_overlapped(fixed_kernel<T, Shape>, static_cast<unsigned>(blocks), kWarps * 32,
                    Shape::kShared, stream, workspace.compute_capability, group);
}

// Two row tiles a block halve what the activations cost; where there are few row tiles, smaller
// blocks spread better (measured on an H200).
constexpr int kFewRowTiles = 500;

template <class T>
void launch(const SkinnyArgs* parts, int count, const FixedRows& rows, const Workspace& workspace,
            cudaStream_t stream) {
  int row_tiles = 0;
  for (int i = 0; i < count; ++i) row_tiles += parts[i].row_tiles;
  if (rows.num_tokens > 4)
    return launch_shape<T, FixedShape<8, 2, 4, 2>>(parts, count, rows, workspace, stream);
  if (row_tiles < kFewRowTiles)
    return launch_shape<T, FixedShape<4, 1, 6, 3>>(parts, count, rows, workspace, stream);
  launch_shape<T, FixedShape<4, 2, 4, 2>>(parts, count, rows, workspace, stream);
}

}  // namespace

FixedRows fixed_rows_of(int64_t num_tokens, int64_t in_features, const Workspace& workspace) {
  FixedRows rows;
  if (workspace.compute_capability < 80 || num_tokens < 1 || num_tokens > kFixedTokens ||
      in_features % kFixedGroup != 0)
    return rows;
  const auto digits = static_cast<size_t>(num_tokens * in_features) * 2;
  const size_t columns = static_cast<size_t>(in_features / kFixedGroup) * kFixedTokens * 8;
  if (digits + columns > workspace.fixed_rows_size) return rows;
  rows.digits = static_cast<int8_t*>(workspace.fixed_rows);
  rows.columns = rows.digits + digits;
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

bool launch_linear_fixed(Scalar type, const SkinnyArgs* parts, int count, const FixedRows& ready,
                         const Workspace& workspace, cudaStream_t stream) {
  for (int i = 0; i < count; ++i)
    if (parts[i].group_shift < 1 || parts[i].units_per_row % 2 != 0) return false;
  FixedRows rows = ready;
  if (rows.digits == nullptr) {
    rows = fixed_rows_of(parts[0].num_tokens, parts[0].in_features, workspace);
    if (rows.digits == nullptr) return false;
    launch_fix_rows(parts[0].x, type, rows, workspace, stream);
  }
  if (type == Scalar::kBF16) {
    launch<BFloat>(parts, count, rows, workspace, stream);
  } else {
    launch<Half>(parts, count, rows, workspace, stream);
  }
  return true;
}

}  // namespace nibble::cuda
