// The engine thread: take new requests, plan, run, sample, hand out, repeat. Clients touch only the
// inbox (under one mutex) and their own channel.
#include "engine/engine.h"
#include "engine/channel_handle.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <mutex>
#include <thread>
#include <utility>

#include "base/allocation_counter.h"
#include "base/format.h"
#include "base/json.h"
#include "base/log.h"
#include "base/version.h"
#include "engine/disk_tier.h"
#include "engine/loop_guard.h"
#include "engine/memory_plan.h"
#include "engine/model_runner.h"
#include "engine/prompt_logprobs.h"
#include "engine/rehearsal.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"

namespace nibble {
namespace {

// How long the start took, phase by phase: "opened_s=0.3 loaded_s=2.1 ... total_s=3.0".
class StartPhases {
 public:
  void end(const char* phase) {
    const auto now = std::chrono::steady_clock::now();
    text_ += format("{}_s={:.2f} ", phase, seconds(last_, now));
    last_ = now;
  }
  std::string text() const { return text_ + format("total_s={:.2f}", seconds(first_, last_)); }

 private:
  using Time = std::chrono::steady_clock::time_point;
  static double seconds(Time from, Time to) {
    return std::chrono::duration<double>(to - from).count();
  }
  Time first_ = std::chrono::steady_clock::now();
  Time last_ = first_;
  std::string text_;
};

class EngineImpl final : public Engine {
 public:
  // `before`: the device's memory before the model was loaded.
  EngineImpl(std::unique_ptr<Device> device, Model model, const EngineOptions& options,
             const DeviceMemoryInfo& before, const StartPhases& phases)
      : options_(options),
        phases_(phases),
        before_(before),
        device_(std::move(device)),
        model_(std::move(model)),
        sampler_(model_.spec().vocab_size, parse_logprobs_mode(options.logprobs_mode).value()),
        loop_guard_(parse_loop_guard_mode(options.loop_guard).value()) {}

  Status prepare(const ModelDir& dir) {
    MemoryTarget target = memory_target(*device_, before_);
    NB_TRY(plan_, plan_or_explain(target));
    const HostTierShape& host = plan_.host_tier;
    Result<ModelRunner> runner = ModelRunner::create(model_, *device_, plan_);
    if (!runner) return refused(runner.error());
    runner_ = std::make_unique<ModelRunner>(std::move(*runner));
    phases_.end("placed");
    NB_TRY(const Rehearsal rehearsal, rehearse(*runner_, model_, plan_, before_.is_host));
    phases_.end("rehearsed");
    runner_->record(capture_sizes(options_));
    if (runner_->num_recordings() > 0) phases_.end("recorded");
    scheduler_ = std::make_unique<Scheduler>(SchedulerOptions{
        .num_blocks = plan_.caches.num_blocks,
        .block_size = plan_.caches.block_size,
        .max_num_seqs = plan_.max_num_seqs,
        .max_num_batched_tokens = plan_.max_num_batched_tokens,
        .long_prefill_token_threshold = options_.long_prefill_token_threshold,
        .policy = options_.scheduling_policy == "priority" ? SchedulingPolicy::kPriority
                                                           : SchedulingPolicy::kFcfs,
        .prefix_caching = options_.enable_prefix_caching,
        .hybrid = model_.spec().hybrid(),
        .num_snapshots = plan_.caches.num_snapshot_slots,
        .num_host_blocks = host.num_blocks,
        .num_host_snapshots = host.num_snapshots,
        .persist = !options_.cache_dir.empty()});
    NB_TRY_STATUS(open_disk_tier(dir));
    stats_.cache = {.block_size = plan_.caches.block_size,
                    .dtype = std::string(dtype_name(plan_.caches.kv_dtype)),
                    .num_blocks = plan_.caches.num_blocks,
                    .num_snapshots = plan_.caches.num_snapshot_slots,
                    .num_host_blocks = host.num_blocks,
                    .prefix_caching = options_.enable_prefix_caching,
                    .disk = disk_ != nullptr};
    const auto seqs = static_cast<size_t>(plan_.max_num_seqs);
    sampling_.reserve(seqs);
    inbox_.reserve(static_cast<size_t>(options_.max_queue) + 1);
    incoming_.reserve(static_cast<size_t>(options_.max_queue) + 1);
    log_info(
        "memory planned total={} of={} weights={} kv={} states={} snapshots={} activations={} "
        "max_model_len={} kv_tokens={} concurrency={:.2f}",
        format_bytes(plan_.total_bytes()), format_bytes(plan_.budget_bytes),
        format_bytes(plan_.weights.total()), format_bytes(plan_.kv_bytes),
        format_bytes(plan_.recurrent_bytes + plan_.conv_bytes), format_bytes(plan_.snapshot_bytes),
        format_bytes(plan_.activation_bytes), plan_.max_model_len, plan_.kv_tokens(),
        plan_.concurrency());
    log_info("rehearsal passed sequences={} tokens={} context={} whole={}", rehearsal.num_sequences,
             rehearsal.num_tokens, rehearsal.longest_context, rehearsal.whole);
    if (const size_t held = device_->held_by_this_process(); held > 0)
      log_info("memory held={} planned={} margin={} recorded_steps={}", format_bytes(held),
               format_bytes(plan_.total_bytes() - plan_.margin_bytes),
               format_bytes(plan_.margin_bytes), runner_->num_recordings());
    log_info("ready device={} {}", device_->name(), phases_.text());
    allocations_at_ready_ = num_allocations();
    thread_ = std::jthread([this](std::stop_token stop) { loop(stop); });
    return {};
  }

