// Counting, and choosing what the flags leave open.
#include "engine/memory_plan.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/format.h"
#include "model/cache_slots.h"

namespace nibble {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

size_t cache_bytes(const ModelSpec& spec, CacheShape shape, DType activation, int num_blocks,
                   int num_slots) {
  shape.num_blocks = num_blocks;
  shape.num_state_slots = num_slots;
  shape.num_snapshot_slots = 0;
  Arena counter;
  place_caches(spec, shape, activation, counter);
  return counter.used();
}

int64_t blocks_for(int64_t num_tokens, int64_t block_size) {
  return (num_tokens + block_size - 1) / block_size;
}

// The largest value in [0, limit] for which `holds` is true; it holds up to some point.
template <class Predicate>
int64_t largest_that(int64_t limit, Predicate holds) {
  int64_t low = 0;
  int64_t high = limit + 1;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (holds(middle) ? low : high) = middle;
  }
  return low;
}

Status check(const EngineOptions& options, const ModelSpec& spec) {
  const auto at_least_one = [](const char* flag, int value) -> Status {
    if (value >= 1) return {};
    return make_error(ErrorCode::kInvalidArgument, "--{} {}: must be 1 or more", flag, value);
  };
  NB_TRY_STATUS(at_least_one("max-num-seqs", options.max_num_seqs));
  if (options.max_num_batched_tokens < 0)
    return make_error(ErrorCode::kInvalidArgument,
                      "--max-num-batched-tokens {}: must be 1 or more, or 0 to choose",
                      options.max_num_batched_tokens);
  NB_TRY_STATUS(at_least_one("block-size", options.block_size));
  const float share = options.gpu_memory_utilization;
  if (!(share > 0 && share <= 1))
    return make_error(ErrorCode::kInvalidArgument,
                      "--gpu-memory-utilization {:g}: must be above 0 and at most 1", share);
  if (!(options.kv_cache_auto_trim_ratio >= 0))
    return make_error(ErrorCode::kInvalidArgument,
                      "--kv-cache-auto-trim-ratio {:g}: must be 0 or more",
                      options.kv_cache_auto_trim_ratio);
  if (options.max_model_len > spec.max_position_embeddings)
    return make_error(ErrorCode::kInvalidArgument,
                      "--max-model-len {}: greater than the model's max_position_embeddings {}; "
                      "use at most that",
                      options.max_model_len, spec.max_position_embeddings);
  return {};
}

// Calls of Ops in a forward pass, roughly: what a recording holds.
int64_t operations_per_step(const ModelSpec& spec) {
  return 16 * static_cast<int64_t>(spec.layers.size()) + 8;
}

// Counts with the terms that grow with the context filled in by set_context().
class Counter {
 public:
  Counter(const Model& model, const EngineOptions& options, const MemoryTarget& target,
          MemoryPlan* plan)
      : spec_(model.spec()), target_(target), plan_(*plan) {
    const auto seqs = static_cast<size_t>(plan_.max_num_seqs);
    const CacheShape& caches = plan_.caches;
    const DType activation = plan_.activation_dtype;
    bytes_per_block_ = cache_bytes(spec_, caches, activation, 1, 0);
    plan_.kv_bytes_per_token = bytes_per_block_ / static_cast<size_t>(caches.block_size);
    plan_.state_bytes_per_seq = cache_bytes(spec_, caches, activation, 0, 1);
    plan_.weights = model.weight_bytes();
    plan_.alignment_bytes =
        model.arena_bytes() > 0 ? model.arena_bytes() - plan_.weights.total() : 0;
    const size_t states = cache_bytes(spec_, caches, activation, 0, plan_.max_num_seqs);
    const GatedDeltaNetSpec& d = spec_.delta_net;
    for (const LayerSpec& layer : spec_.layers)
      if (layer.mixer == MixerKind::kGatedDeltaNet)
        plan_.conv_bytes += seqs * static_cast<size_t>(d.conv_dim()) *
                            static_cast<size_t>(d.conv_kernel - 1) * dtype_size(activation);
    plan_.recurrent_bytes = states - plan_.conv_bytes;  // with the alignment between layers
    plan_.activation_bytes =
        model.activation_bytes(plan_.max_num_batched_tokens, plan_.max_num_seqs);
    const auto row = [&](int64_t width) {
      return seqs * static_cast<size_t>(width) * sizeof(float);
    };
    const bool several = options.tensor_parallel_size > 1;
    plan_.logits_width = spec_.vocab_size * options.tensor_parallel_size;
    plan_.logits_bytes = row(spec_.vocab_size) + (several ? row(plan_.logits_width) : 0);
    // Two buffers take turns, each the residual stream of the largest step.
    if (several)
      plan_.communication_bytes = 2 * static_cast<size_t>(plan_.max_num_batched_tokens) *
                                  static_cast<size_t>(spec_.hidden_size) * dtype_size(activation);
    plan_.sampling_bytes = seqs * sizeof(int32_t);
    plan_.graph_bytes = target.graph_bytes;
    if (target.device != nullptr && target.device->can_record())
      plan_.graph_bytes = capture_sizes(options).size() *
                          target.device->recording_bytes(operations_per_step(spec_));
    plan_.context_bytes = target.context_bytes;
    plan_.margin_bytes = target.margin_bytes;
    plan_.device_is_host = target.is_host;
  }

