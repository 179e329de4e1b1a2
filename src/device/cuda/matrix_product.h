// Products of dense matrices by cuBLASLt, which is looked for at run time.
#pragma once

#include <cuda_runtime.h>

#include <compare>
#include <cstdint>

#include "device/cuda/scalar.h"
#include "device/cuda/workspace.h"

namespace nibble::cuda {

// What its algorithms may use, at the start of an operation's scratch.
constexpr size_t kLibraryScratch = size_t{32} << 20;

// Column-major C[m, n] = op(A) op(B), in f32 with one rounding; with `accumulate` C += that.
// Pitches are elements from column to column. F32 operands may be rounded to TF32 where the GPU has
// it.
struct MatrixProduct {
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  bool a_transposed = false;
  bool b_transposed = false;
  int64_t a_pitch = 0;
  int64_t b_pitch = 0;
  int64_t c_pitch = 0;
  Scalar type = Scalar::kBF16;  // of A and B
  Scalar c_type = Scalar::kBF16;
  bool accumulate = false;
  auto operator<=>(const MatrixProduct&) const = default;
};

// Opens the library, so that what it takes of the GPU's memory is taken at the start.
void load_matrix_library();
// False without the library, or where it has no algorithm for this product.
bool can_multiply(const MatrixProduct& product);
// Of a product that can_multiply().
void multiply(const MatrixProduct& product, const void* a, const void* b, void* c,
              const Workspace& workspace, cudaStream_t stream);

}  // namespace nibble::cuda
