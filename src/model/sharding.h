// One rank's share of a model under tensor parallelism: a ModelSpec with fewer heads, narrower
// feed-forward layers and a slice of the vocabulary. Everything that walks a ModelSpec (weights,
// caches, the forward pass) then counts one rank.
#pragma once

#include "base/result.h"
#include "model/config.h"

namespace nibble {

// By head: query, key/value (replicated when there are fewer than ranks) and delta-net heads. By
// columns: gate and up; by rows: down and output projections. By vocabulary rows, padded to a
// multiple of 64 and of `world_size`: embedding and head. Replicated: norms, routers.
// kInvalidArgument names the count that does not divide.
Result<ModelSpec> shard(const ModelSpec& spec, int world_size);

}  // namespace nibble
