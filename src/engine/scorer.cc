// A batch of one sequence whose blocks are simply 0, 1, 2...
#include "engine/scorer.h"

#include <algorithm>
#include <numeric>

#include "base/format.h"

namespace nibble {

Result<Scorer> Scorer::open(const ModelDir& dir, const EngineOptions& options, int32_t max_tokens) {
  Scorer scorer;
  NB_TRY(scorer.device_, open_device(options));
  Device& device = *scorer.device_;
  NB_TRY(const DType dtype, parse_activation_dtype(options.dtype, device.natural_dtype()));
  NB_TRY(Model model, Model::load(dir, device, dtype));
  scorer.model_ = std::make_unique<Model>(std::move(model));
  CacheShape& shape = scorer.shape_;
  shape.num_blocks = (max_tokens + shape.block_size - 1) / shape.block_size;
  shape.num_state_slots = 1;
  shape.kv_dtype = dtype;
  const size_t scratch_bytes = scorer.model_->activation_bytes(kChunk, kChunk);
  const Shape logits_shape{kChunk, scorer.spec().vocab_size};
  const auto place_arrays = [&](Arena& arena) {
    return place_batch(kChunk, kChunk, max_tokens, shape.block_size, arena);
  };
  const auto place = [&](Arena& arena) {
    scorer.device_batch_ = place_arrays(arena);
    scorer.caches_ = place_caches(scorer.spec(), shape, dtype, arena);
    scorer.logits_ = arena.tensor(DType::kF32, logits_shape, "logits");
    void* scratch = arena.allocate(scratch_bytes, "activations");
    if (!arena.counting()) scorer.scratch_ = Arena(scratch, scratch_bytes);
  };
  const auto place_on_host = [&](Arena& arena) {
    scorer.batch_ = place_arrays(arena);
    scorer.host_logits_ = arena.tensor(DType::kF32, logits_shape, "logits");
  };
  Arena counter;
  place(counter);
  NB_TRY(scorer.memory_, device.allocate(counter.used(), "the scorer"));
  Arena arena(scorer.memory_.data(), scorer.memory_.size());
  place(arena);
  Arena host_counter;
  place_on_host(host_counter);
  NB_TRY(scorer.host_memory_, device.allocate_host(host_counter.used(), "the scorer"));
  Arena host_arena(scorer.host_memory_.data(), scorer.host_memory_.size());
  place_on_host(host_arena);
  std::iota(scorer.batch_.block_table, scorer.batch_.block_table + shape.num_blocks, 0);
  std::iota(scorer.batch_.logit_rows, scorer.batch_.logit_rows + kChunk, 0);
  return scorer;
}

Status Scorer::score(std::span<const int32_t> ids, const Sink& sink) {
  const auto limit = shape_.num_blocks * shape_.block_size;
  if (static_cast<int64_t>(ids.size()) > limit)
    return make_error(ErrorCode::kInvalidArgument, "{} tokens to score, the limit here is {}",
                      ids.size(), limit);
  for (int32_t first = 0; first < static_cast<int32_t>(ids.size()); first += kChunk) {
    const int32_t count = std::min(kChunk, static_cast<int32_t>(ids.size()) - first);
    std::copy_n(ids.begin() + first, count, batch_.token_ids);
    for (int32_t axis = 0; axis < 3; ++axis)
      std::iota(batch_.positions + axis * count, batch_.positions + (axis + 1) * count, first);
    batch_.query_start[0] = 0;
    batch_.query_start[1] = count;
    batch_.context_len[0] = first;
    batch_.state_slot[0] = 0;
    batch_.state_is_fresh[0] = first == 0;
    // token_ids lie first and the block table last.
    const auto size =
        static_cast<size_t>(reinterpret_cast<std::byte*>(batch_.block_table + shape_.num_blocks) -
                            reinterpret_cast<std::byte*>(batch_.token_ids));
    device_->upload(device_batch_.token_ids, batch_.token_ids, size);
    Step step;
    step.ops = &device_->ops();
    step.batch = {.num_tokens = count,
                  .num_seqs = 1,
                  .query_start = device_batch_.query_start,
                  .context_len = device_batch_.context_len,
                  .block_table = device_batch_.block_table,
                  .max_blocks = shape_.num_blocks,
                  .block_size = shape_.block_size,
                  .state_slot = device_batch_.state_slot,
                  .state_is_fresh = device_batch_.state_is_fresh};
    step.token_ids = device_batch_.token_ids;
    step.positions = device_batch_.positions;
    step.logit_rows = device_batch_.logit_rows;
    step.num_logit_rows = count;
    step.caches = &caches_;
    step.scratch = &scratch_;
    const Tensor on_device = logits_.rows(0, count);
    model_->forward(step, on_device);
    const Tensor logits = host_logits_.rows(0, count);
    device_->download(logits.data, on_device.data, logits.num_bytes());
    device_->synchronize();
    sink(first, logits);
  }
  return {};
}

}  // namespace nibble
