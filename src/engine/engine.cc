// The engine thread: take new requests, plan, run, sample, hand out, repeat. Clients touch only the
// inbox (under one mutex) and their own channel.
#include "engine/engine.h"

#include <algorithm>
#include <mutex>
#include <thread>

#include "base/allocation_counter.h"
#include "base/format.h"
#include "base/log.h"
#include "engine/memory_plan.h"
#include "engine/model_runner.h"
#include "engine/rehearsal.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"

namespace nibble {
namespace {

class Handle final : public RequestHandle {
 public:
  explicit Handle(std::shared_ptr<RequestChannel> channel) : channel_(std::move(channel)) {}
  ~Handle() override { cancel(); }
  TokenEvent next() override { return channel_->events.pop(); }
  // The engine thread looks at the flag before each step; while a sequence lives it never sleeps.
  void cancel() override { channel_->cancelled = true; }

 private:
  std::shared_ptr<RequestChannel> channel_;
};

class EngineImpl final : public Engine {
 public:
  // `before`: the device's memory before the model was loaded.
  EngineImpl(std::unique_ptr<Device> device, Model model, const EngineOptions& options,
             const DeviceMemoryInfo& before)
      : options_(options),
        before_(before),
        device_(std::move(device)),
        model_(std::move(model)),
        sampler_(model_.spec().vocab_size) {}

  Status prepare() {
    MemoryTarget target = memory_target(*device_, before_);
    NB_TRY(plan_, plan_or_explain(target));
    Result<ModelRunner> runner = ModelRunner::create(model_, *device_, plan_);
    if (!runner) return refused(runner.error());
    runner_ = std::make_unique<ModelRunner>(std::move(*runner));
    NB_TRY(const Rehearsal rehearsal, rehearse(*runner_, model_, plan_, before_.is_host));
    scheduler_ = std::make_unique<Scheduler>(
        SchedulerOptions{.num_blocks = plan_.caches.num_blocks,
                         .block_size = plan_.caches.block_size,
                         .max_num_seqs = plan_.max_num_seqs,
                         .max_num_batched_tokens = plan_.max_num_batched_tokens});
    const auto text = [](size_t bytes) { return format_bytes(static_cast<double>(bytes)); };
    log_info(
        "memory planned total={} of={} weights={} kv={} states={} snapshots={} activations={} "
        "max_model_len={} kv_tokens={} concurrency={:.2f}",
        text(plan_.total_bytes()), text(plan_.budget_bytes), text(plan_.weights.total()),
        text(plan_.kv_bytes), text(plan_.recurrent_bytes + plan_.conv_bytes),
        text(plan_.snapshot_bytes), text(plan_.activation_bytes), plan_.max_model_len,
        plan_.kv_tokens(), plan_.concurrency());
    log_info("rehearsal passed sequences={} tokens={} context={} whole={}", rehearsal.num_sequences,
             rehearsal.num_tokens, rehearsal.longest_context, rehearsal.whole);
    allocations_at_ready_ = num_allocations();
    thread_ = std::jthread([this](std::stop_token stop) { loop(stop); });
    return {};
  }

  ~EngineImpl() override {
    thread_.request_stop();
    wake_.notify_all();
  }

  Result<std::unique_ptr<RequestHandle>> submit(Request request) override {
    NB_TRY_STATUS(check(request));
    auto sequence = std::make_unique<Sequence>();
    sequence->channel = std::make_shared<RequestChannel>();
    sequence->tokens.reserve(request.prompt.size() + static_cast<size_t>(request.max_tokens));
    sequence->tokens = request.prompt;
    sequence->request = std::move(request);
    auto handle = std::make_unique<Handle>(sequence->channel);
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
    return stats;
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
                      error.message, format_bytes(static_cast<double>(plan_.total_bytes())),
                      format_bytes(static_cast<double>(now.free_bytes)), held_by(now.holders));
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

  void loop(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      take_inbox(stop);
      drop_cancelled();
      const std::vector<ScheduledSequence>& step = scheduler_->plan();
      if (step.empty()) continue;
      run_step(step);
    }
    for (Sequence* sequence : scheduler_->sequences()) finish(sequence, {}, FinishReason::kAbort);
    std::lock_guard lock(mutex_);
    for (const auto& sequence : inbox_) finish_unscheduled(*sequence);
    inbox_.clear();
  }

  // Moves new requests to the scheduler; sleeps while there is nothing to do.
  void take_inbox(const std::stop_token& stop) {
    std::unique_lock lock(mutex_);
    const bool idle = scheduler_->num_running() + scheduler_->num_waiting() == 0;
    if (idle) {
      publish_stats();
      wake_.wait(lock, [&] { return stop.stop_requested() || !inbox_.empty(); });
    }
    for (auto& sequence : inbox_) scheduler_->add(std::move(sequence));
    inbox_.clear();
    num_waiting_ = scheduler_->num_waiting();
    publish_stats();
  }