  ~EngineImpl() override {
    {
      std::lock_guard lock(mutex_);  // or the thread might look just before and sleep just after
      thread_.request_stop();
    }
    wake_.notify_all();
  }

  Result<std::unique_ptr<RequestHandle>> submit(Request request) override {
    NB_TRY_STATUS(check(request));
    auto sequence = std::make_unique<Sequence>();
    sequence->submitted = std::chrono::steady_clock::now();
    sequence->channel = std::make_shared<RequestChannel>();
    sequence->channel->events.reserve(static_cast<size_t>(request.max_tokens) + 1);
    // All the room it can need, and the hashing of its prompt, here on the client's thread.
    const size_t most = request.prompt.size() + static_cast<size_t>(request.max_tokens);
    const auto block = static_cast<size_t>(plan_.caches.block_size);
    sequence->tokens.reserve(most);
    sequence->tokens = request.prompt;
    sequence->blocks.reserve(most / block + 1);
    sequence->hashes.reserve(most / block + 1);
    sequence->request = std::move(request);
    if (options_.enable_prefix_caching) hash_prompt(*sequence);
    const Request& asked = sequence->request;
    if (!LoopGuard::idle(loop_guard_, asked.repetition))
      sequence->loop_guard = std::make_unique<LoopGuard>(loop_guard_, asked.repetition,
                                                         asked.sampling.repetition_penalty);
    auto handle = std::make_unique<ChannelHandle>(sequence->channel);
    {
      std::lock_guard lock(mutex_);
      if (static_cast<int>(inbox_.size()) + num_waiting_ >= options_.max_queue)
        return make_error(ErrorCode::kOverloaded,
                          "{} requests are waiting already; try again later", options_.max_queue);
      sequence->arrival = num_submitted_++;
      sequence->seed = static_cast<uint64_t>(
          sequence->request.sampling.seed.value_or(sequence->arrival + (int64_t{1} << 40)));
      inbox_.push_back(std::move(sequence));
    }
    wake_.notify_one();
    return std::unique_ptr<RequestHandle>(std::move(handle));
  }

