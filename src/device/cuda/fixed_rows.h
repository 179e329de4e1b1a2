// Activations of few tokens as fixed-point numbers of two 8-bit digits, for products with packed
// weights on integer tensor cores (linear_fixed.cu). Each token's 128 inputs c share a unit, a
// power of two:
//   x[t, 128 c + i] = (256 high + low) * unit,  |256 high + low| < 2^14, low in -128..127
// What a bfloat16 holds within 2^-6 of the largest of its 128 is exact; the rest errs by at most
// 2^-14 of the largest.
//
//   digits  [in / 128, 2 halves, 2 digits, num_tokens, 4, 16] int8
//     byte 8 j + 4 i + b of lane t of half h: input 64 h + 32 j + 8 t + 4 i + {0, 2, 1, 3}[b]: the
//     B operand of mma.m16n8k32 that belongs to the tiles of linear.h
//   columns [in / 128, 8, or 16 for more than 8 tokens] {int32 minus the sum of the 128, f32 unit}
//     up to 4 tokens: column t the high digits of token t, unit 256 times, column 4 + t the low
//     ones; more: column t both digits of token t.
//   parts   [in / 128, 4 pairs of columns, 4, 2] int32: minus the sums of each 32 inputs, for
//     weights in groups of 32 or 64 and up to 8 tokens
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "device/cuda/scalar.h"
#include "device/cuda/workspace.h"

namespace nibble::cuda {

constexpr int kFixedTokens = 16;
constexpr int kFixedPartTokens = 8;   // most with parts
constexpr int64_t kFixedGroup = 128;  // inputs that share a unit

constexpr int fixed_columns(int64_t num_tokens) {
  return num_tokens <= 8 ? 8 : 16;
}

struct FixedRows {
  int8_t* digits = nullptr;  // null: none
  void* columns = nullptr;
  int32_t* parts = nullptr;  // null: not asked for
  int num_tokens = 0;
  int64_t in_features = 0;
};

// Rows that operations leave for the product after them, and those that a product makes for itself.
enum class FixedArea : uint8_t { kOperation, kProduct };
// Room for such rows in the workspace; `digits` is null if they do not fit or cannot be: more than
// kFixedTokens tokens, in_features % kFixedGroup != 0, no 8-bit tensor cores. `with_parts`: for
// weights in groups of less than kFixedGroup; none beyond kFixedPartTokens tokens.
FixedRows fixed_rows_of(int64_t num_tokens, int64_t in_features, bool with_parts,
                        const Workspace& workspace, FixedArea area = FixedArea::kOperation);

// From x [num_tokens, in_features] of a 16-bit type.
void launch_fix_rows(const void* x, Scalar type, const FixedRows& to, const Workspace& workspace,
                     cudaStream_t stream);

}  // namespace nibble::cuda
