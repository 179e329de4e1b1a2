// The gated delta rule over long steps: chunks of 64 tokens on tensor cores.
//
// Two kernels per piece of a step:
//   prepare: one block per (chunk, head), all in parallel. A_ij = beta_i (k_i.k_j) e^(G_i - G_j)
//     for j < i and its inverse T = (I + A)^-1, by halves: the diagonal blocks in f32 by forward
//     substitution, the block below them on tensor cores; P_ij = (q_i.k_j) e^(G_i - G_j) for j <=
//     i. T and P go to the workspace in 16 bits.
//   advance: one block of four warps per (sequence, head, half of the value dims), chunks in order.
//     With X = K S:  V' = T (beta V - beta e^G X),  O = e^G Q S + P V',
//     S <- e^G_C S + (e^(G_C - G) K)' V'.
//     Everything is computed transposed, value dims as rows: S' [64, 128] stays in f32 accumulators
//     for the whole sequence and each product's accumulators, rounded, are the next one's left
//     operand. Shared memory only carries the loads; there is one barrier per chunk.
// The L2 norms of q and k are scales of rows, so they are folded into the elementwise factors and
// the raw q and k feed the tensor cores unrounded. Only exponents <= 0 are taken.
// Cost of a chunk and head: 10.5 MFLOP in products; reads 48 KiB of K, Q, V, writes 16 of O; T and
// P pass through 16 KiB of workspace.
//
// Measured on an H100, 32768 tokens, 16/48 heads, all of it (bench_cuda_gdn): 2.0 ms with the 64x64
// substitution whole in f32 and load addresses computed per copy, 1.6 ms as it is. advance has one
// warp per scheduler and is bound by its instructions (1000 per warp and chunk, one in 3.4 cycles),
// prepare by the latency of its few warps. Smaller workspaces, whose T and P would stay in the L2
// cache, lose more at the ends of their many launches than they gain (24 MiB: 1.9 ms).
// Source: Yang, Kautz, Hatamizadeh, "Gated Delta Networks", arXiv:2412.06464.
#include <algorithm>
#include <type_traits>

#include "device/cuda/delta_rule_kernels.h"
#include "device/cuda/launch.h"
#include "device/cuda/tensor_core.cuh"