  EngineStats stats() const override {
    std::lock_guard lock(mutex_);
    EngineStats stats = stats_;
    stats.num_allocations_after_ready = num_allocations() - allocations_at_ready_;
    stats.num_waiting += static_cast<int>(inbox_.size());
    stats.num_waiting_capacity += static_cast<int>(inbox_.size());
    if (disk_ != nullptr) {
      const DiskTierStats disk = disk_->stats();
      stats.num_disk_writes = disk.num_writes;
      stats.num_disk_reads = disk.num_reads;
      stats.num_disk_rejects = disk.num_rejects;
      stats.disk_bytes = disk.num_bytes;
    }
    return stats;
  }

  bool reset_prefix_cache() override {
    std::unique_lock lock(mutex_);
    const int64_t mine = ++num_resets_asked_;
    wake_.notify_all();
    reset_done_.wait(lock, [&] { return num_resets_done_ >= mine; });
    return reset_succeeded_;
  }
  MemoryPlan memory_plan() const override { return plan_; }
  const ModelSpec& spec() const override { return model_.spec(); }
  int max_model_len() const override { return plan_.max_model_len; }

 private:
  static std::string held_by(const std::string& holders) {
    return holders.empty() ? "" : "; others hold memory: " + holders;
  }
  // The plan fits and the device refuses: something else came in between. The numbers of now.
  Error refused(const Error& error) const {
    MemoryTarget now = memory_target(*device_, device_->memory());
    now.free_bytes = std::min(now.total_bytes, now.free_bytes + model_.arena_bytes());
    now.holders = device_->memory_holders();
    if (const Result<MemoryPlan> again = plan_memory(model_, options_, now); !again)
      return again.error();
    return make_error(ErrorCode::kOutOfMemory,
                      "{}: the plan of {} fits the {} that are free, but the device refuses; a "
                      "limit of this process may be lower (ulimit -v){}; use a smaller "
                      "--max-model-len or --max-num-seqs",
                      error.message, format_bytes(plan_.total_bytes()),
                      format_bytes(now.free_bytes), held_by(now.holders));
  }
  // Who else holds memory is looked up only when it matters.
  Result<MemoryPlan> plan_or_explain(MemoryTarget& target) const {
    NB_TRY(MemoryPlan plan, count_memory(model_, options_, target));
    if (plan.fits()) return plan;
    if (options_.kv_cache_bytes == 0) target.holders = device_->memory_holders();
    return plan_memory(model_, options_, target);
  }

  Status check(const Request& request) const {
    const auto num_prompt = static_cast<int64_t>(request.prompt.size());
    if (num_prompt == 0)
      return make_error(ErrorCode::kInvalidArgument, "The decoder prompt cannot be empty");
    if (request.max_tokens < 1)
      return make_error(ErrorCode::kInvalidArgument, "max_tokens must be at least 1, got {}.",
                        request.max_tokens);
    if (num_prompt + request.max_tokens > plan_.max_model_len)
      return make_error(
          ErrorCode::kInvalidArgument,
          "This model's maximum context length is {} tokens. However, you requested {} output "
          "tokens and your prompt contains {} input tokens, for a total of {} tokens. Please "
          "reduce "
          "the length of the input prompt or the number of requested output tokens.",
          plan_.max_model_len, request.max_tokens, num_prompt, num_prompt + request.max_tokens);
    for (const int32_t id : request.prompt)
      if (id < 0 || id >= model_.spec().vocab_size)
        return make_error(ErrorCode::kInvalidArgument,
                          "prompt token id {} is outside the vocabulary of {}", id,
                          model_.spec().vocab_size);
    return {};
  }

  void hash_prompt(Sequence& sequence) const {
    BlockHasher hasher;
    const auto block = static_cast<size_t>(plan_.caches.block_size);
    const std::span<const int32_t> prompt(sequence.request.prompt);
    sequence.root = hasher.root(sequence.request.cache_salt);
    for (size_t first = 0; first + block <= prompt.size(); first += block)
      sequence.hashes.push_back(hasher.next(first == 0 ? sequence.root : sequence.hashes.back(),
                                            prompt.subspan(first, block)));
  }

