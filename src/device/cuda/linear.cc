// Picks the path of a product.
#include "device/cuda/linear.h"

#include <algorithm>

namespace nibble::cuda {
namespace {

// From how many tokens on the tile kernel beats those that stream the weight, and up to how many it
// beats multiplying in 16 bits, for which packed weights are first written out. 16-bit weights have
// nothing to widen. Measured: benchmarks/cuda_linear.cc paths.
constexpr int64_t kFewestTiledTokens = 17;
constexpr int64_t kMostTiledPackedTokens = 512;
constexpr int64_t kMostTiledCompactTokens = 256;
// The same of the streaming kernels, where there is no tile kernel.
constexpr int64_t kStreamPackedTokens = 128;
constexpr int64_t kStreamCompactTokens = 64;
constexpr int64_t kStreamDenseTokens = 16;
// Outputs up to which tokens of several streaming launches take the simple kernel, if
// launch_linear_dense() does not serve them, which wants multiples of 8: the gate of a shared
// expert has one.
constexpr int64_t kFewOutputs = 64;

int64_t most_streamed_tokens(Layout layout) {
  switch (layout) {
    case Layout::kDense: return kStreamDenseTokens;
    case Layout::kCompact: return kStreamCompactTokens;
    default: return kStreamPackedTokens;
  }
}

bool tiled(Layout layout, int64_t num_tokens) {
  const int64_t most = layout == Layout::kTiled     ? kMostTiledPackedTokens
                       : layout == Layout::kCompact ? kMostTiledCompactTokens
                                                    : 0;
  return num_tokens >= kFewestTiledTokens && num_tokens <= most;
}

}  // namespace

void launch_linear(const LinearLaunch& args, const Workspace& workspace, cudaStream_t stream) {
  if (args.num_tokens == 0 || args.weight.out_features == 0) return;
  switch (args.path) {
    case LinearPath::kAuto:
      if (workspace.compute_capability < 80 && launch_linear_pre80(args, workspace, stream)) return;
      if (tiled(args.weight.layout, args.num_tokens) &&
          launch_linear_tiles(&args, 1, workspace, stream))
        return;
      if (args.num_tokens <= most_streamed_tokens(args.weight.layout) &&
          launch_linear_skinny(args, workspace, stream))
        return;
      if (launch_linear_dense(args, workspace, stream)) return;
      if (args.num_tokens > kSkinnyTokens && args.weight.out_features <= kFewOutputs) break;
      if (launch_linear_skinny(args, workspace, stream)) return;
      break;
    case LinearPath::kSkinny:
      if (launch_linear_skinny(args, workspace, stream)) return;
      break;
    case LinearPath::kPre80:
    case LinearPath::kQuads:
      if (launch_linear_pre80(args, workspace, stream)) return;
      break;
    case LinearPath::kTiles:
      if (launch_linear_tiles(&args, 1, workspace, stream)) return;
      break;
    case LinearPath::kDense:
      if (launch_linear_dense(args, workspace, stream)) return;
      break;
    case LinearPath::kSimple: break;
  }
  launch_linear_simple(args, stream);
}

void launch_linear_group(const LinearLaunch* parts, int count, const Workspace& workspace,
                         cudaStream_t stream) {
  const bool together =
      count > 1 && std::all_of(parts, parts + count, [](const LinearLaunch& part) {
        return part.path == LinearPath::kAuto;
      });
  if (together && launch_linear_skinny_group(parts, count, workspace, stream)) return;
  if (together && tiled(parts[0].weight.layout, parts[0].num_tokens) &&
      launch_linear_tiles(parts, count, workspace, stream))
    return;
  for (int i = 0; i < count; ++i) launch_linear(parts[i], workspace, stream);
}

}  // namespace nibble::cuda