namespace nibble::cuda {
namespace {

constexpr int kChunk = 64;
[[maybe_unused]] constexpr int kDim = kDeltaDim;  // unused where there is no mma

// --- prepare --------------------------------------------------------------------------

// Per token of a chunk and head: beta, and the factors of X, of O's first term and of V' in S's
// update; each with the decay and the norm it needs.
struct alignas(16) TokenFactors {
  float beta;
  float x;    // beta e^G / |k|
  float out;  // e^G q_scale / |q|
  float key;  // e^(G_C - G) / |k|
};

// One (chunk, head) of the workspace.
struct ChunkWork {
  uint16_t inverse[kChunk * kChunk];  // T, row-major
  uint16_t scores[kChunk * kChunk];   // P
  TokenFactors factors[kChunk + 1];   // the last one's beta: e^G_C
};

// Shared memory of prepare. The panels are dead once the products are in registers; what makes the
// inverse then takes their place.
constexpr int kHalf = kChunk / 2;
constexpr int kFloatStride = kHalf + 4;  // rows stay 16-byte aligned
constexpr int kHalfStride = kHalf + 8;   // the same, and ldmatrix meets no bank twice
struct PreparePanels {
  uint8_t k[2][kChunk * kPanelRowBytes];  // columns 0-63, 64-127
  uint8_t q[2][kChunk * kPanelRowBytes];
};
struct PrepareInverse {
  float diagonal[2][kHalf * kFloatStride];  // A11, A22
  Half corner[kHalf * kHalfStride];         // A21
  Half inverse[2][kHalf * kHalfStride];     // T11, T22
};
struct PrepareShared {
  union {
    PreparePanels panels;
    PrepareInverse solve;
  };
  float cumulative[kChunk];
  float beta[kChunk];
  float k_norm[kChunk];
  float q_norm[kChunk];
};

// T of one chunk by warps 0 and 1, from the blocks of A in shared memory. Each warp inverts its
// diagonal block in f32, a lane per column: T_i = e_i - sum_{k < i} A_ik T_k. Then both make
// T21 = -T22 A21 T11 on tensor cores, transposed so that the first product's accumulators are the
// second's left operand; f16 operands, finer than the result is stored.
template <class T>
__device__ inline void invert(PrepareInverse& solve, uint16_t* inverse, int warp, int lane) {
  float column[kHalf];
  const float* a = solve.diagonal[warp];
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    float sum[4] = {i == lane ? 1.0f : 0.0f, 0, 0, 0};
#pragma unroll
    for (int k = 0; k < i; k += 4) {
      const float4 four = *reinterpret_cast<const float4*>(a + i * kFloatStride + k);
      sum[0] -= four.x * column[k];
      if (k + 1 < i) sum[1] -= four.y * column[k + 1];
      if (k + 2 < i) sum[2] -= four.z * column[k + 2];
      if (k + 3 < i) sum[3] -= four.w * column[k + 3];
    }
    column[i] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
  const int first = kHalf * warp;  // row and column of the diagonal block
#pragma unroll
  for (int i = 0; i < kHalf; ++i)
    solve.inverse[warp][i * kHalfStride + lane] = __float2half_rn(column[i]);
    // Even lanes store row i, odd lanes row i + 1, both for the pair of columns they share.
#pragma unroll
  for (int i = 0; i < kHalf; i += 2) {
    const bool odd = (lane & 1) != 0;
    const float other = __shfl_xor_sync(0xffffffffu, odd ? column[i] : column[i + 1], 1);
    const uint32_t pair = odd ? pack_pair<T>(other, column[i + 1]) : pack_pair<T>(column[i], other);
    *reinterpret_cast<uint32_t*>(inverse + (first + i + (odd ? 1 : 0)) * kChunk + first +
                                 (lane & ~1)) = pair;
  }
  if (warp == 0) {  // T12 = 0
#pragma unroll
    for (int i = 0; i < 4; ++i)
      reinterpret_cast<uint4*>(inverse + lane * kChunk + kHalf)[i] = {0, 0, 0, 0};
  }
  asm volatile("bar.sync 1, 64;" ::: "memory");

  // Columns 16 warp .. + 16 of T21, as rows: (A21 T11)' = T11' A21', then times T22'.
  const uint32_t corner = shared_address(solve.corner);
  const uint32_t upper = shared_address(solve.inverse[0]);
  const uint32_t lower = shared_address(solve.inverse[1]);
  const int low_row = (lane & 7) + ((lane >> 4) << 3);
  const int low_column = ((lane >> 3) & 1) * 8;
  const auto at = [](uint32_t base, int row, int column) {
    return base + static_cast<uint32_t>(row * kHalfStride + column) * 2;
  };
  float product[4][4] = {};
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    uint32_t left[4];
    load_matrices_transposed(left, at(upper, 16 * step + low_row, 16 * warp + low_column));
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      uint32_t right[4];
      load_matrices(right, at(corner, 16 * pair + low_row, 16 * step + low_column));
      mma_16x8x16<Half>(product[2 * pair], left, right[0], right[1]);
      mma_16x8x16<Half>(product[2 * pair + 1], left, right[2], right[3]);
    }
  }
  float result[4][4] = {};
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    uint32_t left[4];
    left_operand<Half>(left, product[2 * step], product[2 * step + 1]);
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      uint32_t right[4];
      load_matrices(right, at(lower, 16 * pair + low_row, 16 * step + low_column));
      mma_16x8x16<Half>(result[2 * pair], left, right[0], right[1]);
      mma_16x8x16<Half>(result[2 * pair + 1], left, right[2], right[3]);
    }
  }
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    uint16_t* row = inverse + (kHalf + 8 * n + lane / 4) * kChunk + 16 * warp + lane % 4 * 2;
    *reinterpret_cast<uint32_t*>(row) = transpose_8x8(pack_pair<T>(-result[n][0], -result[n][1]));
    *reinterpret_cast<uint32_t*>(row + 8) =
        transpose_8x8(pack_pair<T>(-result[n][2], -result[n][3]));
  }
}