  // Files of a model are told from those of another by what its keys and values depend on.
  std::string fingerprint(const ModelDir& dir) const {
    Sha256 hash;
    hash.update(format("{} {} {} {} {}\n", kVersion, device_->name(),
                       dtype_name(plan_.activation_dtype), dtype_name(plan_.caches.kv_dtype),
                       plan_.caches.block_size));
    hash.update(dump_json(dir.config()));
    std::vector<fs::path> files;
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(dir.path(), ignored))
      if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
    std::ranges::sort(files);
    for (const fs::path& file : files)
      hash.update(format(
          "{} {} {}\n", file.filename().string(), fs::file_size(file, ignored),
          static_cast<int64_t>(fs::last_write_time(file, ignored).time_since_epoch().count())));
    return hash.finish();
  }

  Status open_disk_tier(const ModelDir& dir) {
    if (options_.cache_dir.empty() || !options_.enable_prefix_caching) return {};
    NB_TRY(disk_, DiskTier::open(
                      {.dir = options_.cache_dir,
                       .fingerprint = fingerprint(dir),
                       .max_bytes = static_cast<size_t>(
                           static_cast<double>(options_.cache_dir_size) * (1 << 30)),
                       .block_bytes = plan_.host_tier.block_bytes,
                       .snapshot_bytes = plan_.host_tier.snapshot_bytes},
                      [this](bool is_snapshot, int32_t slot) {
                        return runner_->host_slot(is_snapshot, slot);
                      },
                      [this] {
                        {
                          std::lock_guard lock(mutex_);
                          disk_done_ = true;
                        }
                        wake_.notify_one();
                      }));
    log_info("cache-dir opened dir={} held={}", options_.cache_dir,
             format_bytes(disk_->stats().num_bytes));
    return {};
  }

  // --- the engine thread ----------------------------------------------------------------------

  void loop(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      make_copies();  // before a disk read may overwrite a host slot they use
      take_inbox(stop);
      drop_ended();
      const std::vector<ScheduledSequence>& step = scheduler_->plan();
      make_copies();
      if (!step.empty()) run_step(step);
    }
    for (Sequence* sequence : scheduler_->sequences()) finish(sequence, {}, FinishReason::kAbort);
    make_copies();
    for (const Loading& loading : loading_) finish_unscheduled(*loading.sequence);
    std::lock_guard lock(mutex_);
    for (const auto& sequence : inbox_) finish_unscheduled(*sequence);
    inbox_.clear();
    num_resets_done_ = num_resets_asked_;
    reset_succeeded_ = false;
    reset_done_.notify_all();
  }

  // The scheduler's copies, and what they bring to host memory on to the disk.
  void make_copies() {
    if (!scheduler_->copies().empty()) {
      runner_->copy(scheduler_->copies());
      scheduler_->clear_copies();
    }
    std::vector<PersistRequest>& requests = scheduler_->persist_requests();
    if (requests.empty()) return;
    runner_->synchronize();
    for (const PersistRequest& request : requests) {
      if (disk_ != nullptr) {
        disk_->write(request);
      } else {
        scheduler_->persisted(request);
      }
    }
    requests.clear();
  }