  size_t asked_snapshot_bytes = 0;  // of snapshots a flag asks for; part of fixed()
  size_t bytes_per_block() const { return bytes_per_block_; }

  void set_context(int64_t num_tokens) {
    const AttentionSpec& a = spec_.attention;
    Arena batch;
    place_batch(plan_.max_num_batched_tokens, plan_.max_num_seqs, num_tokens,
                plan_.caches.block_size, batch);
    plan_.batch_bytes = batch.used();
    plan_.staging_bytes = plan_.batch_bytes + plan_.logits_bytes;
    plan_.operation_bytes = target_.workspace_bytes;
    if (target_.device != nullptr)
      plan_.operation_bytes += target_.device->operation_scratch_bytes(
          a.num_heads / a.num_kv_heads, a.head_dim, static_cast<int32_t>(num_tokens));
  }
  // Everything but KV blocks and snapshots.
  size_t fixed(int64_t num_tokens) {
    set_context(num_tokens);
    MemoryPlan rest = plan_;
    rest.kv_bytes = 0;
    rest.snapshot_bytes = 0;
    return rest.total_bytes() + asked_snapshot_bytes;
  }
  // With one sequence of `num_blocks` blocks.
  size_t with_one_sequence(int64_t num_blocks) {
    return fixed(num_blocks * plan_.caches.block_size) +
           static_cast<size_t>(num_blocks) * bytes_per_block_;
  }

 private:
  const ModelSpec& spec_;
  const MemoryTarget& target_;
  MemoryPlan& plan_;
  size_t bytes_per_block_ = 0;
};

// --kv-offloading-size in slots; a quarter of it for snapshots where there are any. Behind
// --cache-dir there is always some, through which files pass.
HostTierShape host_tier(const EngineOptions& options, const ModelSpec& spec,
                        const MemoryPlan& plan) {
  constexpr double kBehindCacheDir = 1 << 30;
  HostTierShape shape;
  CacheShape one = plan.caches;
  one.num_blocks = 1;
  one.num_state_slots = 1;
  one.num_snapshot_slots = 0;
  Arena counter;
  const ModelCaches caches = place_caches(spec, one, plan.activation_dtype, counter);
  shape.block_bytes = block_slots(caches).bytes_per_slot;
  shape.snapshot_bytes = state_slots(caches).bytes_per_slot;
  if (!options.enable_prefix_caching) return shape;
  double bytes = static_cast<double>(options.kv_offloading_size) * (1 << 30);
  if (bytes <= 0 && !options.cache_dir.empty()) bytes = kBehindCacheDir;
  if (bytes <= 0) return shape;
  if (spec.hybrid()) {
    const auto state = static_cast<double>(shape.snapshot_bytes);
    shape.num_snapshots = static_cast<int32_t>(std::max(4.0, bytes / 4 / state));
    bytes -= shape.num_snapshots * state;
  }
  shape.num_blocks = static_cast<int32_t>(
      std::clamp(bytes / static_cast<double>(std::max<size_t>(1, shape.block_bytes)), 1.0, 1e8));
  return shape;
}