  void drop_cancelled() {
    for (Sequence* sequence : scheduler_->sequences())
      if (sequence->channel->cancelled) finish(sequence, {}, FinishReason::kAbort);
  }

  void run_step(const std::vector<ScheduledSequence>& step) {
    const Tensor logits = runner_->run(step);
    // commit() clears the plan, and sampling needs it: keep those that sample.
    sampling_.clear();
    for (const ScheduledSequence& scheduled : step)
      if (scheduled.wants_logits) sampling_.push_back(scheduled.sequence);
    scheduler_->commit();
    for (size_t row = 0; row < sampling_.size(); ++row) {
      const Tensor values = logits.rows(static_cast<int64_t>(row), static_cast<int64_t>(row) + 1);
      sample(*sampling_[row], {values.as<float>(), static_cast<size_t>(values.num_elements())});
    }
  }

  void sample(Sequence& sequence, std::span<float> logits) {
    const Request& request = sequence.request;
    const std::span<const int32_t> tokens = sequence.tokens;
    const std::span<const int32_t> stop_ids =
        request.ignore_eos ? std::span<const int32_t>() : request.stop_token_ids;
    TokenEvent event = sampler_.sample({.logits = logits,
                                        .params = &request.sampling,
                                        .prompt = tokens.first(request.prompt.size()),
                                        .generated = tokens.subspan(request.prompt.size()),
                                        .stop_token_ids = stop_ids,
                                        .seed = sequence.seed});
    sequence.tokens.push_back(event.token);
    ++num_generated_tokens_;
    if (sequence.num_generated() == 1) num_prompt_tokens_ += sequence.num_prompt();
    if (std::ranges::find(stop_ids, event.token) != stop_ids.end()) {
      event.stop_token = event.token;
      finish(&sequence, std::move(event), FinishReason::kStop);
    } else if (sequence.num_generated() >= request.max_tokens) {
      finish(&sequence, std::move(event), FinishReason::kLength);
    } else {
      sequence.channel->events.push(std::move(event));
    }
  }

  void finish(Sequence* sequence, TokenEvent event, FinishReason reason) {
    event.finish = reason;
    const std::unique_ptr<Sequence> owned = scheduler_->remove(sequence);
    {
      std::lock_guard lock(mutex_);
      publish_stats();  // before the last event, so that a client that has it sees it counted
    }
    owned->channel->events.push(std::move(event));
  }

  static void finish_unscheduled(Sequence& sequence) {
    TokenEvent event;
    event.finish = FinishReason::kAbort;
    sequence.channel->events.push(std::move(event));
  }

  // Under mutex_.
  void publish_stats() {
    stats_.num_running = scheduler_->num_running();
    stats_.num_waiting = scheduler_->num_waiting();
    stats_.kv_usage = scheduler_->kv_usage();
    stats_.num_preemptions = scheduler_->num_preemptions();
    stats_.prompt_tokens = num_prompt_tokens_;
    stats_.generated_tokens = num_generated_tokens_;
  }

  EngineOptions options_;
  DeviceMemoryInfo before_;
  int64_t allocations_at_ready_ = 0;
  std::unique_ptr<Device> device_;
  Model model_;
  MemoryPlan plan_;
  std::unique_ptr<ModelRunner> runner_;  // engine thread only, like what follows
  std::unique_ptr<Scheduler> scheduler_;
  Sampler sampler_;
  std::vector<Sequence*> sampling_;
  int64_t num_prompt_tokens_ = 0;
  int64_t num_generated_tokens_ = 0;

  mutable std::mutex mutex_;  // guards the rest
  std::condition_variable wake_;
  std::vector<std::unique_ptr<Sequence>> inbox_;
  int num_waiting_ = 0;
  int64_t num_submitted_ = 0;
  EngineStats stats_;
  std::jthread thread_;  // last: joins before anything it uses goes away
};

}  // namespace

Result<std::unique_ptr<Engine>> Engine::start(const ModelDir& dir, const EngineOptions& options) {
  NB_TRY(const DType dtype, parse_activation_dtype(options.dtype));
  NB_TRY(std::unique_ptr<Device> device, open_device(options.backend, options.num_threads));
  if (options.tensor_parallel_size != 1)
    return make_error(ErrorCode::kUnsupported,
                      "--tensor-parallel-size {}: this build serves on one device; nibble plan "
                      "counts for several",
                      options.tensor_parallel_size);
  const DeviceMemoryInfo before = device->memory();
  NB_TRY(Model model, Model::load(dir, *device, dtype));
  auto engine = std::make_unique<EngineImpl>(std::move(device), std::move(model), options, before);
  NB_TRY_STATUS(engine->prepare());
  return std::unique_ptr<Engine>(std::move(engine));
}

}  // namespace nibble