// Grid (num_v_heads, chunks of this piece), 128 threads. Warps 0 and 1 make T, warps 2 and 3 P.
template <class T>
__global__ __launch_bounds__(128, 5) void prepare_kernel(Rule rule, int32_t first_chunk,
                                                         ChunkWork* work) {
#if __CUDA_ARCH__ >= 800
  extern __shared__ __align__(1024) uint8_t raw[];
  PrepareShared& shared = *reinterpret_cast<PrepareShared*>(raw);
  const int tid = static_cast<int>(threadIdx.x);
  const int lane = tid & 31;
  const int warp = tid / 32;
  const int head = static_cast<int>(blockIdx.x);
  const int key_head = head / (rule.num_v_heads / rule.num_k_heads);
  const TilePlace place =
      find_tile({rule.batch.query_start, rule.batch.num_seqs, kChunk, kLongestRecurrent},
                first_chunk + static_cast<int32_t>(blockIdx.y));
  if (place.seq < 0) return;
  const int64_t first = rule.batch.query_start[place.seq] + place.tile * kChunk;
  const int count = min(kChunk, static_cast<int>(rule.batch.query_start[place.seq + 1] - first));
  ChunkWork& out = work[static_cast<int64_t>(blockIdx.y) * rule.num_v_heads + head];

  for (int i = tid; i < kChunk * 16; i += 128) {
    const int row = i / 16;
    const int chunk = i % 16;
    const bool valid = row < count;
    const int64_t from = ((first + (valid ? row : 0)) * rule.num_k_heads + key_head) * kDim;
    const uint32_t to = panel_offset(row, chunk & 7);
    copy_async(shared_address(shared.panels.k[chunk / 8]) + to,
               static_cast<const T*>(rule.k) + from + chunk * 8, valid);
    copy_async(shared_address(shared.panels.q[chunk / 8]) + to,
               static_cast<const T*>(rule.q) + from + chunk * 8, valid);
  }
  copy_commit();
  if (warp == 0) {
    // Inclusive sum of the log decays, two neighbouring tokens per lane.
    const auto at = [&](const float* values, int i) {
      return i < count ? values[(first + i) * rule.num_v_heads + head] : 0.0f;
    };
    const float even = at(rule.log_decay, 2 * lane);
    const float odd = at(rule.log_decay, 2 * lane + 1);
    float through = even + odd;
    for (int offset = 1; offset < 32; offset <<= 1) {
      const float left = __shfl_up_sync(0xffffffffu, through, offset);
      if (lane >= offset) through += left;
    }
    shared.cumulative[2 * lane] = through - odd;
    shared.cumulative[2 * lane + 1] = through;
    shared.beta[2 * lane] = at(rule.beta, 2 * lane);
    shared.beta[2 * lane + 1] = at(rule.beta, 2 * lane + 1);
  }
  copy_wait<0>();
  __syncthreads();
  {  // Norms: two threads per token, 64 dims each.
    const int row = tid / 2;
    float kk = 0, qq = 0;
#pragma unroll
    for (int chunk = 0; chunk < 8; ++chunk) {
      const uint32_t offset = panel_offset(row, chunk);
      const uint4 k4 = *reinterpret_cast<const uint4*>(shared.panels.k[tid & 1] + offset);
      const uint4 q4 = *reinterpret_cast<const uint4*>(shared.panels.q[tid & 1] + offset);
      const uint32_t kw[4] = {k4.x, k4.y, k4.z, k4.w};
      const uint32_t qw[4] = {q4.x, q4.y, q4.z, q4.w};
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const float2 kv = unpack_pair<T>(kw[w]);
        const float2 qv = unpack_pair<T>(qw[w]);
        kk += kv.x * kv.x + kv.y * kv.y;
        qq += qv.x * qv.x + qv.y * qv.y;
      }
    }
    kk += __shfl_xor_sync(0xffffffffu, kk, 1);
    qq += __shfl_xor_sync(0xffffffffu, qq, 1);
    if ((tid & 1) == 0) {
      shared.k_norm[row] = 1.0f / sqrtf(kk + kL2Eps);
      shared.q_norm[row] = rule.q_scale / sqrtf(qq + kL2Eps);
    }
  }
  __syncthreads();

  // Rows 32 * (warp % 2) .. + 32 of K K' (warps 0, 1) or Q K' (warps 2, 3), on and below the
  // diagonal.
  const bool makes_inverse = warp < 2;
  const int first_row = kHalf * (warp & 1);
  float acc[2][8][4] = {};