// Slots for kept prefixes: what was asked for, else two a running sequence (the end of its prompt
// and the end of its last turn) within an eighth of what is left beside one full-length sequence.
int snapshot_slots(const EngineOptions& options, const ModelSpec& spec, const MemoryPlan& plan,
                   size_t left) {
  if (!spec.hybrid() || !options.enable_prefix_caching) return 0;
  if (options.num_state_snapshots >= 0) return options.num_state_snapshots;
  const size_t affordable = left / 8 / std::max<size_t>(1, plan.state_bytes_per_seq);
  return static_cast<int>(std::min<size_t>(affordable, 2 * static_cast<size_t>(plan.max_num_seqs)));
}

}  // namespace

MemoryTarget memory_target(const Device& device, const DeviceMemoryInfo& before) {
  MemoryTarget target;
  target.name = device.name() + (before.is_limit ? " (memory limit of its control group)" : "");
  target.total_bytes = before.total;
  target.free_bytes = before.free + before.held;
  target.is_host = before.is_host;
  target.device = &device;
  // The heap: the sampler's rows, queues, sockets, thread stacks.
  target.margin_bytes = before.is_host ? 64 * kMiB : 150 * kMiB;
  // The device holds the workspace of its operations already; the plan names it by itself.
  if (before.held > 0) target.context_bytes = before.held - device.operation_scratch_bytes(1, 1, 1);
  return target;
}

MemoryTarget memory_target(const CardSet& cards, const Model& model) {
  MemoryTarget target;
  target.name = cards.card.name;
  target.num_devices = cards.count;
  target.total_bytes = cards.card.memory_bytes;
  target.free_bytes = cards.card.memory_bytes;
  target.context_bytes = 512 * kMiB;
  target.graph_bytes = 128 * kMiB;
  target.margin_bytes = 150 * kMiB;
  // Long prompts expand one packed weight at a time to 16 bits.
  int64_t largest = 0;
  for (const LinearModule& module : linear_modules(model.spec()))
    if (module.name != "lm_head")
      largest = std::max(largest, module.out_features * module.in_features);
  if (model.weight_bytes().quantized > 0) target.workspace_bytes = 2 * static_cast<size_t>(largest);
  return target;
}

BatchArrays place_batch(int32_t max_num_batched_tokens, int32_t max_num_seqs, int64_t max_model_len,
                        int32_t block_size, Arena& arena) {
  const auto tokens = static_cast<size_t>(max_num_batched_tokens);
  const auto seqs = static_cast<size_t>(max_num_seqs);
  const auto ints = [&](size_t count) {
    return static_cast<int32_t*>(arena.allocate(count * sizeof(int32_t), "batch"));
  };
  BatchArrays batch;
  batch.token_ids = ints(tokens);
  batch.positions = ints(3 * tokens);
  batch.query_start = ints(seqs + 1);
  batch.context_len = ints(seqs);
  batch.state_slot = ints(seqs);
  batch.state_is_fresh = static_cast<uint8_t*>(arena.allocate(seqs, "batch"));
  batch.logit_rows = ints(seqs);
  // Only as wide as a step needs: the copy to the device ends where the table does.
  batch.block_table = ints(seqs * static_cast<size_t>(blocks_for(max_model_len, block_size)));
  return batch;
}

EngineBuffers place_engine(const ModelSpec& spec, const MemoryPlan& plan, Arena& arena) {
  EngineBuffers buffers;
  buffers.caches = place_caches(spec, plan.caches, plan.activation_dtype, arena);
  buffers.logits = arena.tensor(DType::kF32, {plan.max_num_seqs, spec.vocab_size}, "logits");
  if (plan.logits_width > spec.vocab_size)
    buffers.gathered_logits =
        arena.tensor(DType::kF32, {plan.max_num_seqs, plan.logits_width}, "gathered logits");
  buffers.greedy_ids = arena.tensor(DType::kI32, {plan.max_num_seqs}, "greedy choices");
  buffers.scratch = arena.allocate(plan.activation_bytes, "activations");
  buffers.batch_base = static_cast<std::byte*>(arena.allocate(0, "batch"));
  buffers.batch = place_batch(plan.max_num_batched_tokens, plan.max_num_seqs, plan.max_model_len,
                              plan.caches.block_size, arena);
  return buffers;
}

size_t MemoryPlan::total_bytes() const {
  size_t total = 0;
  for (const MemoryTerm& term : terms()) total += term.bytes;
  return total;
}

size_t MemoryPlan::single_bytes() const {
  const auto tokens = static_cast<size_t>(blocks_for(max_model_len, caches.block_size)) *
                      static_cast<size_t>(caches.block_size);
  return total_bytes() - kv_bytes - snapshot_bytes + tokens * kv_bytes_per_token;
}

