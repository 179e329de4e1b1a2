// Made-up sequences through ModelRunner::run(), as the scheduler would hand them over.
#include "engine/rehearsal.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

#include "base/format.h"

namespace nibble {
namespace {

// A sequence of `context` cached and `fresh` new tokens in the pool's last blocks. What the blocks
// hold does not matter: they are zeros or other rehearsed tokens.
std::unique_ptr<Sequence> make_sequence(const MemoryPlan& plan, int32_t context, int32_t fresh,
                                        int32_t slot) {
  auto sequence = std::make_unique<Sequence>();
  const int32_t length = context + fresh;
  sequence->tokens.assign(static_cast<size_t>(length), 0);
  sequence->num_computed = context;
  sequence->state_slot = slot;
  const int32_t num_blocks = (length + plan.caches.block_size - 1) / plan.caches.block_size;
  sequence->blocks.resize(static_cast<size_t>(num_blocks));
  std::iota(sequence->blocks.begin(), sequence->blocks.end(), plan.caches.num_blocks - num_blocks);
  return sequence;
}

bool all_finite(const Tensor& logits) {
  const float* values = logits.as<const float>();
  return std::all_of(values, values + logits.num_elements(),
                     [](float value) { return std::isfinite(value); });
}

Status run(ModelRunner& runner, const std::vector<std::unique_ptr<Sequence>>& sequences,
           const std::vector<int32_t>& counts, bool is_host) {
  std::vector<ScheduledSequence> step;
  for (size_t s = 0; s < sequences.size(); ++s)
    step.push_back({.sequence = sequences[s].get(), .num_tokens = counts[s], .wants_logits = true});
  const Tensor logits = runner.run(step);
  if (is_host && !all_finite(logits))
    return make_error(ErrorCode::kCorrupt,
                      "rehearsal: the logits of token 0 are not finite; a weight file is damaged "
                      "or was quantized badly: run nibble verify");
  return {};
}

}  // namespace

Result<Rehearsal> rehearse(ModelRunner& runner, const Model& model, const MemoryPlan& plan,
                           bool is_host, double max_flops) {
  runner.touch_buffers();
  Rehearsal done;
  const auto affordable = [&](int32_t context, int32_t tokens) {
    if (!is_host) return true;
    const StepCost cost = model.step_cost({&tokens, 1}, {&context, 1}, 1, plan.caches.kv_dtype);
    return static_cast<double>(cost.flops()) <= max_flops;
  };
  const auto largest = [](int32_t most, const auto& holds) {
    int32_t value = most;
    while (value > 1 && !holds(value)) value /= 2;
    return std::max(value, 1);
  };

  // 1. The longest context: one token behind as many cached ones as can be.
  const int32_t most = plan.max_model_len - 1;
  const int32_t context =
      most < 1 ? 0 : largest(most, [&](int32_t value) { return affordable(value, 1); });
  std::vector<std::unique_ptr<Sequence>> sequences;
  sequences.push_back(make_sequence(plan, context, 1, plan.max_num_seqs - 1));
  NB_TRY_STATUS(run(runner, sequences, {1}, is_host));
  done.longest_context = context + 1;

  // 2. The largest batch with the largest chunk: the first sequence takes what one token for each
  // of the others leaves of the budget.
  const int32_t num_seqs =
      largest(plan.max_num_seqs, [&](int32_t value) { return affordable(0, value); });
  const int32_t budget = std::min(plan.max_num_batched_tokens - (num_seqs - 1), plan.max_model_len);
  const int32_t chunk =
      largest(budget, [&](int32_t value) { return affordable(0, value + num_seqs - 1); });
  sequences.clear();
  std::vector<int32_t> counts;
  for (int32_t s = 0; s < num_seqs; ++s) {
    counts.push_back(s == 0 ? chunk : 1);
    // Slots from the last one down.
    sequences.push_back(make_sequence(plan, 0, counts.back(), plan.max_num_seqs - 1 - s));
  }
  NB_TRY_STATUS(run(runner, sequences, counts, is_host));
  done.num_sequences = num_seqs;
  done.num_tokens = chunk + num_seqs - 1;
  done.whole = context == std::max(most, 0) && num_seqs == plan.max_num_seqs && chunk == budget;
  return done;
}

}  // namespace nibble
