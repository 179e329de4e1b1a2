// y = x W' on the GPU: the layouts a weight may have after load, and the paths a product may take.
// Used by cuda_ops.cc, by the experts (moe) and by benchmarks/cuda_linear.cc.
//
// Layouts. `kDense`: [out, in] as on disk. `kPlain`: the disk layout of compressed-tensors, for
// shapes and widths the tiled kernels do not take. `kTiled` (4 bits, in % 64 == 0, groups of a
// multiple of 64, of 32, or one group, 16-bit scales): tiles of 16 outputs x 64 inputs, 512 bytes
// each, stored in the order the kernels consume them:
//   packed [out / 16, in / 64, 32 lanes, 4 words]     outputs padded to 16 with zero scales
//   scale  [out / 16, num_groups, 8, 4] 16-bit         g -> scale(g), zero(g), scale(g + 8), zero(g
//   + 8)
// Lane 4 g + t of a tile holds, of rows g and g + 8, inputs 32 j + 8 t + 4 i + {0..3} in word
// 2 j + i: what mma.m16n8k16 wants of that lane as its A operand, the k order permuted so that the
// same lane reads its part of an activation row as vectors of 8. Nibble p of a word is the low half
// of pair p, nibble p + 4 the high half; pairs: (row g, k 0..1), (row g + 8, k 0..1), (row g,
// k 2..3), (row g + 8, k 2..3). "zero" holds magic + 8 + zero_point, so that subtracting it from
// magic + nibble leaves the exact integer; magic is 128 in bf16 and 1024 in f16. `kCompact`:
// bfloat16 in 12 bits, see compact.h.
#pragma once

#include <cuda_runtime.h>

#include "device/cuda/compact.h"
#include "device/cuda/fixed_rows.h"
#include "device/cuda/scalar.h"
#include "device/cuda/workspace.h"