std::vector<MemoryTerm> MemoryPlan::terms() const {
  return {
      {"weights.quantized", "weights, packed", weights.quantized},
      {"weights.dense", "weights, 16 or 32 bits", weights.dense},
      {"weights.embeddings", "embeddings", weights.embeddings},
      {"weights.lm_head", "output head", weights.lm_head},
      {"weights.other", "norms, convolutions, gates", weights.other},
      {"kv", format("KV cache, {} tokens", kv_tokens()), kv_bytes},
      {"states.recurrent", format("recurrent states, {} sequences", max_num_seqs), recurrent_bytes},
      {"states.conv", "convolution states", conv_bytes},
      {"snapshots", format("state snapshots, {}", caches.num_snapshot_slots), snapshot_bytes},
      {"activations", format("activations, {} tokens", max_num_batched_tokens), activation_bytes},
      {"logits", "logits", logits_bytes},
      {"sampling", "sampling", sampling_bytes},
      {"batch", "batch inputs", batch_bytes},
      {"operations", "workspace of operations", operation_bytes},
      {"communication", "communication", communication_bytes},
      {"graphs", "captured graphs", graph_bytes},
      {"context", "driver context", context_bytes},
      {"alignment", "alignment", alignment_bytes},
      {"staging", "host copies of batch and logits", device_is_host ? staging_bytes : 0},
      {"tier", "prefix cache behind the device's", device_is_host ? tier_bytes : 0},
      {"margin", "margin", margin_bytes},
  };
}

