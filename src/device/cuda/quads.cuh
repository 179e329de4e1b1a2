// Matrix products of quad pairs: mma.m8n8k4 of sm_70, in f16 with f32 sums. A pair is lanes 4 i ..
// 4 i + 3 and 16 + 4 i .. + 3; a warp's four pairs multiply at once, each its own operands.
// Compiled for sm_70 and sm_75 only, which has it for correctness, not for speed. Source: PTX ISA,
// "Matrix Fragments for mma.m8n8k4".
#pragma once

#include "device/cuda/tensor_core.cuh"

namespace nibble::cuda {

// Whether these products are to be taken: sm_70 has no others, and code for sm_75 has them for
// tests.
inline bool takes_quads(const Workspace& workspace, bool asked) {
  return workspace.compute_capability < 75 || (workspace.compute_capability < 80 && asked);
}

struct QuadLane {
  int member = static_cast<int>(threadIdx.x) & 3;      // of its quad
  int pair = static_cast<int>(threadIdx.x) >> 2 & 3;   // which of the warp's
  int upper = static_cast<int>(threadIdx.x) >> 4 & 1;  // quad of the pair

  // A thread's row of the left operand, and with kRowsAreColumns its column of the right one.
  __device__ int operand_row() const { return member + 4 * upper; }
  // Of the result a thread has of two rows, row(0) and row(1), columns column(h) and the next in
  // [h][0..1] and [h][2..3].
  __device__ int row(int half) const { return (member & 1) + 2 * half + 4 * upper; }
  __device__ int column(int h) const { return (member & 2) + 4 * h; }
};

// d[h][c] += a b: 8 rows, 8 columns, depth 4. The thread's row of a is {a0, a1}; {b0, b1} is with
// kRowsAreColumns its column of b, otherwise of row `member` of b the half `upper`.
template <Right kRight>
__device__ __forceinline__ void mma_8x8x4(float (&low)[4], float (&high)[4], uint32_t a0,
                                          uint32_t a1, uint32_t b0, uint32_t b1) {
#if __CUDA_ARCH__ >= 700 && __CUDA_ARCH__ < 800
#define NIBBLE_QUADS(layout)                                                            \
  asm volatile("mma.sync.aligned.m8n8k4.row." layout                                    \
               ".f32.f16.f16.f32 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9}, {%10,%11}, "       \
               "{%0,%1,%2,%3,%4,%5,%6,%7};"                                             \
               : "+f"(low[0]), "+f"(low[1]), "+f"(low[2]), "+f"(low[3]), "+f"(high[0]), \
                 "+f"(high[1]), "+f"(high[2]), "+f"(high[3])                            \
               : "r"(a0), "r"(a1), "r"(b0), "r"(b1))
  if constexpr (kRight == Right::kRowsAreColumns) {
    NIBBLE_QUADS("col");
  } else {
    NIBBLE_QUADS("row");
  }
#undef NIBBLE_QUADS
#endif
}

}  // namespace nibble::cuda