namespace nibble::cuda {

enum class Layout : uint8_t { kDense, kPlain, kTiled, kCompact };

struct Weight {
  Layout layout;
  Scalar type;  // dense: of the weight; quantized: of the scale, to which each value is rounded
  int64_t out_features;
  int64_t in_features;
  const void* values;        // dense elements or packed words
  const void* scale;         // quantized
  const int8_t* zero_point;  // kPlain, may be null
  int num_bits;              // quantized: 4 or 8
  int64_t num_groups;        // quantized, per output
  const CompactRow* rows;    // kCompact; its words are `values`
  const uint32_t* rest;      // kCompact
};

// Which kernel. kAuto picks by shape and type; the others are for tests and benchmarks, and fall
// back to kSimple where they cannot run.
enum class LinearPath : uint8_t {
  kAuto,
  kSimple,  // any type, any layout: a warp per output, f32 arithmetic
  kPre80,   // f16, what GPUs before sm_80 have: few tokens there
  kQuads,   // the same with sm_70's instructions, where the code has them
  kSkinny,  // tensor cores, weights streamed once per 64 tokens: few tokens
  kTiles,   // tensor cores, weights widened once per 128 tokens: tens to hundreds of tokens
  kDense    // dequantized to 16 bits in pieces, then cuBLASLt: many tokens
};

struct LinearLaunch {
  const void* x;  // [num_tokens, in]
  Scalar x_type;
  Weight weight;
  void* out;  // [num_tokens, out]
  Scalar out_type;
  int64_t num_tokens;
  LinearPath path = LinearPath::kAuto;
  FixedRows fixed = {};  // x once more, if the operation before left it in this form
};

void launch_linear(const LinearLaunch& args, const Workspace& workspace, cudaStream_t stream);

// Several products of one x [num_tokens, in]; one launch where the paths allow, results as of one
// after the other.
constexpr size_t kMostLinearParts = 4;
void launch_linear_group(const LinearLaunch* parts, int count, const Workspace& workspace,
                         cudaStream_t stream);

// Several rows, each times the weight of an expert that the device has chosen: row p /
// pairs_per_row of x times the weight of experts[p], for each pair p. Experts' weights lie at equal
// distances.
struct ExpertWeights {
  Weight first;          // of expert 0
  int64_t values_apart;  // bytes from one expert's values to the next one's
  int64_t scales_apart;
  void* out;  // [num_pairs, out] of x_type
};
struct ExpertsLaunch {
  const void* x;  // [num_pairs / pairs_per_row, in]
  Scalar x_type;
  const int32_t* experts;  // device, [num_pairs]
  int num_pairs;
  int pairs_per_row;
  ExpertWeights parts[2];  // several products of the same rows
  int num_parts;
};
// False where the kernels of few tokens do not serve the weights; `dry` only asks.
bool launch_linear_experts(const ExpertsLaunch& args, const Workspace& workspace,
                           cudaStream_t stream, bool dry = false);

// The same for many rows, which share their expert's weights: the pairs of each expert together.
// `memory`, of `bytes`, is the caller's, from launch_expert_plan() to the last product.
struct ExpertPlan {
  int num_pairs;
  int num_experts;
  int most_tiles;  // of pairs that a block takes at once, however they fall on the experts
  size_t bytes;
  void* memory = nullptr;
};
ExpertPlan expert_plan_of(int num_pairs, int num_experts);
// `experts`: device, [num_pairs].
void launch_expert_plan(const int32_t* experts, const ExpertPlan& plan, cudaStream_t stream);
// Whether launch_linear_grouped() serves what launch_linear_experts() does.
bool can_group_experts(const ExpertsLaunch& args, size_t num_experts);
// One product, or two: silu(first) * second, as parts[0].out. args.experts and args.num_pairs are
// not read.
void launch_linear_grouped(const ExpertsLaunch& args, const ExpertPlan& plan,
                           const Workspace& workspace, cudaStream_t stream);

// The paths, each in its file. They return false where they cannot serve the launch.
constexpr int64_t kSkinnyTokens = 64;  // of one launch; more tokens take several
bool launch_linear_skinny(const LinearLaunch& args, const Workspace& workspace,
                          cudaStream_t stream);
// All of `parts` in one launch of the few-token kernel.
bool launch_linear_skinny_group(const LinearLaunch* parts, int count, const Workspace& workspace,
                                cudaStream_t stream);
// All of `parts`, which share x, in one launch; one part or several.
bool launch_linear_tiles(const LinearLaunch* parts, int count, const Workspace& workspace,
                         cudaStream_t stream);
bool launch_linear_dense(const LinearLaunch& args, const Workspace& workspace, cudaStream_t stream);
// Up to 64 tokens times packed weights, 8 times 16-bit ones; any GPU.
bool launch_linear_pre80(const LinearLaunch& args, const Workspace& workspace, cudaStream_t stream);
void launch_linear_simple(const LinearLaunch& args, cudaStream_t stream);

// Rows [begin, end) of a weight as elements of `to_type` [end - begin, in].
void launch_dequantize(const Weight& weight, int64_t begin, int64_t end, void* to, Scalar to_type,
                       cudaStream_t stream);

// The compute capability to choose kernels by (90 for sm_90), 0 if this binary holds no code for
// the current GPU: that of the code which runs here, which on a newer GPU may be older code.
int code_capability();

// A kCompact weight as its own launches see it.
CompactWeight compact_of(const Weight& weight);

// Whether the tiled layout serves a weight of this shape.
bool tiles_fit(int64_t in_features, int num_bits, int64_t num_groups, Scalar scale_type);
// Disk layout to tiled layout. Rows [begin, end) of the weight, begin % 16 == 0; `packed`, `scale`
// and `zero_point` are those rows on the device; `to` is the whole prepared weight.
struct RepackLaunch {
  const uint32_t* packed;    // [rows, in / 8]
  const void* scale;         // [rows, num_groups]
  const int8_t* zero_point;  // [rows, num_groups] or null
  int64_t begin;
  int64_t end;
  Weight to;
};
void launch_repack(const RepackLaunch& args, cudaStream_t stream);

}  // namespace nibble::cuda