#pragma unroll
  for (int step = 0; step < 8; ++step) {
    const uint8_t* left = makes_inverse ? shared.panels.k[step / 4] : shared.panels.q[step / 4];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      uint32_t a[4];
      load_left(a, shared_address(left), first_row + 16 * m, step & 3);
      multiply_step<T, false, Right::kRowsAreColumns>(
          acc[m], a, shared_address(shared.panels.k[step / 4]), step & 3, first_row / 16 + m + 1);
    }
  }
  __syncthreads();
  const int g = lane / 4;
  const int t = lane % 4;
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = first_row + 16 * m + 8 * half + g;
      const float g_i = shared.cumulative[i];
      const float row_factor = makes_inverse ? shared.beta[i] * shared.k_norm[i] : shared.q_norm[i];
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const int at = 8 * n + 2 * t;
        float pair[2] = {0, 0};
        if (8 * n < first_row + 16 * m + 16) {
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const int j = at + c;
            if (makes_inverse ? j < i : j <= i)
              pair[c] = row_factor * shared.k_norm[j] * acc[m][n][2 * half + c] *
                        __expf(g_i - shared.cumulative[j]);
          }
        }
        const int row = i - first_row;
        if (!makes_inverse) {
          *reinterpret_cast<uint32_t*>(out.scores + i * kChunk + at) =
              pack_pair<T>(pair[0], pair[1]);
        } else if (8 * n >= first_row && 8 * n < first_row + kHalf) {
          *reinterpret_cast<float2*>(shared.solve.diagonal[warp] + row * kFloatStride + at -
                                     first_row) = {pair[0], pair[1]};
        } else if (8 * n < first_row) {
          *reinterpret_cast<uint32_t*>(shared.solve.corner + row * kHalfStride + at) =
              pack_pair<Half>(pair[0], pair[1]);
        }
      }
    }
  if (makes_inverse) {
    __syncwarp();  // each warp inverts the block that it wrote
    invert<T>(shared.solve, out.inverse, warp, lane);
    return;
  }
  const int i = tid - 64;
  const float cumulative = shared.cumulative[i];
  const float through = expf(cumulative);
  const float beta = shared.beta[i];
  out.factors[i] = {beta, beta * through * shared.k_norm[i], through * shared.q_norm[i],
                    expf(shared.cumulative[kChunk - 1] - cumulative) * shared.k_norm[i]};
  if (i == kChunk - 1) out.factors[kChunk] = {through, 0, 0, 0};
#endif
}

// --- advance --------------------------------------------------------------------------

struct alignas(1024) AdvanceStage {
  uint8_t k[2][kChunk * kPanelRowBytes];  // [token][k dim]
  uint8_t q[2][kChunk * kPanelRowBytes];
  uint8_t v[kChunk * kPanelRowBytes];  // [token][64 value dims]
  uint8_t inverse[kChunk * kPanelRowBytes];
  uint8_t scores[kChunk * kPanelRowBytes];
  TokenFactors factors[kChunk + 1];
};
constexpr int kAdvanceStages = 3;

template <class T>
__device__ inline void load_stage(AdvanceStage& stage, const Rule& rule, const ChunkWork& work,
                                  int64_t first, int count, int key_head, int64_t head,
                                  int value_begin) {
  const int tid = static_cast<int>(threadIdx.x);
  // A thread keeps its 16-byte chunk and takes every 8th or 16th row, so the swizzle is the same
  // for all of them. Rows past the end read the last one and store zeros.
  {
    const int chunk = tid % 16;
    const uint32_t to = static_cast<uint32_t>(chunk / 8 * kChunk * kPanelRowBytes) +
                        panel_offset(tid / 16, chunk & 7);
    const uint32_t k = shared_address(stage.k[0]) + to;
    const uint32_t q = shared_address(stage.q[0]) + to;
    const int stride = rule.num_k_heads * kDim;
    const int64_t from = first * stride + key_head * kDim + chunk * 8;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int row = tid / 16 + 8 * i;
      const int offset = min(row, count - 1) * stride;
      const bool valid = row < count;
      copy_async(k + static_cast<uint32_t>(8 * i * kPanelRowBytes),
                 static_cast<const T*>(rule.k) + from + offset, valid);
      copy_async(q + static_cast<uint32_t>(8 * i * kPanelRowBytes),
                 static_cast<const T*>(rule.q) + from + offset, valid);
    }
  }
  const int chunk = tid % 8;
  const uint32_t to = panel_offset(tid / 8, chunk);
  const int stride = rule.num_v_heads * kDim;
  const T* v =
      static_cast<const T*>(rule.v) + first * stride + head * kDim + value_begin + chunk * 8;
  const uint32_t values = shared_address(stage.v) + to;
  const uint32_t inverse = shared_address(stage.inverse) + to;
  const uint32_t scores = shared_address(stage.scores) + to;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = tid / 8 + 16 * i;
    const auto below = static_cast<uint32_t>(16 * i * kPanelRowBytes);
    copy_async(values + below, v + min(row, count - 1) * stride, row < count);
    copy_async(inverse + below, work.inverse + tid * 8 + i * 1024, true);
    copy_async(scores + below, work.scores + tid * 8 + i * 1024, true);
  }
  if (tid <= kChunk) copy_async(shared_address(&stage.factors[tid]), &work.factors[tid], true);
}

