// 16-bit matrix products on tensor cores over panels in shared memory, written once for two
// instruction sets: wgmma (sm_90a) and mma.m16n8k16 with ldmatrix (sm_80 and later).
//
// A panel holds R rows of 64 16-bit elements, 128 bytes a row, and starts at a multiple of 1024
// bytes. The 16-byte chunk c of row r lies at r * 128 + (c ^ (r & 7)) * 16: wgmma's 128-byte
// swizzle, which also frees ldmatrix of bank conflicts. On sm_75 f16 products of the second kind
// are two m16n8k8.
//
// Fragments. Four warps own 16 rows each of a 64-row product. Thread (g = lane / 4, t = lane % 4)
// of a warp holds of an accumulator with N columns `float acc[N / 8][4]`: columns 8j + 2t, + 1 of
// row g in acc[j][0..1], of row g + 8 in acc[j][2..3]. A left operand of 16 columns is
// `uint32_t a[4]`; the accumulators j = 2s and 2s + 1, rounded, are the operand of step s, so a
// result feeds the next product without leaving registers (left_operand()).
#pragma once

#include <type_traits>

#include "device/cuda/ragged.cuh"

namespace nibble::cuda {

constexpr int kPanelColumns = 64;
constexpr int kPanelRowBytes = 128;

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ inline uint32_t panel_offset(int row, int chunk) {
  return static_cast<uint32_t>(row * kPanelRowBytes + ((chunk ^ (row & 7)) << 4));
}

// 16 bytes from global to shared memory, or zeros when !valid; `from` must be readable anyway.
__device__ inline void copy_async(uint32_t to, const void* from, bool valid) {
#if __CUDA_ARCH__ >= 800
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
#endif
}
__device__ inline void copy_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int kPending>
__device__ inline void copy_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// Makes this thread's shared-memory writes visible to wgmma; a barrier must follow.
__device__ inline void fence_for_tensor_cores() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

__device__ inline void load_matrices(uint32_t (&r)[4], uint32_t address) {
#if __CUDA_ARCH__ >= 750
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
#endif
}
__device__ inline void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
#if __CUDA_ARCH__ >= 750
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
#endif
}
// Transposes the 8x8 matrix of 16-bit elements that the warp holds, one pair of a row per lane.
__device__ inline uint32_t transpose_8x8(uint32_t pair) {
  uint32_t out = 0;
#if __CUDA_ARCH__ >= 750
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
#endif
  return out;
}

template <class T>
__device__ inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ inline void mma_16x8x16<BFloat>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                           uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}
template <>
__device__ inline void mma_16x8x16<Half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#elif __CUDA_ARCH__ >= 750
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%8}, "
      "{%0,%1,%2,%3};\n"
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%6,%7}, {%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// Rounds two neighbouring accumulator columns groups into a left operand of 16 columns.
template <class T>
__device__ inline void left_operand(uint32_t (&a)[4], const float (&low)[4],
                                    const float (&high)[4]) {
  a[0] = pack_pair<T>(low[0], low[1]);
  a[1] = pack_pair<T>(low[2], low[3]);
  a[2] = pack_pair<T>(high[0], high[1]);
  a[3] = pack_pair<T>(high[2], high[3]);
}

// The left operand of rows first_row .. + 16 and columns 16 * step .. + 16 of a panel.
__device__ inline void load_left(uint32_t (&a)[4], uint32_t panel, int first_row, int step) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  load_matrices(a, panel + panel_offset(first_row + (lane & 15), 2 * step + (lane >> 4)));
}

