// Picks the path of a product.
#include "device/cuda/linear.h"

namespace nibble::cuda {
namespace {

// Above this many tokens, writing the weight out in 16 bits once costs less than streaming the
// packed weight once per 64 tokens. Measured: benchmarks/cuda_linear.cc.
constexpr int64_t kSkinnyTokens = 256;

}  // namespace

void launch_linear(const LinearLaunch& args, const Workspace& workspace, cudaStream_t stream) {
  if (args.num_tokens == 0 || args.weight.out_features == 0) return;
  switch (args.path) {
    case LinearPath::kAuto:
      if (args.num_tokens <= kSkinnyTokens && launch_linear_skinny(args, workspace, stream)) return;
      if (launch_linear_dense(args, workspace, stream)) return;
      if (launch_linear_skinny(args, workspace, stream)) return;
      break;
    case LinearPath::kSkinny:
      if (launch_linear_skinny(args, workspace, stream)) return;
      break;
    case LinearPath::kDense:
      if (launch_linear_dense(args, workspace, stream)) return;
      break;
    case LinearPath::kSimple: break;
  }
  launch_linear_simple(args, stream);
}

}  // namespace nibble::cuda