// Grid (2, num_v_heads, num_seqs), 128 threads; block (half, head, sequence) walks the chunks that
// lie in this piece, [first_chunk, first_chunk + num_chunks) of the whole batch.
template <class T, bool kWgmma>
__global__ __launch_bounds__(128) void advance_kernel(Rule rule, int32_t first_chunk,
                                                      int32_t num_chunks, const ChunkWork* work) {
#if __CUDA_ARCH__ >= 800
  if (kWgmma && NIBBLE_HAS_WGMMA == 0) return;
  extern __shared__ __align__(1024) uint8_t raw[];
  auto* stages = reinterpret_cast<AdvanceStage*>(raw);
  const int32_t seq = static_cast<int32_t>(blockIdx.z);
  const Tiling tiling{rule.batch.query_start, rule.batch.num_seqs, kChunk, kLongestRecurrent};
  const int32_t of_sequence = tiling.tiles_of(seq);
  if (of_sequence == 0) return;
  const int32_t before = tiles_before(tiling, seq);
  const int32_t begin = max(0, first_chunk - before);
  const int32_t end = min(of_sequence, first_chunk + num_chunks - before);
  if (begin >= end) return;
  const int64_t query_begin = rule.batch.query_start[seq];
  const int64_t query_end = rule.batch.query_start[seq + 1];

  const int64_t head = blockIdx.y;
  const int key_head = static_cast<int>(head) / (rule.num_v_heads / rule.num_k_heads);
  const int tid = static_cast<int>(threadIdx.x);
  const int lane = tid & 31;
  const int g = lane / 4;
  const int t = lane % 4;
  const int value_begin = static_cast<int>(blockIdx.x) * 64;
  const int value = value_begin + tid / 32 * 16 + g;  // and value + 8
  const int row_in_half = tid / 32 * 16;

  const auto load = [&](int32_t chunk) {
    const int64_t first = query_begin + static_cast<int64_t>(chunk) * kChunk;
    const int count = static_cast<int>(min(static_cast<int64_t>(kChunk), query_end - first));
    const ChunkWork& item =
        work[static_cast<int64_t>(before + chunk - first_chunk) * rule.num_v_heads + head];
    load_stage<T>(stages[(chunk - begin) % kAdvanceStages], rule, item, first, count, key_head,
                  head, value_begin);
  };
  load(begin);
  copy_commit();
  if (begin + 1 < end) load(begin + 1);
  copy_commit();

  // S' in accumulators: rows value dims, columns k dims.
  float* state =
      rule.state +
      (static_cast<int64_t>(rule.batch.state_slot[seq]) * rule.num_v_heads + head) * kDim * kDim;
  const bool from_zero = begin == 0 && rule.batch.state_is_fresh[seq] != 0;
  float s[16][4];
#pragma unroll
  for (int n = 0; n < 16; ++n)
#pragma unroll
    for (int c = 0; c < 4; ++c)
      s[n][c] = from_zero ? 0.0f : state[(8 * n + 2 * t + (c & 1)) * kDim + value + (c >> 1) * 8];

  for (int32_t chunk = begin; chunk < end; ++chunk) {
    copy_wait<kAdvanceStages - 2>();
    fence_for_tensor_cores();
    __syncthreads();
    const AdvanceStage& stage = stages[(chunk - begin) % kAdvanceStages];
    const uint32_t k = shared_address(stage.k[0]);
    const uint32_t q = shared_address(stage.q[0]);
    constexpr uint32_t kPanel = kChunk * kPanelRowBytes;

    // x = S'K', o = S'Q'.
    float x[8][4] = {};
    float o[8][4] = {};
    uint32_t left[8][4];
#pragma unroll
    for (int step = 0; step < 8; ++step) left_operand<T>(left[step], s[2 * step], s[2 * step + 1]);
    pin(x);
    pin(o);
    if (kWgmma) wgmma_begin();
#pragma unroll
    for (int step = 0; step < 8; ++step)
      multiply_step<T, kWgmma, Right::kRowsAreColumns>(
          x, left[step], k + static_cast<uint32_t>(step / 4) * kPanel, step & 3);
    if (kWgmma) wgmma_commit();
#pragma unroll
    for (int step = 0; step < 8; ++step)
      multiply_step<T, kWgmma, Right::kRowsAreColumns>(
          o, left[step], q + static_cast<uint32_t>(step / 4) * kPanel, step & 3);
    if (kWgmma) wgmma_commit();
    // Everyone has passed the barrier, so the stage of the previous chunk is free.
    if (chunk + kAdvanceStages - 1 < end) load(chunk + kAdvanceStages - 1);
    copy_commit();
    if (kWgmma) {
      wgmma_wait<1>();
      pin(x);
    }

    // x <- beta V' - beta e^G x, tokens as columns. V is read transposed.
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
      uint32_t v[4];  // tokens 16 pair + 0-7 of value rows g, g + 8; then tokens 8-15
      const int token = 16 * pair + (lane & 7) + ((lane >> 4) << 3);
      load_matrices_transposed(
          v, shared_address(stage.v) + panel_offset(token, row_in_half / 8 + ((lane >> 3) & 1)));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int n = 2 * pair + half;
        const float2 low = unpack_pair<T>(v[2 * half]);
        const float2 high = unpack_pair<T>(v[2 * half + 1]);
        const TokenFactors& first = stage.factors[8 * n + 2 * t];
        const TokenFactors& second = stage.factors[8 * n + 2 * t + 1];
        x[n][0] = first.beta * low.x - first.x * x[n][0];
        x[n][1] = second.beta * low.y - second.x * x[n][1];
        x[n][2] = first.beta * high.x - first.x * x[n][2];
        x[n][3] = second.beta * high.y - second.x * x[n][3];
      }
    }

    // New values V', transposed: x T'.
    float fresh[8][4] = {};
    uint32_t right_hand[4][4];