  // Moves new requests to the scheduler; sleeps while there is nothing to do.
  void take_inbox(const std::stop_token& stop) {
    bool disk_done = false;
    {
      std::unique_lock lock(mutex_);
      if (scheduler_->num_running() + scheduler_->num_waiting() == 0) {
        publish_stats();
        wake_.wait(lock, [&] {
          return stop.stop_requested() || !inbox_.empty() || disk_done_ ||
                 num_resets_done_ < num_resets_asked_;
        });
      }
      incoming_.swap(inbox_);
      disk_done = std::exchange(disk_done_, false);
      if (num_resets_done_ < num_resets_asked_) {
        reset_succeeded_ = scheduler_->num_running() == 0 && loading_.empty();
        if (reset_succeeded_) scheduler_->cache().clear();
        num_resets_done_ = num_resets_asked_;
        reset_done_.notify_all();
      }
    }
    if (disk_done) take_disk_done();
    for (auto& sequence : incoming_)
      if (!start_loading(sequence)) scheduler_->add(std::move(sequence));
    incoming_.clear();
    std::lock_guard lock(mutex_);
    num_waiting_ = scheduler_->num_waiting() + static_cast<int>(loading_.size());
    publish_stats();
  }

  // A prompt whose prefix is in files waits beside the scheduler until it is in host memory.
  bool start_loading(std::unique_ptr<Sequence>& sequence) {
    if (disk_ == nullptr || sequence->wants_prompt_logprobs()) return false;
    const std::span<const BlockHash> hashes(sequence->hashes);
    disk_->touch(hashes);
    const size_t most =
        (sequence->tokens.size() - 1) / static_cast<size_t>(plan_.caches.block_size);
    std::vector<DiskLoad> loads = plan_disk_loads(
        scheduler_->cache(), hashes.first(std::min(most, hashes.size())),
        [&](bool is_snapshot, const BlockHash& hash) { return disk_->has(is_snapshot, hash); });
    if (loads.empty()) return false;
    disk_->read(++last_ticket_, std::move(loads));
    loading_.push_back({last_ticket_, std::move(sequence)});
    return true;
  }

  void take_disk_done() {
    std::vector<PersistRequest> written;
    std::vector<DiskTier::ReadDone> read;
    disk_->take_done(&written, &read);
    for (const PersistRequest& request : written) scheduler_->persisted(request);
    for (const DiskTier::ReadDone& done : read) {
      finish_disk_loads(scheduler_->cache(), done.loads);
      const auto it = std::ranges::find(loading_, done.ticket, &Loading::ticket);
      NB_CHECK(it != loading_.end(), "a disk read nobody waits for");
      scheduler_->add(std::move(it->sequence));
      loading_.erase(it);
    }
  }

  void drop_ended() {
    const auto now = std::chrono::steady_clock::now();
    for (Sequence* sequence : scheduler_->sequences()) {
      if (sequence->channel->cancelled.load(std::memory_order_relaxed)) {
        finish(sequence, {}, FinishReason::kAbort);
      } else if (sequence->request.deadline && *sequence->request.deadline <= now) {
        finish(sequence, {}, FinishReason::kTimeout);
      }
    }
  }

  void run_step(const std::vector<ScheduledSequence>& step) {
    const auto started = std::chrono::steady_clock::now();
    int32_t num_tokens = 0;
    for (const ScheduledSequence& scheduled : step) {
      num_tokens += scheduled.num_tokens;
      Sequence& sequence = *scheduled.sequence;
      if (sequence.first_scheduled == Sequence::Time()) sequence.first_scheduled = started;
    }
    count_step(num_tokens);
    const bool greedy = all_plain_greedy(step);
    runner_->launch(step, greedy);
    Tensor logits;
    std::span<const int32_t> choices;
    if (greedy) {
      choices = runner_->collect_greedy();
    } else {
      logits = runner_->collect();
    }
    // commit() clears the plan, and sampling needs it: keep those that sample.
    sampling_.clear();
    int64_t row = 0;
    for (const ScheduledSequence& scheduled : step) {
      if (scheduled.wants_all_logits) take_prompt_logprobs(scheduled, logits, row);
      row += scheduled.num_logit_rows();
      if (scheduled.wants_logits) sampling_.push_back({scheduled.sequence, row - 1});
    }
    scheduler_->commit();
    now_ = std::chrono::steady_clock::now();
    for (const auto& [sequence, at] : sampling_) {
      if (greedy) {
        take_choice(*sequence, choices[static_cast<size_t>(at)]);
      } else {
        sample(*sequence, row_of(logits, at));
      }
    }
  }

