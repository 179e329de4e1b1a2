// Dividing the counts of a ModelSpec.
#include "model/sharding.h"

#include <numeric>

#include "base/format.h"

namespace nibble {
namespace {

template <class T>
Status divide(T* count, int world_size, const char* what) {
  if (*count % world_size != 0)
    return make_error(ErrorCode::kInvalidArgument,
                      "--tensor-parallel-size {}: {} {} are not divisible by it", world_size,
                      *count, what);
  *count /= static_cast<T>(world_size);
  return {};
}

}  // namespace

Result<ModelSpec> shard(const ModelSpec& whole, int world_size) {
  if (world_size < 1)
    return make_error(ErrorCode::kInvalidArgument, "--tensor-parallel-size {}: must be 1 or more",
                      world_size);
  ModelSpec spec = whole;
  if (world_size == 1) return spec;
  AttentionSpec& attention = spec.attention;
  if (attention.num_heads % world_size != 0)
    return make_error(ErrorCode::kInvalidArgument,
                      "Total number of attention heads ({}) must be divisible by tensor parallel "
                      "size ({}).",
                      attention.num_heads, world_size);
  attention.num_heads /= world_size;
  if (attention.num_kv_heads >= world_size) {
    NB_TRY_STATUS(divide(&attention.num_kv_heads, world_size, "key/value heads"));
  } else if (world_size % attention.num_kv_heads == 0) {
    attention.num_kv_heads = 1;  // replicated
  } else {
    return make_error(ErrorCode::kInvalidArgument,
                      "--tensor-parallel-size {}: not a multiple of the {} key/value heads",
                      world_size, attention.num_kv_heads);
  }
  if (spec.hybrid()) {
    NB_TRY_STATUS(divide(&spec.delta_net.num_k_heads, world_size, "linear-attention key heads"));
    NB_TRY_STATUS(divide(&spec.delta_net.num_v_heads, world_size, "linear-attention value heads"));
  }
  if (spec.intermediate_size > 0)
    NB_TRY_STATUS(divide(&spec.intermediate_size, world_size, "MLP columns"));
  if (spec.moe.num_experts > 0) {
    NB_TRY_STATUS(divide(&spec.moe.moe_intermediate_size, world_size, "expert columns"));
    if (spec.moe.shared_expert_intermediate_size > 0)
      NB_TRY_STATUS(
          divide(&spec.moe.shared_expert_intermediate_size, world_size, "shared-expert columns"));
  }
  const int64_t multiple = std::lcm<int64_t>(64, world_size);
  spec.vocab_size = (whole.vocab_size + multiple - 1) / multiple * multiple / world_size;
  return spec;
}

}  // namespace nibble