Result<MemoryPlan> count_memory(const Model& model, const EngineOptions& options,
                                const MemoryTarget& target) {
  const ModelSpec& spec = model.spec();
  NB_TRY_STATUS(check(options, spec));
  MemoryPlan plan;
  plan.activation_dtype = model.activation_dtype();
  NB_TRY(plan.caches.kv_dtype, parse_kv_cache_dtype(options.kv_cache_dtype, plan.activation_dtype));
  plan.max_num_seqs = options.max_num_seqs;
  plan.max_num_batched_tokens = batched_tokens(options, target.is_host);
  plan.caches.block_size = options.block_size;
  plan.caches.num_state_slots = plan.max_num_seqs;
  plan.host_tier = host_tier(options, spec, plan);
  plan.tier_bytes = plan.host_tier.num_bytes();

  // What this instance may use. On a host other programs come and go, so the share is of what is
  // free; on a GPU of the total, as in vLLM. With the trim on, less free memory is no error.
  plan.device_bytes = target.total_bytes;
  plan.others_bytes = target.total_bytes - std::min(target.free_bytes, target.total_bytes);
  const double share = options.gpu_memory_utilization;
  const size_t base = target.is_host ? target.free_bytes : target.total_bytes;
  plan.budget_bytes = static_cast<size_t>(std::ceil(share * static_cast<double>(base)));
  if (plan.budget_bytes > target.free_bytes) {
    plan.busy = true;
    if (options.kv_cache_auto_trim_ratio == 0)
      plan.shortfall_bytes = plan.budget_bytes - target.free_bytes;
    plan.budget_bytes = target.free_bytes;
  }
  // A KV size given in bytes or blocks ignores the share, not the device.
  const bool kv_is_given = options.kv_cache_bytes > 0 || options.num_gpu_blocks_override > 0;
  if (kv_is_given) plan.budget_bytes = target.free_bytes;

  Counter counter(model, options, target, &plan);
  const auto per_block = static_cast<int64_t>(counter.bytes_per_block());
  const int64_t block_size = options.block_size;
  const int64_t model_blocks = blocks_for(spec.max_position_embeddings, block_size);
  const int64_t given_blocks =
      options.num_gpu_blocks_override > 0 ? options.num_gpu_blocks_override
      : options.kv_cache_bytes > 0
          ? static_cast<int64_t>(options.kv_cache_bytes) / std::max<int64_t>(1, per_block)
          : 0;
  if (options.num_state_snapshots > 0 && spec.hybrid())
    counter.asked_snapshot_bytes =
        static_cast<size_t>(options.num_state_snapshots) * plan.state_bytes_per_seq;
  const int64_t fitting_blocks =
      kv_is_given ? std::min(given_blocks, model_blocks)
                  : largest_that(model_blocks, [&](int64_t blocks) {
                      return blocks == 0 || counter.with_one_sequence(blocks) <= plan.budget_bytes;
                    });
  plan.fitting_model_len =
      std::min<int64_t>(fitting_blocks * block_size, spec.max_position_embeddings);

  const bool open = options.max_model_len <= 0;
  const int64_t wanted =
      open ? std::max<int64_t>(plan.fitting_model_len, 1) : options.max_model_len;
  plan.max_model_len = static_cast<int32_t>(wanted);
  const int64_t full = blocks_for(wanted, block_size);
  const size_t needed = counter.with_one_sequence(full);
  if (kv_is_given && full > given_blocks) {
    const auto whole = static_cast<size_t>(full * per_block);
    plan.shortfall_bytes = options.num_gpu_blocks_override > 0
                               ? static_cast<size_t>((full - given_blocks) * per_block)
                               : whole - options.kv_cache_bytes;
  } else if (needed > plan.budget_bytes) {
    plan.shortfall_bytes = std::max(plan.shortfall_bytes, needed - plan.budget_bytes);
  } else if (open && wanted < std::min<int64_t>(block_size, spec.max_position_embeddings)) {
    plan.shortfall_bytes = std::max<size_t>(plan.shortfall_bytes, 1);
  }

  // One full-length sequence first, then snapshots, then more KV up to the trim.
  const size_t left = plan.budget_bytes > needed ? plan.budget_bytes - needed : 0;
  plan.caches.num_snapshot_slots = snapshot_slots(options, spec, plan, left);
  const size_t states = cache_bytes(spec, plan.caches, plan.activation_dtype, 0, plan.max_num_seqs);
  plan.snapshot_bytes = cache_bytes(spec, plan.caches, plan.activation_dtype, 0,
                                    plan.max_num_seqs + plan.caches.num_snapshot_slots) -
                        states;
  int64_t num_blocks = given_blocks;
  if (!kv_is_given) {
    const size_t used = counter.fixed(wanted) - counter.asked_snapshot_bytes + plan.snapshot_bytes;
    const size_t room = plan.budget_bytes > used ? plan.budget_bytes - used : 0;
    num_blocks = static_cast<int64_t>(room) / std::max<int64_t>(1, per_block);
    const double ratio = options.kv_cache_auto_trim_ratio;
    if (ratio > 0)
      num_blocks = std::min(
          num_blocks, static_cast<int64_t>(std::ceil(static_cast<double>(full) * plan.max_num_seqs *
                                                     std::max(1.0, ratio))));
  }
  num_blocks = std::clamp<int64_t>(num_blocks, full, std::max<int64_t>(full, INT32_MAX / 2));
  if (kv_is_given) num_blocks = std::max<int64_t>(given_blocks, full);
  plan.caches.num_blocks = static_cast<int>(num_blocks);
  plan.kv_bytes = cache_bytes(spec, plan.caches, plan.activation_dtype, plan.caches.num_blocks, 0);
  counter.set_context(wanted);
  // What the walk takes beyond its parts is alignment.
  Arena walk;
  place_engine(spec, plan, walk);
  const size_t parts = plan.kv_bytes + plan.recurrent_bytes + plan.conv_bytes +
                       plan.snapshot_bytes + plan.activation_bytes + plan.logits_bytes +
                       plan.sampling_bytes + plan.batch_bytes;
  if (walk.used() > parts) plan.alignment_bytes += walk.used() - parts;
  if (plan.fits() && plan.total_bytes() > plan.budget_bytes)
    plan.shortfall_bytes = plan.total_bytes() - plan.budget_bytes;
  return plan;
}