// How the right operand lies in its panel.
enum class Right {
  kRowsAreColumns,  // panel[n][k]: acc += A panel'
  kRowsAreDepth,    // panel[k][n]: acc += A panel
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define NIBBLE_HAS_WGMMA 1
#else
#define NIBBLE_HAS_WGMMA 0
#endif

__device__ inline void wgmma_begin() {
#if NIBBLE_HAS_WGMMA
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ inline void wgmma_commit() {
#if NIBBLE_HAS_WGMMA
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
template <int kPending>
__device__ inline void wgmma_wait() {
#if NIBBLE_HAS_WGMMA
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#endif
}

// Keeps the compiler from moving reads or writes of accumulators across a wgmma in flight.
template <int kGroups>
__device__ inline void pin(float (&acc)[kGroups][4]) {
#if NIBBLE_HAS_WGMMA
#pragma unroll
  for (int j = 0; j < kGroups; ++j)
    asm volatile("" : "+f"(acc[j][0]), "+f"(acc[j][1]), "+f"(acc[j][2]), "+f"(acc[j][3])::"memory");
#endif
}

// Shared-memory descriptor of a swizzled panel: groups of 8 rows lie 1024 bytes apart. One 64-wide
// panel per instruction, so the leading offset is never used.
__device__ inline uint64_t panel_descriptor(uint32_t address) {
  return (uint64_t{1} << 62) | (uint64_t{1024 >> 4} << 32) | (uint64_t{1} << 16) |
         ((address & 0x3ffffu) >> 4);
}
// The descriptor of what lies `bytes` behind; only the lower half changes, which keeps the sum in
// one register.
__device__ inline uint64_t panel_descriptor_at(uint64_t descriptor, uint32_t bytes) {
  return (descriptor & 0xffffffff00000000u) | (static_cast<uint32_t>(descriptor) + (bytes >> 4));
}

// The accumulators of wgmma as the assembler wants them, half as many as it has columns.
#define NIBBLE_ACC16(acc)                                                                  \
  "+f"(acc[0][0]), "+f"(acc[0][1]), "+f"(acc[0][2]), "+f"(acc[0][3]), "+f"(acc[1][0]),     \
      "+f"(acc[1][1]), "+f"(acc[1][2]), "+f"(acc[1][3]), "+f"(acc[2][0]), "+f"(acc[2][1]), \
      "+f"(acc[2][2]), "+f"(acc[2][3]), "+f"(acc[3][0]), "+f"(acc[3][1]), "+f"(acc[3][2]), \
      "+f"(acc[3][3])
#define NIBBLE_ACC32(acc) NIBBLE_ACC16(acc), NIBBLE_ACC16((acc + 4))
#define NIBBLE_ACC64(acc) NIBBLE_ACC32(acc), NIBBLE_ACC32((acc + 8))

#define NIBBLE_NAMES16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define NIBBLE_NAMES32 \
  NIBBLE_NAMES16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define NIBBLE_NAMES64                                                                        \
  NIBBLE_NAMES32                                                                              \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53," \
  "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

// One instruction in the type T of its operands; behind the accumulators `operands`, the inputs.
#define NIBBLE_WGMMA(columns, names, operands, accumulators, ...)                        \
  if constexpr (std::is_same_v<T, BFloat>) {                                             \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" columns "k16.f32.bf16.bf16 {" names \
                 "}, " operands ";"                                                      \
                 : accumulators                                                          \
                 : __VA_ARGS__);                                                         \
  } else {                                                                               \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" columns "k16.f32.f16.f16 {" names   \
                 "}, " operands ";"                                                      \
                 : accumulators                                                          \
                 : __VA_ARGS__);                                                         \
  }

// acc[j] for j = 0 .. kColumns / 8 - 1 are the columns. Left operand in registers.
template <class T, int kTransposed, int kColumns = kPanelColumns>
__device__ inline void wgmma(float (*acc)[4], const uint32_t (&a)[4], uint64_t right) {
  static_assert(kColumns == 32 || kColumns == 64 || kColumns == 128);
#if NIBBLE_HAS_WGMMA
  if constexpr (kColumns == 32) {
    NIBBLE_WGMMA("32", NIBBLE_NAMES16, "{%16,%17,%18,%19}, %20, 1, 1, 1, %21", NIBBLE_ACC16(acc),
                 "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(right), "n"(kTransposed))
  } else if constexpr (kColumns == 64) {
    NIBBLE_WGMMA("64", NIBBLE_NAMES32, "{%32,%33,%34,%35}, %36, 1, 1, 1, %37", NIBBLE_ACC32(acc),
                 "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(right), "n"(kTransposed))
  } else {
    NIBBLE_WGMMA("128", NIBBLE_NAMES64, "{%64,%65,%66,%67}, %68, 1, 1, 1, %69", NIBBLE_ACC64(acc),
                 "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(right), "n"(kTransposed))
  }
#endif
}

// 64 columns, the left operand in a panel of 64 rows.
template <class T>
__device__ inline void wgmma(float (*acc)[4], uint64_t left, uint64_t right) {
#if NIBBLE_HAS_WGMMA
  NIBBLE_WGMMA("64", NIBBLE_NAMES32, "%32, %33, 1, 1, 1, 0, 0", NIBBLE_ACC32(acc), "l"(left),
               "l"(right))
#endif
}

// acc[0..7] (64 columns) += a (16 columns of depth) times depth rows 16 * step .. + 16 of the right
// operand. With wgmma it is only enqueued: between wgmma_begin() and wgmma_commit(). Without, only
// the first 16 * num_pairs columns are computed.
template <class T, bool kWgmma, Right kRight>
__device__ inline void multiply_step(float (*acc)[4], const uint32_t (&a)[4], uint32_t panel,
                                     int step, int num_pairs = 4) {
  if constexpr (kWgmma) {
    if constexpr (kRight == Right::kRowsAreColumns) {
      wgmma<T, 0>(acc, a, panel_descriptor(panel + static_cast<uint32_t>(step) * 32));
    } else {
      wgmma<T, 1>(acc, a, panel_descriptor(panel + static_cast<uint32_t>(step) * 2048));
    }
  } else {
    const int lane = static_cast<int>(threadIdx.x) & 31;
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {  // 16 columns at a time
      if (pair >= num_pairs) continue;
      uint32_t b[4];
      if constexpr (kRight == Right::kRowsAreColumns) {
        // Matrices: columns 0-7 depth 0-7, depth 8-15, columns 8-15 depth 0-7, depth 8-15.
        const int row = 16 * pair + (lane & 7) + ((lane >> 4) << 3);
        load_matrices(b, panel + panel_offset(row, 2 * step + ((lane >> 3) & 1)));
      } else {
        const int row = 16 * step + (lane & 15);
        load_matrices_transposed(b, panel + panel_offset(row, 2 * pair + (lane >> 4)));
      }
      mma_16x8x16<T>(acc[2 * pair], a, b[0], b[1]);
      mma_16x8x16<T>(acc[2 * pair + 1], a, b[2], b[3]);
    }
  }
}

// Whether the code of `kernel` that this card runs was compiled for sm_90a, that is with wgmma.
// Code for plain sm_80 or PTX of it also runs on a Hopper card, without.
template <class Kernel>
bool compiled_for_hopper(Kernel* kernel, const Workspace& workspace) {
  cudaFuncAttributes attributes;
  NB_CUDA(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)));
  return workspace.compute_capability == 90 && attributes.ptxVersion == 90;
}

}  // namespace nibble::cuda