#pragma unroll
    for (int step = 0; step < 4; ++step)
      left_operand<T>(right_hand[step], x[2 * step], x[2 * step + 1]);
    pin(fresh);
    if (kWgmma) wgmma_begin();
#pragma unroll
    for (int step = 0; step < 4; ++step)
      multiply_step<T, kWgmma, Right::kRowsAreColumns>(fresh, right_hand[step],
                                                       shared_address(stage.inverse), step);
    if (kWgmma) {
      wgmma_commit();
      wgmma_wait<0>();
      pin(fresh);
      pin(o);
    }

    // o <- e^G o + V' P';  S' <- e^G_C S' + (e^(G_C - G) V') K.
    uint32_t values[4][4];
    uint32_t decayed[4][4];
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      left_operand<T>(values[step], fresh[2 * step], fresh[2 * step + 1]);
#pragma unroll
      for (int n = 2 * step; n < 2 * step + 2; ++n) {
        const TokenFactors& first = stage.factors[8 * n + 2 * t];
        const TokenFactors& second = stage.factors[8 * n + 2 * t + 1];
        o[n][0] *= first.out, o[n][1] *= second.out;
        o[n][2] *= first.out, o[n][3] *= second.out;
        fresh[n][0] *= first.key, fresh[n][1] *= second.key;
        fresh[n][2] *= first.key, fresh[n][3] *= second.key;
      }
      left_operand<T>(decayed[step], fresh[2 * step], fresh[2 * step + 1]);
    }
    const float decay = stage.factors[kChunk].beta;
#pragma unroll
    for (int n = 0; n < 16; ++n)
#pragma unroll
      for (int c = 0; c < 4; ++c) s[n][c] *= decay;
    pin(o);
    pin(s);
    if (kWgmma) wgmma_begin();
