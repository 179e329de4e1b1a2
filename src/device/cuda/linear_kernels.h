// What the kernels of a product on tensor cores are launched with: a weight as they see it, and the
// launcher of each file. linear_describe.cc makes and chooses. Layouts: linear.h.
#pragma once

#include <climits>

#include "device/cuda/fixed_rows.h"
#include "device/cuda/launch.h"
#include "device/cuda/linear.h"

namespace nibble::cuda {

constexpr int kUnit = 64;          // inputs of a row tile that lie together
constexpr int kRingTokens = 8;     // most that launch_linear_vector takes
constexpr int kDirectTokens = 16;  // ... and launch_linear_direct
constexpr int kPre80Tokens = 32;   // ... and launch_linear_pre80

enum class Kind { kW4, kW4Group32, kDense, kCompact };

struct SkinnyArgs {
  const void* x;
  const void* values;
  const void* scale;
  const CompactRow* rows;
  const uint32_t* rest;
  void* out;
  bool out_is_float;
  int num_tokens;
  int64_t out_features;
  int64_t in_features;
  int row_tiles;              // ceil(out / 16)
  int units_per_row;          // in / 64
  int units_per_group;        // kW4
  int group_shift;            // its logarithm; negative if it is no power of two
  uint32_t group_reciprocal;  // floor(2^31 / units_per_group)
  int64_t num_groups;
  int units;            // of the whole weight
  int units_per_block;  // the piece of a thread block
  float* partials;
  uint32_t* counters;
};

// Several products of one x in one grid.
struct SkinnyGroup {
  SkinnyArgs parts[kMostLinearParts];
  int end[kMostLinearParts];  // blocks of this part and those before it; INT_MAX from the last

  // `row_tiles` to a block, all of them `times` times. Returns the blocks.
  int fill(const SkinnyArgs* from, int count, int row_tiles, int times = 1) {
    int blocks = 0;
    for (int i = 0; i < static_cast<int>(kMostLinearParts); ++i) {
      if (i < count) {
        parts[i] = from[i];
        blocks += static_cast<int>(blocks_of(from[i].row_tiles, row_tiles)) * times;
      }
      end[i] = i + 1 < count ? blocks : INT_MAX;
    }
    return blocks;
  }
};

// Where a product's weights are those of experts, see ExpertsLaunch: num_tokens is 1, and each pair
// has row tiles of its own.
struct ExpertArgs {
  const int32_t* experts;
  int num_pairs;
  int pairs_per_row;
  int64_t values_apart[2];  // by part
  int64_t scales_apart[2];
};

struct NoExperts {};  // in place of them

// What an ExpertPlan's memory holds: the pairs, expert after expert, and tiles of at most
// kExpertTileRows of one expert's each.
constexpr int kExpertTileRows = 64;
struct ExpertTile {
  int32_t expert;  // -1: none
  int32_t first;   // in the list
  int32_t count;
};
struct ExpertLists {
  int32_t* list;  // [num_pairs]
  ExpertTile* tiles;
};
inline ExpertLists lists_of(const ExpertPlan& plan) {
  auto* list = static_cast<int32_t*>(plan.memory);
  return {list, reinterpret_cast<ExpertTile*>(list + plan.num_pairs)};
}

// Products of the pairs of each expert together.
struct GroupedArgs {
  SkinnyArgs parts[2];  // of expert 0
  ExpertArgs experts;   // whose pairs are in the lists
  ExpertLists lists;
};

// linear_skinny.cu: up to kSkinnyTokens tokens of any kind.
void launch_linear_streamed(Scalar type, Kind kind, const SkinnyArgs& args,
                            const Workspace& workspace, cudaStream_t stream);
// linear_direct.cu: up to kDirectTokens tokens; several products of one x in one launch, `count` at
// most kMostLinearParts. False if the groups are of different sizes.
bool launch_linear_direct(Scalar type, Kind kind, const SkinnyArgs* parts, int count,
                          const Workspace& workspace, cudaStream_t stream);
// linear_vector.cu: up to kRingTokens tokens; several products of one x in one launch, `count` at
// most kMostLinearParts. False if the groups are of an odd size or, in several, of different ones.
// With `experts`, of at most two products.
bool launch_linear_vector(Scalar type, Kind kind, const SkinnyArgs* parts, int count,
                          const Workspace& workspace, cudaStream_t stream,
                          const ExpertArgs* experts = nullptr);

// linear_pre80.cu, f16 for GPUs before sm_80: up to kPre80Tokens tokens of any kind but kCompact;
// several products of one x in one launch. With `experts`, of at most two products. `path` may ask
// for kQuads.
void launch_linear_pre80(Kind kind, const SkinnyArgs* parts, int count, const Workspace& workspace,
                         cudaStream_t stream, LinearPath path, const ExpertArgs* experts = nullptr);
// The same as launch_grouped().
void launch_grouped_pre80(Kind kind, const SkinnyArgs* parts, int count, const ExpertArgs& experts,
                          const ExpertPlan& plan, const Workspace& workspace, cudaStream_t stream);

// linear_tiles.cu: any number of tokens times packed weights or ones in 12 bits; several products
// of one x in one launch. False without wgmma, or if the weights or the workspace do not allow it.
bool launch_linear_tiles(Scalar type, Kind kind, const SkinnyArgs* parts, int count,
                         const Workspace& workspace, cudaStream_t stream);

// linear_grouped.cu: launch_linear_grouped() of described weights.
void launch_grouped(Scalar type, Kind kind, const SkinnyArgs* parts, int count,
                    const ExpertArgs& experts, const ExpertPlan& plan, cudaStream_t stream);

// linear_fixed.cu: up to kFixedTokens tokens times packed weights in groups of 128 or more, up to
// kFixedPartTokens times ones in groups of 32 or 64; several products of one x in one launch.
// `ready`: x in that form, or without digits (or parts, where they are needed), which are then
// made. False if the weights or the workspace do not allow it.
bool launch_linear_fixed(Scalar type, Kind kind, const SkinnyArgs* parts, int count,
                         const FixedRows& ready, const Workspace& workspace, cudaStream_t stream);

}  // namespace nibble::cuda