  // Whether the device may choose every token of the step, so that no logits need to travel.
  static bool all_plain_greedy(const std::vector<ScheduledSequence>& step) {
    return std::ranges::all_of(step, [](const ScheduledSequence& scheduled) {
      if (scheduled.wants_all_logits) return false;
      if (!scheduled.wants_logits) return true;
      const Sequence& sequence = *scheduled.sequence;
      return is_plain_greedy(sequence.request.sampling, sequence.request.constraint != nullptr,
                             penalty_of(sequence));
    });
  }
  static float penalty_of(const Sequence& sequence) {
    return sequence.loop_guard != nullptr ? sequence.loop_guard->repetition_penalty() : 0.0f;
  }
  static std::span<const int32_t> stop_ids_of(const Request& request) {
    return request.ignore_eos ? std::span<const int32_t>() : request.stop_token_ids;
  }

  static std::span<float> row_of(const Tensor& logits, int64_t row) {
    const Tensor values = logits.rows(row, row + 1);
    return {values.as<float>(), static_cast<size_t>(values.num_elements())};
  }

  // Row i of the chunk predicts the prompt token behind it.
  static void take_prompt_logprobs(const ScheduledSequence& scheduled, const Tensor& logits,
                                   int64_t first_row) {
    Sequence& sequence = *scheduled.sequence;
    for (int32_t i = 0; i < scheduled.num_tokens; ++i) {
      const int32_t next = sequence.num_computed + i + 1;
      if (next >= sequence.num_prompt()) break;
      if (static_cast<int32_t>(sequence.prompt_logprobs.size()) >= next) continue;  // preempted
      sequence.prompt_logprobs.push_back(
          token_logprobs(row_of(logits, first_row + i), sequence.tokens[static_cast<size_t>(next)],
                         sequence.request.sampling.num_prompt_logprobs));
    }
  }

  void sample(Sequence& sequence, std::span<float> logits) {
    const Request& request = sequence.request;
    const std::span<const int32_t> tokens = sequence.tokens;
    TokenEvent event = sampler_.sample({.logits = logits,
                                        .params = &request.sampling,
                                        .prompt = tokens.first(request.prompt.size()),
                                        .generated = tokens.subspan(request.prompt.size()),
                                        .stop_token_ids = stop_ids_of(request),
                                        .seed = sequence.seed,
                                        .constraint = request.constraint.get(),
                                        .repetition_penalty = penalty_of(sequence)});
    if (std::isnan(logits[static_cast<size_t>(event.token)])) return not_numbers(sequence);
    take(sequence, std::move(event));
  }

  void take_choice(Sequence& sequence, int32_t token) {
    if (token < 0) return not_numbers(sequence);
    TokenEvent event;
    event.token = token;
    take(sequence, std::move(event));
  }

  // One request's broken numbers are that request's error.
  void not_numbers(Sequence& sequence) {
    TokenEvent error;
    error.error = "the model's logits are not numbers; the checkpoint or its dtype is at fault";
    finish(&sequence, std::move(error), FinishReason::kError);
  }

  // The sequence's next token, final.
  void take(Sequence& sequence, TokenEvent event) {
    const Request& request = sequence.request;
    event.time = now_;
    sequence.last_token = now_;
    sequence.tokens.push_back(event.token);
    if (request.constraint != nullptr) request.constraint->accept(event.token);
    ++stats_now_.generated_tokens;
    if (sequence.num_generated() == 1) first_token(sequence, &event);
    FinishReason reason = stop_reason(sequence, stop_ids_of(request));
    if (sequence.loop_guard != nullptr &&
        sequence.loop_guard->push(event.token) == LoopVerdict::kStop &&
        reason == FinishReason::kNone)
      reason = FinishReason::kRepetition;
    if (reason == FinishReason::kNone) {
      sequence.channel->events.push(std::move(event));
      return;
    }
    if (reason == FinishReason::kStop) event.stop_token = event.token;
    finish(&sequence, std::move(event), reason);
  }