std::vector<PlanChange> cheapest_changes(const Model& model, const EngineOptions& options,
                                         const MemoryTarget& target, const MemoryPlan& plan) {
  std::vector<PlanChange> changes;
  const auto consider = [&](EngineOptions changed, std::string flags, std::string cost) {
    const Result<MemoryPlan> with = count_memory(model, changed, target);
    if (!with) return;
    // Compared at one full-length sequence: more KV blocks are no loss.
    const size_t before = plan.single_bytes();
    const size_t after = with->single_bytes();
    const size_t freed = before > after ? before - after : 0;
    size_t gained =
        with->budget_bytes > plan.budget_bytes ? with->budget_bytes - plan.budget_bytes : 0;
    if (changed.kv_cache_bytes > options.kv_cache_bytes)
      gained += changed.kv_cache_bytes - options.kv_cache_bytes;
    if (freed + gained == 0) return;
    changes.push_back(
        {std::move(flags), std::move(cost), freed + gained, with->fits(), with->fitting_model_len});
  };
  if (options.gpu_memory_utilization < 0.95f && !plan.busy) {
    EngineOptions changed = options;
    changed.gpu_memory_utilization = 0.95f;
    consider(changed, "--gpu-memory-utilization 0.95", "less for other programs");
  }
  if (plan.max_num_batched_tokens > 256) {
    EngineOptions changed = options;
    changed.max_num_batched_tokens = std::max(256, plan.max_num_batched_tokens / 2);
    consider(changed, format("--max-num-batched-tokens {}", changed.max_num_batched_tokens),
             "slower prompts");
  }
  if (options.kv_offloading_size > 0 && plan.device_is_host) {
    EngineOptions changed = options;
    changed.kv_offloading_size = options.kv_offloading_size / 2;
    consider(changed, format("--kv-offloading-size {:g}", changed.kv_offloading_size),
             "fewer kept prefixes");
  }
  if (dtype_size(plan.caches.kv_dtype) > 1) {
    EngineOptions changed = options;
    changed.kv_cache_dtype = "fp8_e4m3";
    consider(changed, "--kv-cache-dtype fp8_e4m3", "coarser keys and values");
  }
  if (options.max_num_seqs > 1) {
    EngineOptions changed = options;
    changed.max_num_seqs = std::max(1, options.max_num_seqs / 2);
    consider(changed, format("--max-num-seqs {}", changed.max_num_seqs), "fewer at once");
  }
  if (options.kv_cache_bytes > 0 && !plan.fits()) {
    EngineOptions changed = options;
    changed.kv_cache_bytes =
        static_cast<size_t>(blocks_for(plan.max_model_len, options.block_size)) *
        cache_bytes(model.spec(), plan.caches, plan.activation_dtype, 1, 0);
    consider(changed, format("--kv-cache-memory-bytes {}", changed.kv_cache_bytes),
             "a larger KV cache");
  }
  if (plan.fitting_model_len >= options.block_size && plan.fitting_model_len < plan.max_model_len) {
    EngineOptions changed = options;
    changed.max_model_len = static_cast<int>(plan.fitting_model_len);
    consider(changed, format("--max-model-len {}", plan.fitting_model_len), "shorter context");
  }
  // Those that suffice in the order above; of the others, the largest first.
  const auto others = std::stable_partition(changes.begin(), changes.end(),
                                            [](const PlanChange& change) { return change.fits; });
  std::stable_sort(others, changes.end(), [](const PlanChange& a, const PlanChange& b) {
    return a.freed_bytes > b.freed_bytes;
  });
  return changes;
}

Result<MemoryPlan> plan_memory(const Model& model, const EngineOptions& options,
                               const MemoryTarget& target) {
  NB_TRY(const MemoryPlan plan, count_memory(model, options, target));
  if (plan.fits()) return plan;
  std::string fix;
  for (const PlanChange& change : cheapest_changes(model, options, target, plan))
    if (change.fits) fix += (fix.empty() ? "use " : " or ") + change.flags;
  if (fix.empty()) fix = "no single flag helps: see nibble plan";
  const size_t sequence =
      plan.kv_bytes_per_token *
      static_cast<size_t>(blocks_for(plan.max_model_len, options.block_size) * options.block_size);
  const size_t fixed = plan.total_bytes() - plan.kv_bytes - plan.snapshot_bytes;
  std::string holders;
  if (!target.holders.empty()) holders = format("; others hold memory: {}", target.holders);
  return make_error(
      ErrorCode::kOutOfMemory,
      "does not fit by {}: --max-model-len {} needs {} of KV cache for one sequence, beside {} "
      "(weights {}, states {}, activations {}), and {} of {} may be used on {}{}; {}",
      format_bytes(plan.shortfall_bytes), plan.max_model_len, format_bytes(sequence),
      format_bytes(fixed), format_bytes(plan.weights.total()),
      format_bytes(plan.recurrent_bytes + plan.conv_bytes), format_bytes(plan.activation_bytes),
      format_bytes(options.kv_cache_bytes > 0 ? fixed + options.kv_cache_bytes : plan.budget_bytes),
      format_bytes(plan.device_bytes), target.name, holders, fix);
}

}  // namespace nibble