#pragma unroll
    for (int step = 0; step < 4; ++step)
      multiply_step<T, kWgmma, Right::kRowsAreColumns>(o, values[step],
                                                       shared_address(stage.scores), step);
    if (kWgmma) wgmma_commit();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      multiply_step<T, kWgmma, Right::kRowsAreDepth>(s, decayed[step], k, step);
      multiply_step<T, kWgmma, Right::kRowsAreDepth>(s + 8, decayed[step], k + kPanel, step);
    }
    if (kWgmma) {
      wgmma_commit();
      wgmma_wait<1>();
      pin(o);
    }

    // Back to rows of tokens: lane (g, t) then holds value dims 2t, 2t + 1 of token 8n + g.
    const int64_t first = query_begin + static_cast<int64_t>(chunk) * kChunk;
    const int count = static_cast<int>(min(static_cast<int64_t>(kChunk), query_end - first));
    T* out = static_cast<T*>(rule.out) + ((first + g) * rule.num_v_heads + head) * kDim +
             value_begin + row_in_half + 2 * t;
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const uint32_t low = transpose_8x8(pack_pair<T>(o[n][0], o[n][1]));
      const uint32_t high = transpose_8x8(pack_pair<T>(o[n][2], o[n][3]));
      if (8 * n + g < count) {
        T* row = out + static_cast<int64_t>(8 * n) * rule.num_v_heads * kDim;
        *reinterpret_cast<uint32_t*>(row) = low;
        *reinterpret_cast<uint32_t*>(row + 8) = high;
      }
    }
    if (kWgmma) {
      wgmma_wait<0>();
      pin(s);
    }
  }
#pragma unroll
  for (int n = 0; n < 16; ++n)
#pragma unroll
    for (int c = 0; c < 4; ++c)
      state[(8 * n + 2 * t + (c & 1)) * kDim + value + (c >> 1) * 8] = s[n][c];
#endif
}

// --- launching ---------------------------------------------------------------------------------

template <class T>
void launch_pieces(const Rule& rule, const Workspace& workspace, bool allow_wgmma,
                   cudaStream_t stream) {
  auto* work = static_cast<ChunkWork*>(workspace.scratch);
  const auto heads = static_cast<size_t>(rule.num_v_heads);
  const int32_t most_chunks = rule.batch.num_tokens / kChunk + rule.batch.num_seqs;
  const auto capacity = static_cast<int32_t>(
      std::min<size_t>(workspace.scratch_size / (sizeof(ChunkWork) * heads), 65535));
  const int32_t per_piece = std::min(capacity, most_chunks);
  const bool wgmma = allow_wgmma && compiled_for_hopper(advance_kernel<T, true>, workspace);
  auto* advance = wgmma ? advance_kernel<T, true> : advance_kernel<T, false>;
  constexpr size_t kAdvanceShared = kAdvanceStages * sizeof(AdvanceStage);
  allow_shared_memory(prepare_kernel<T>, sizeof(PrepareShared));
  allow_shared_memory(advance, kAdvanceShared);
  for (int32_t first = 0; first < most_chunks; first += per_piece) {
    const int32_t num_chunks = std::min(per_piece, most_chunks - first);
    prepare_kernel<T><<<dim3(static_cast<unsigned>(heads), static_cast<unsigned>(num_chunks)), 128,
                        sizeof(PrepareShared), stream>>>(rule, first, work);
    NB_CUDA_LAUNCHED();
    advance<<<dim3(2, static_cast<unsigned>(heads), static_cast<unsigned>(rule.batch.num_seqs)),
              128, kAdvanceShared, stream>>>(rule, first, num_chunks, work);
    NB_CUDA_LAUNCHED();
  }
}

}  // namespace

bool launch_chunked_delta_rule(const Rule& rule, Scalar type, const Workspace& workspace,
                               bool allow_wgmma, cudaStream_t stream) {
  if (workspace.scratch_size < sizeof(ChunkWork) * static_cast<size_t>(rule.num_v_heads))
    return false;
  if (type == Scalar::kF16) {
    launch_pieces<Half>(rule, workspace, allow_wgmma, stream);
  } else {
    launch_pieces<BFloat>(rule, workspace, allow_wgmma, stream);
  }
  return true;
}

}  // namespace nibble::cuda
