// Describes weights to the kernels that read them through the tensor cores, and picks the one for
// few tokens.
#include <algorithm>

#include "device/cuda/cuda_check.h"
#include "device/cuda/launch.h"
#include "device/cuda/linear_kernels.h"

namespace nibble::cuda {
namespace {

// -1 if `x` is no power of two; 0 for groups of 32, which do not use it.
int logarithm(int x) {
  int result = 0;
  while ((1 << result) < x) ++result;
  return x == 0 ? 0 : (1 << result) == x ? result : -1;
}

// The launch without its tokens; false if these kernels do not serve it.
bool describe(const LinearLaunch& args, SkinnyArgs* launch, Kind* kind) {
  const Weight& weight = args.weight;
  if (weight.layout == Layout::kPlain || weight.type != args.x_type ||
      scalar_size(args.x_type) != 2 || weight.in_features % kUnit != 0 || !aligned(args.x) ||
      !aligned(weight.values))
    return false;
  *launch = SkinnyArgs{};
  launch->values = weight.values;
  launch->scale = weight.scale;
  launch->rows = weight.rows;
  launch->rest = weight.rest;
  launch->out_is_float = args.out_type == Scalar::kF32;
  launch->out_features = weight.out_features;
  launch->in_features = weight.in_features;
  launch->row_tiles = static_cast<int>((weight.out_features + 15) / 16);
  launch->units_per_row = static_cast<int>(weight.in_features / kUnit);
  launch->num_groups = weight.num_groups;
  *kind = weight.layout == Layout::kCompact ? Kind::kCompact : Kind::kDense;
  if (weight.layout == Layout::kTiled) {
    const int64_t group_size = weight.in_features / weight.num_groups;
    *kind = group_size == 32 ? Kind::kW4Group32 : Kind::kW4;
    launch->units_per_group = static_cast<int>(group_size / kUnit);
    if (launch->units_per_group > 0)
      launch->group_reciprocal = (1u << 31) / static_cast<uint32_t>(launch->units_per_group);
    launch->group_shift = weight.num_groups == 1 ? 31 : logarithm(launch->units_per_group);
  }
  return true;
}

// Several products of one x; false if these kernels do not serve them alike.
bool describe_parts(const LinearLaunch* parts, int count, SkinnyArgs* launches, Kind* kind) {
  for (int i = 0; i < count; ++i) {
    Kind own;
    if (parts[i].num_tokens == 0 || !describe(parts[i], &launches[i], &own) ||
        (i > 0 && own != *kind))
      return false;
    *kind = own;
    launches[i].num_tokens = static_cast<int>(parts[i].num_tokens);
    launches[i].x = parts[i].x;
    launches[i].out = parts[i].out;
  }
  return true;
}

// Up to kDirectTokens tokens. Packed weights in integers where they can be; of the others, few need
// deep rings, which fill while short kernels pass; more need their activations from the first-level
// cache (`nibble bench decode`, docs/performance.md).
bool launch_few(Scalar type, Kind kind, const SkinnyArgs* parts, int count, const FixedRows& fixed,
                bool may_fix, const Workspace& workspace, cudaStream_t stream) {
  if ((kind == Kind::kW4 || kind == Kind::kW4Group32) && may_fix &&
      parts[0].num_tokens <= kFixedTokens &&
      launch_linear_fixed(type, kind, parts, count, fixed, workspace, stream))
    return true;
  if (parts[0].num_tokens > kRingTokens)
    return launch_linear_direct(type, kind, parts, count, workspace, stream);
  return launch_linear_vector(type, kind, parts, count, workspace, stream);
}

// Calls body(launch) for at most `most` of the tokens at a time.
template <class Body>
void each_piece(const LinearLaunch& args, SkinnyArgs launch, int64_t most, Body body) {
  const Weight& weight = args.weight;
  for (int64_t begin = 0; begin < args.num_tokens; begin += most) {
    launch.num_tokens = static_cast<int>(std::min(args.num_tokens - begin, most));
    launch.x = static_cast<const char*>(args.x) + begin * weight.in_features * 2;
    launch.out = static_cast<char*>(args.out) +
                 begin * weight.out_features * static_cast<int64_t>(scalar_size(args.out_type));
    body(launch);
  }
}

// Up to how many tokens launch_linear_pre80() beats writing packed weights out in 16 bits, and
// cuBLASLt (benchmarks/cuda_linear.cc pre80). Of what it does not serve none.
int64_t most_pre80_tokens(Kind kind, Scalar type) {
  if (type != Scalar::kF16 || kind == Kind::kCompact) return 0;
  return kind == Kind::kDense ? 8 : 64;
}

bool before_sm80(const Workspace& workspace) {
  return workspace.compute_capability < 80;
}

}  // namespace

bool launch_linear_skinny(const LinearLaunch& args, const Workspace& workspace,
                          cudaStream_t stream) {
  SkinnyArgs described;
  Kind kind;
  if (before_sm80(workspace) || !describe(args, &described, &kind)) return false;
  // The last few of many tokens are computed as those before them.
  const bool may_fix = args.num_tokens <= kFixedTokens;
  each_piece(args, described, kSkinnyTokens, [&](const SkinnyArgs& launch) {
    if (!launch_few(args.x_type, kind, &launch, 1, args.fixed, may_fix, workspace, stream))
      launch_linear_streamed(args.x_type, kind, launch, workspace, stream);
  });
  return true;
}

bool launch_linear_pre80(const LinearLaunch& args, const Workspace& workspace,
                         cudaStream_t stream) {
  SkinnyArgs described;
  Kind kind;
  if (!describe(args, &described, &kind) || args.num_tokens > most_pre80_tokens(kind, args.x_type))
    return false;
  each_piece(args, described, kPre80Tokens, [&](const SkinnyArgs& launch) {
    launch_linear_pre80(kind, &launch, 1, workspace, stream, args.path);
  });
  return true;
}

bool launch_linear_tiles(const LinearLaunch* parts, int count, const Workspace& workspace,
                         cudaStream_t stream) {
  SkinnyArgs launches[kMostLinearParts] = {};
  Kind kind = Kind::kDense;
  return describe_parts(parts, count, launches, &kind) &&
         launch_linear_tiles(parts[0].x_type, kind, launches, count, workspace, stream);
}

bool launch_linear_skinny_group(const LinearLaunch* parts, int count, const Workspace& workspace,
                                cudaStream_t stream) {
  const bool pre80 = before_sm80(workspace);
  const int64_t num_tokens = parts[0].num_tokens;
  SkinnyArgs launches[kMostLinearParts] = {};
  Kind kind = Kind::kDense;
  if (num_tokens > (pre80 ? kPre80Tokens : kDirectTokens) ||
      !describe_parts(parts, count, launches, &kind))
    return false;
  if (!pre80)
    return launch_few(parts[0].x_type, kind, launches, count, parts[0].fixed, true, workspace,
                      stream);
  if (num_tokens > most_pre80_tokens(kind, parts[0].x_type)) return false;
  launch_linear_pre80(kind, launches, count, workspace, stream, LinearPath::kAuto);
  return true;
}

namespace {

// Weights that lie at equal distances; false if the kernels of few tokens do not serve them.
bool describe_experts(const ExpertsLaunch& args, const Workspace& workspace, SkinnyArgs* launches,
                      ExpertArgs* experts, Kind* kind) {
  *experts = {args.experts, args.num_pairs, args.pairs_per_row, {}, {}};
  for (int i = 0; i < args.num_parts; ++i) {
    const ExpertWeights& part = args.parts[i];
    LinearLaunch one{};
    one.x = args.x;
    one.x_type = args.x_type;
    one.weight = part.first;
    one.out_type = args.x_type;
    Kind own;
    if (!describe(one, &launches[i], &own) || (i > 0 && own != *kind) || own == Kind::kCompact ||
        part.values_apart % 16 != 0 || part.scales_apart % 8 != 0)
      return false;
    if (before_sm80(workspace) ? most_pre80_tokens(own, args.x_type) == 0
                               : launches[i].group_shift < 0)
      return false;
    *kind = own;
    launches[i].x = args.x;
    launches[i].out = part.out;
    launches[i].num_tokens = 1;
    experts->values_apart[i] = part.values_apart;
    experts->scales_apart[i] = part.scales_apart;
  }
  return true;
}

}  // namespace

bool launch_linear_experts(const ExpertsLaunch& args, const Workspace& workspace,
                           cudaStream_t stream, bool dry) {
  SkinnyArgs launches[2];
  ExpertArgs experts;
  Kind kind;
  if (!describe_experts(args, workspace, launches, &experts, &kind)) return false;
  if (dry) return true;
  if (!before_sm80(workspace))
    return launch_linear_vector(args.x_type, kind, launches, args.num_parts, workspace, stream,
                                &experts);
  launch_linear_pre80(kind, launches, args.num_parts, workspace, stream, LinearPath::kAuto,
                      &experts);
  return true;
}

void launch_linear_grouped(const ExpertsLaunch& args, const ExpertPlan& plan,
                           const Workspace& workspace, cudaStream_t stream) {
  SkinnyArgs launches[2];
  ExpertArgs experts;
  Kind kind;
  if (!describe_experts(args, workspace, launches, &experts, &kind))
    fail(cudaErrorInvalidValue, "experts that cannot be grouped", __FILE__, __LINE__);
  if (before_sm80(workspace))
    return launch_grouped_pre80(kind, launches, args.num_parts, experts, plan, workspace, stream);
  launch_grouped(args.x_type, kind, launches, args.num_parts, experts, plan, stream);
}

}  // namespace nibble::cuda
