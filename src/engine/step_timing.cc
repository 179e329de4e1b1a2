// Hand-made sequences through ModelRunner::launch().
#include "engine/step_timing.h"

#include <memory>
#include <numeric>
#include <random>

#include "base/format.h"
#include "device/measure.h"
#include "engine/model_runner.h"

namespace nibble {
namespace {

// One random block in host memory, copied to every block of the device: far from the caches'
// sizes, so that repeats do not make it faster, and finite.
void fill_blocks(ModelRunner& runner, const MemoryPlan& plan) {
  fill_normal(plan.caches.kv_dtype, runner.host_slot(false, 0));
  for (int32_t to = 0; to < plan.caches.num_blocks; ++to) {
    const SlotCopy copy{SlotCopy::Kind::kHostToBlock, 0, to};
    runner.copy({&copy, 1});
  }
  runner.synchronize();
}

}  // namespace

Result<StepTiming> time_step(const Model& model, Device& device, const MemoryTarget& target,
                             EngineOptions engine, const StepShape& shape,
                             const StepTimingOptions& options) {
  const int64_t length = int64_t{shape.context} + shape.num_tokens;
  if (shape.num_seqs < 1 || shape.context < 0 || shape.num_tokens < 1 ||
      length > model.spec().max_position_embeddings)
    return make_error(ErrorCode::kInvalidArgument,
                      "{} sequences of {} tokens behind {}: expected 1 or more of each, and at "
                      "most {} tokens in all",
                      shape.num_seqs, shape.num_tokens, shape.context,
                      model.spec().max_position_embeddings);
  const auto blocks_per_seq =
      static_cast<int32_t>((length + engine.block_size - 1) / engine.block_size);
  engine.max_num_seqs = shape.num_seqs;
  engine.max_model_len = static_cast<int>(length);
  engine.max_num_batched_tokens = shape.num_seqs * shape.num_tokens;
  engine.num_gpu_blocks_override = shape.num_seqs * blocks_per_seq;
  engine.num_state_snapshots = 0;
  engine.cudagraph_capture_sizes = {shape.num_seqs};
  NB_TRY(MemoryPlan plan, plan_memory(model, engine, target));
  plan.host_tier.num_blocks = 1;  // what fill_blocks() copies from
  NB_TRY(ModelRunner runner, ModelRunner::create(model, device, plan));
  fill_blocks(runner, plan);

  std::vector<std::unique_ptr<Sequence>> sequences;
  std::vector<ScheduledSequence> step;
  std::mt19937 random(2);
  for (int32_t s = 0; s < shape.num_seqs; ++s) {
    auto sequence = std::make_unique<Sequence>();
    sequence->tokens.resize(static_cast<size_t>(length));
    for (int32_t& token : sequence->tokens)
      token = static_cast<int32_t>(random() % static_cast<uint64_t>(model.spec().vocab_size));
    sequence->num_computed = shape.context;
    sequence->state_slot = s;
    sequence->blocks.resize(static_cast<size_t>(blocks_per_seq));
    std::iota(sequence->blocks.begin(), sequence->blocks.end(), s * blocks_per_seq);
    step.push_back(
        {.sequence = sequence.get(), .num_tokens = shape.num_tokens, .wants_logits = true});
    sequences.push_back(std::move(sequence));
  }

  const auto run = [&] {
    runner.launch(step, !options.whole_logits);
    if (options.whole_logits) {
      runner.collect();
    } else {
      runner.collect_greedy();
    }
  };
  StepTiming timing{.shape = shape};
  run();  // what is set up on first use
  if (shape.num_tokens == 1) runner.record(capture_sizes(engine));
  timing.recorded = runner.num_recordings() > 0;
  run();
  timing.seconds = median_seconds(options.repeats, run);

  if (options.by_class) {
    TimingOps ops(device);
    runner.watch(&ops);
    run();
    ops.reset();
    run();
    runner.watch(nullptr);
    timing.class_seconds = ops.seconds();
  }

  const std::vector<int32_t> fresh(step.size(), shape.num_tokens);
  const std::vector<int32_t> context(step.size(), shape.context);
  timing.cost = model.step_cost(fresh, context, shape.num_seqs, plan.caches.kv_dtype);
  return timing;
}

}  // namespace nibble
