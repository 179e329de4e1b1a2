// A batch of one sequence whose blocks are simply 0, 1, 2...
#include "engine/scorer.h"

#include <algorithm>
#include <numeric>

#include "base/format.h"

namespace nibble {

Result<Scorer> Scorer::open(const ModelDir& dir, const EngineOptions& options, int32_t max_tokens) {
  Scorer scorer;
  NB_TRY(const DType dtype, parse_activation_dtype(options.dtype));
  NB_TRY(scorer.device_, open_device(options.backend, options.num_threads));
  NB_TRY(Model model, Model::load(dir, *scorer.device_, dtype));
  scorer.model_ = std::make_unique<Model>(std::move(model));
  scorer.shape_.num_blocks = (max_tokens + scorer.shape_.block_size - 1) / scorer.shape_.block_size;
  scorer.shape_.num_state_slots = 1;
  scorer.shape_.kv_dtype = dtype;
  const size_t scratch_bytes = scorer.model_->activation_bytes(kChunk, kChunk);
  const auto place = [&](Arena& arena) {
    scorer.caches_ = place_caches(scorer.spec(), scorer.shape_, dtype, arena);
    scorer.logits_ = arena.tensor(DType::kF32, {kChunk, scorer.spec().vocab_size}, "logits");
    void* scratch = arena.allocate(scratch_bytes, "activations");
    if (!arena.counting()) scorer.scratch_ = Arena(scratch, scratch_bytes);
  };
  Arena counter;
  place(counter);
  NB_TRY(scorer.memory_, scorer.device_->allocate(counter.used(), "the scorer"));
  Arena arena(scorer.memory_.data(), scorer.memory_.size());
  place(arena);
  scorer.block_table_.resize(static_cast<size_t>(scorer.shape_.num_blocks));
  std::iota(scorer.block_table_.begin(), scorer.block_table_.end(), 0);
  return scorer;
}

Status Scorer::score(std::span<const int32_t> ids, const Sink& sink) {
  const auto limit = shape_.num_blocks * shape_.block_size;
  if (static_cast<int64_t>(ids.size()) > limit)
    return make_error(ErrorCode::kInvalidArgument, "{} tokens to score, the limit here is {}",
                      ids.size(), limit);
  std::vector<int32_t> positions(3 * kChunk);
  std::vector<int32_t> rows(kChunk);
  std::iota(rows.begin(), rows.end(), 0);
  const int32_t state_slot = 0;
  for (int32_t first = 0; first < static_cast<int32_t>(ids.size()); first += kChunk) {
    const int32_t count = std::min(kChunk, static_cast<int32_t>(ids.size()) - first);
    for (int32_t axis = 0; axis < 3; ++axis)
      std::iota(positions.begin() + axis * count, positions.begin() + (axis + 1) * count, first);
    const int32_t query_start[2] = {0, count};
    const uint8_t fresh = first == 0;
    Step step;
    step.ops = &device_->ops();
    step.batch = {.num_tokens = count,
                  .num_seqs = 1,
                  .query_start = query_start,
                  .context_len = &first,
                  .block_table = block_table_.data(),
                  .max_blocks = shape_.num_blocks,
                  .block_size = shape_.block_size,
                  .state_slot = &state_slot,
                  .state_is_fresh = &fresh};
    step.token_ids = ids.data() + first;
    step.positions = positions.data();
    step.logit_rows = rows.data();
    step.num_logit_rows = count;
    step.caches = &caches_;
    step.scratch = &scratch_;
    const Tensor logits = logits_.rows(0, count);
    model_->forward(step, logits);
    sink(first, logits);
  }
  return {};
}

}  // namespace nibble