  // vLLM's order: too few tokens, a stop token, the length.
  FinishReason stop_reason(const Sequence& sequence, std::span<const int32_t> stop_ids) const {
    const Request& request = sequence.request;
    if (sequence.num_generated() < request.sampling.min_tokens &&
        sequence.num_generated() < request.max_tokens)
      return FinishReason::kNone;
    if (std::ranges::find(stop_ids, sequence.tokens.back()) != stop_ids.end())
      return FinishReason::kStop;
    if (sequence.num_generated() >= request.max_tokens ||
        static_cast<int32_t>(sequence.tokens.size()) >= plan_.max_model_len)
      return FinishReason::kLength;
    return FinishReason::kNone;
  }

  void first_token(Sequence& sequence, TokenEvent* event) {
    sequence.first_token = now_;
    event->num_cached_tokens = sequence.num_from_device + sequence.num_from_tiers;
    event->prompt_logprobs = std::move(sequence.prompt_logprobs);
    stats_now_.prompt_tokens += sequence.num_prompt();
    stats_now_.prompt_tokens_from_device += sequence.num_from_device;
    stats_now_.prompt_tokens_from_tiers += sequence.num_from_tiers;
    stats_now_.prompt_tokens_computed += sequence.num_prompt() - event->num_cached_tokens;
  }

  void finish(Sequence* sequence, TokenEvent event, FinishReason reason) {
    const std::unique_ptr<Sequence> owned = scheduler_->remove(sequence);
    event.finish = reason;
    event.time = std::chrono::steady_clock::now();
    event.report = report(*owned, event.time);
    ++stats_now_.finished[static_cast<size_t>(reason)];
    {
      std::lock_guard lock(mutex_);
      publish_stats();  // before the last event, so that a client that has it sees it counted
    }
    owned->channel->events.push(std::move(event));
  }

  static RequestReport report(const Sequence& sequence, Sequence::Time end) {
    const auto between = [](Sequence::Time from, Sequence::Time to) {
      const bool known = from != Sequence::Time() && to != Sequence::Time();
      return known ? std::chrono::duration<double>(to - from).count() : 0.0;
    };
    const int32_t cached = sequence.num_from_device + sequence.num_from_tiers;
    return {.num_prompt_tokens = sequence.num_prompt(),
            .num_generated_tokens = sequence.num_generated(),
            .num_cached_tokens = cached,
            .num_computed_tokens = sequence.num_prompt() - cached,
            .num_preemptions = sequence.num_preemptions,
            .queue_seconds = between(sequence.submitted, sequence.first_scheduled),
            .prefill_seconds = between(sequence.first_scheduled, sequence.first_token),
            .decode_seconds = between(sequence.first_token, sequence.last_token),
            .time_to_first_token_seconds = between(sequence.submitted, sequence.first_token),
            .e2e_seconds = between(sequence.submitted, end)};
  }

  void finish_unscheduled(const Sequence& sequence) {
    TokenEvent event;
    event.finish = FinishReason::kAbort;
    event.time = std::chrono::steady_clock::now();
    event.report = report(sequence, event.time);
    sequence.channel->events.push(std::move(event));
  }

  void count_step(int32_t num_tokens) {
    ++stats_now_.num_steps;
    stats_now_.step_tokens_sum += num_tokens;
    const auto bucket = std::ranges::lower_bound(kStepTokenBounds, num_tokens);
    ++stats_now_.step_tokens[static_cast<size_t>(bucket - kStepTokenBounds.begin())];
  }

