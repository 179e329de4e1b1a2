// y = x W' for many tokens: weights become 16 bits in pieces that fit the scratch (dense ones are
// used where they lie), and cuBLASLt multiplies. Without it the caller takes another path.
#include <algorithm>

#include "base/check.h"
#include "device/cuda/linear.h"
#include "device/cuda/matrix_product.h"

namespace nibble::cuda {
namespace {

// Row-major y[m, n] = x[m, k] W[n, k]' is column-major y'[n, m] = W x'; W is `rows` outputs of it.
MatrixProduct product_of(const LinearLaunch& args, int64_t rows) {
  const int64_t k = args.weight.in_features;
  return {.m = rows,
          .n = args.num_tokens,
          .k = k,
          .a_transposed = true,
          .a_pitch = k,
          .b_pitch = k,
          .c_pitch = args.weight.out_features,
          .type = args.x_type,
          .c_type = args.out_type};
}

}  // namespace

bool launch_linear_dense(const LinearLaunch& args, const Workspace& workspace,
                         cudaStream_t stream) {
  const Weight& weight = args.weight;
  const int64_t n = weight.out_features;
  const int64_t k = weight.in_features;
  const bool in_place = weight.layout == Layout::kDense && weight.type == args.x_type;
  // Other combinations round weights to a type that is not theirs.
  if (weight.type != args.x_type || scalar_size(args.x_type) != 2 || k % 8 != 0 || n % 8 != 0)
    return false;
  const auto row_bytes = static_cast<size_t>(k) * 2;
  const auto rows_that_fit =
      static_cast<int64_t>((workspace.scratch_size - kLibraryScratch) / row_bytes) / 256 * 256;
  if (!in_place && rows_that_fit == 0) return false;
  // Pieces of equal size, so that the last is no sliver.
  const int64_t num_pieces = in_place ? 1 : (n + rows_that_fit - 1) / rows_that_fit;
  const int64_t piece = in_place ? n : ((n + num_pieces - 1) / num_pieces + 255) / 256 * 256;
  if (!can_multiply(product_of(args, std::min(piece, n)))) return false;
  auto* dequantized = static_cast<std::byte*>(workspace.scratch) + kLibraryScratch;
  for (int64_t begin = 0; begin < n; begin += piece) {
    const int64_t end = std::min(begin + piece, n);
    const void* values = weight.values;
    if (!in_place) {
      launch_dequantize(weight, begin, end, dequantized, args.x_type, stream);
      values = dequantized;
    }
    auto* out =
        static_cast<std::byte*>(args.out) + static_cast<size_t>(begin) * scalar_size(args.out_type);
    const MatrixProduct product = product_of(args, end - begin);
    NB_CHECK(can_multiply(product), "cuBLASLt takes %lld rows but not the last %lld",
             static_cast<long long>(piece), static_cast<long long>(end - begin));
    multiply(product, values, args.x, out, workspace, stream);
  }
  return true;
}

}  // namespace nibble::cuda
