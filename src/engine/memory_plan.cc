// Counting, and choosing the context length that fits.
#include "engine/memory_plan.h"

#include <algorithm>
#include <string>

#include "base/format.h"

namespace nibble {
namespace {

size_t cache_bytes(const ModelSpec& spec, const CacheShape& shape, DType activation) {
  Arena counter;
  place_caches(spec, shape, activation, counter);
  return counter.used();
}

int32_t blocks_for(int64_t num_tokens, int32_t block_size) {
  return static_cast<int32_t>((num_tokens + block_size - 1) / block_size);
}

}  // namespace

Result<MemoryPlan> plan_memory(const Model& model, const EngineOptions& options,
                               size_t available_bytes) {
  const ModelSpec& spec = model.spec();
  MemoryPlan plan;
  plan.activation_dtype = model.activation_dtype();
  NB_TRY(const DType kv, parse_kv_cache_dtype(options.kv_cache_dtype, plan.activation_dtype));
  plan.max_num_seqs = options.max_num_seqs;
  plan.max_num_batched_tokens = std::max(options.max_num_batched_tokens, options.max_num_seqs);
  plan.caches.block_size = options.block_size;
  plan.caches.kv_dtype = kv;
  plan.caches.num_state_slots = plan.max_num_seqs;
  if (spec.hybrid() && options.enable_prefix_caching)
    plan.caches.num_snapshot_slots =
        options.num_state_snapshots >= 0 ? options.num_state_snapshots : 2 * plan.max_num_seqs;

  // What does not depend on the context length.
  plan.state_bytes = cache_bytes(spec, plan.caches, plan.activation_dtype);
  plan.activation_bytes = model.activation_bytes(plan.max_num_batched_tokens, plan.max_num_seqs);
  plan.logits_bytes =
      static_cast<size_t>(plan.max_num_seqs) * static_cast<size_t>(spec.vocab_size) * sizeof(float);
  const size_t fixed = plan.state_bytes + plan.activation_bytes + plan.logits_bytes;

  CacheShape one_block = plan.caches;
  one_block.num_blocks = 1;
  const size_t bytes_per_block =
      cache_bytes(spec, one_block, plan.activation_dtype) - plan.state_bytes;
  const size_t kv_budget = options.kv_cache_bytes > 0 ? options.kv_cache_bytes
                           : available_bytes > fixed  ? available_bytes - fixed
                                                      : 0;
  const int64_t max_blocks = static_cast<int64_t>(kv_budget / std::max<size_t>(bytes_per_block, 1));

  int64_t wanted = options.max_model_len > 0 ? options.max_model_len : spec.max_position_embeddings;
  if (options.max_model_len > spec.max_position_embeddings)
    return make_error(ErrorCode::kInvalidArgument,
                      "--max-model-len {}: greater than the model's max_position_embeddings {}; "
                      "use at most that",
                      options.max_model_len, spec.max_position_embeddings);
  const int64_t fitting = max_blocks * options.block_size;
  if (options.max_model_len > 0 && wanted > fitting)
    return make_error(
        ErrorCode::kOutOfMemory,
        "--max-model-len {}: one sequence needs {} of KV cache, {} is left after {} for states and "
        "activations; use --max-model-len {}",
        wanted,
        format_bytes(static_cast<double>(bytes_per_block) * blocks_for(wanted, options.block_size)),
        format_bytes(static_cast<double>(kv_budget)), format_bytes(static_cast<double>(fixed)),
        fitting);
  wanted = std::min(wanted, fitting);
  if (wanted < options.block_size)
    return make_error(ErrorCode::kOutOfMemory,
                      "not even one KV block of {} fits: {} available, {} taken by states and "
                      "activations; lower --max-num-seqs or --max-num-batched-tokens",
                      format_bytes(static_cast<double>(bytes_per_block)),
                      format_bytes(static_cast<double>(available_bytes)),
                      format_bytes(static_cast<double>(fixed)));
  plan.max_model_len = static_cast<int32_t>(wanted);

  // Room for a quarter of the sequences at full length, and never less than one.
  const int64_t full = blocks_for(wanted, options.block_size);
  const int64_t generous = full * std::max(1, plan.max_num_seqs / 4);
  plan.caches.num_blocks = static_cast<int32_t>(
      options.kv_cache_bytes > 0 ? max_blocks
                                 : std::clamp(generous, full, std::max(full, max_blocks)));
  plan.kv_bytes = cache_bytes(spec, plan.caches, plan.activation_dtype) - plan.state_bytes;
  const auto seqs = static_cast<size_t>(plan.max_num_seqs);
  plan.batch_bytes = sizeof(int32_t) * (static_cast<size_t>(plan.max_num_batched_tokens) * 4 +
                                        seqs * (static_cast<size_t>(full) + 5));
  return plan;
}

}  // namespace nibble