  // Under mutex_.
  void publish_stats() {
    const SchedulerCounters& counters = scheduler_->counters();
    stats_now_.num_running = scheduler_->num_running();
    stats_now_.num_waiting_capacity = scheduler_->num_waiting();
    stats_now_.num_waiting_deferred = static_cast<int>(loading_.size());
    stats_now_.num_waiting = stats_now_.num_waiting_capacity + stats_now_.num_waiting_deferred;
    stats_now_.kv_usage = scheduler_->kv_usage();
    stats_now_.num_preemptions = counters.num_preemptions;
    stats_now_.prefix_cache_queries = counters.device_queries;
    stats_now_.prefix_cache_hits = counters.device_hits;
    stats_now_.external_prefix_cache_queries = counters.tier_queries;
    stats_now_.external_prefix_cache_hits = counters.tier_hits;
    stats_now_.cache = {};
    CacheConfig cache = std::move(stats_.cache);
    stats_ = stats_now_;
    stats_.cache = std::move(cache);
  }

  struct Loading {
    uint64_t ticket = 0;
    std::unique_ptr<Sequence> sequence;
  };
  struct Sampling {
    Sequence* sequence;
    int64_t row;  // of the logits
  };

  EngineOptions options_;
  StartPhases phases_;
  DeviceMemoryInfo before_;
  int64_t allocations_at_ready_ = 0;
  std::unique_ptr<Device> device_;
  Model model_;
  MemoryPlan plan_;
  std::unique_ptr<ModelRunner> runner_;  // engine thread only, like what follows
  std::unique_ptr<Scheduler> scheduler_;
  Sampler sampler_;
  const LoopGuardMode loop_guard_;
  std::vector<Sampling> sampling_;
  std::vector<std::unique_ptr<Sequence>> incoming_;
  std::vector<Loading> loading_;
  uint64_t last_ticket_ = 0;
  EngineStats stats_now_;
  Sequence::Time now_;  // when the step's tokens were there

  mutable std::mutex mutex_;  // guards the rest
  std::condition_variable wake_;
  std::condition_variable reset_done_;
  std::vector<std::unique_ptr<Sequence>> inbox_;
  int num_waiting_ = 0;
  int64_t num_submitted_ = 0;
  int64_t num_resets_asked_ = 0;
  int64_t num_resets_done_ = 0;
  bool reset_succeeded_ = false;
  bool disk_done_ = false;
  EngineStats stats_;
  // Joined in this order before anything they use goes away: the engine thread, then the disk's.
  std::unique_ptr<DiskTier> disk_;
  std::jthread thread_;
};

}  // namespace

Result<std::unique_ptr<Engine>> Engine::start(const ModelDir& dir, const EngineOptions& options) {
  NB_TRY_STATUS(parse_logprobs_mode(options.logprobs_mode));
  NB_TRY_STATUS(parse_loop_guard_mode(options.loop_guard));
  StartPhases phases;
  NB_TRY(std::unique_ptr<Device> device, open_device(options));
  if (options.batch_invariant && !device->batch_invariant())
    return make_error(ErrorCode::kUnsupported,
                      "--batch-invariant: the kernels of {} sum in an order that depends on the "
                      "batch; serve without the flag, or on the CPU",
                      device->name());
  log_info("device {}: {}", device->name(), device->description());
  phases.end("opened");
  NB_TRY(const DType dtype, parse_activation_dtype(options.dtype, device->natural_dtype()));
  if (options.tensor_parallel_size != 1)
    return make_error(ErrorCode::kUnsupported,
                      "--tensor-parallel-size {}: this build serves on one device; nibble plan "
                      "counts for several",
                      options.tensor_parallel_size);
  const DeviceMemoryInfo before = device->memory();
  NB_TRY(Model model, Model::load(dir, *device, dtype, dense_storage(options, *device)));
  phases.end("loaded");
  auto engine =
      std::make_unique<EngineImpl>(std::move(device), std::move(model), options, before, phases);
  NB_TRY_STATUS(engine->prepare(dir));
  return std::unique_ptr<Engine>(std::move(engine));
}

}  // namespace nibble
