// The engine: takes requests in token ids, runs them in one thread by continuous batching, hands
// tokens back through one queue per request. Knows no text and no HTTP.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "checkpoint/model_dir.h"
#include "device/device.h"
#include "engine/memory_plan.h"
#include "engine/options.h"
#include "engine/request.h"
#include "model/config.h"

namespace nibble {

// One submitted request. Thread-safe. Dropping it cancels the request.
class RequestHandle {
 public:
  virtual ~RequestHandle() = default;
  // Blocks for the next event; after one with a finish reason there are none.
  virtual TokenEvent next() = 0;
  // The next event if one is there. Together with on_event(), for a thread that serves many
  // requests; false from an engine that can only be waited for.
  virtual bool try_next(TokenEvent* event) {
    (void)event;
    return false;
  }
  // From now on the engine calls `wake` when an event comes and none was left; at once if there is
  // one. It is called under a lock of this request's, so it must be quick and not call back. Null
  // takes it back; no call is under way then. False: this engine can only be waited for.
  virtual bool on_event(std::function<void()> wake) {
    (void)wake;
    return false;
  }
  // The sequence leaves the batch before the next step; the last event is kAbort.
  virtual void cancel() = 0;
};

// What `vllm:cache_config_info` says; fixed at the start.
struct CacheConfig {
  int block_size = 0;       // tokens
  std::string dtype;        // of keys and values
  int num_blocks = 0;       // on the device
  int num_snapshots = 0;    // states of prefixes on the device; 0 for pure attention
  int num_host_blocks = 0;  // of the second tier
  bool prefix_caching = false;
  bool disk = false;  // --cache-dir
};

// A histogram of tokens per step; counts[i] steps had at most kStepTokenBounds[i] tokens and more
// than the bound before, the last count is of larger ones.
inline constexpr std::array<int, 13> kStepTokenBounds = {1,   8,    16,   32,   64,   128,  256,
                                                         512, 1024, 2048, 4096, 8192, 16384};

// Totals are since the start.
struct EngineStats {
  int num_running = 0;
  int num_waiting = 0;           // for room: all of the next two
  int num_waiting_capacity = 0;  // could run but for slots, blocks or the step budget
  int num_waiting_deferred = 0;  // wait for their cached prefix to be read from disk
  double kv_usage = 0;           // 0..1, of blocks that running sequences hold
  int64_t prompt_tokens = 0;     // of requests that reached their first token
  int64_t generated_tokens = 0;
  int64_t num_preemptions = 0;
  int64_t num_steps = 0;

  // In tokens, as vLLM counts: every lookup queries the whole prompt.
  int64_t prefix_cache_queries = 0;
  int64_t prefix_cache_hits = 0;  // on the device
  int64_t external_prefix_cache_queries = 0;
  int64_t external_prefix_cache_hits = 0;  // from host memory or disk
  // prompt_tokens by where they came from; they add up to it.
  int64_t prompt_tokens_computed = 0;
  int64_t prompt_tokens_from_device = 0;
  int64_t prompt_tokens_from_tiers = 0;
  int64_t prompt_tokens_cached() const {
    return prompt_tokens_from_device + prompt_tokens_from_tiers;
  }

  std::array<int64_t, kNumFinishReasons> finished{};  // index: FinishReason
  std::array<int64_t, kStepTokenBounds.size() + 1> step_tokens{};
  int64_t step_tokens_sum = 0;

  int64_t num_disk_writes = 0;  // slots written to --cache-dir
  int64_t num_disk_reads = 0;
  int64_t num_disk_rejects = 0;  // files that were corrupt or of another model
  int64_t disk_bytes = 0;        // held now
  CacheConfig cache;
  int64_t num_allocations_after_ready = 0;  // of device memory, in the whole process; must stay 0
};

class Engine {
 public:
  // Loads weights, reserves all memory, starts the engine thread. `model` must outlive the engine:
  // on a CPU its weights stay in the mapped files.
  static Result<std::unique_ptr<Engine>> start(const ModelDir& model, const EngineOptions& options);
  virtual ~Engine() = default;

  // kInvalidArgument when the request can never fit (with the numbers), kOverloaded when the queue
  // is full.
  virtual Result<std::unique_ptr<RequestHandle>> submit(Request request) = 0;
  virtual EngineStats stats() const = 0;
  // Forgets cached prefixes on the device and in host memory. False when requests are running.
  virtual bool reset_prefix_cache() { return false; }
  // What was planned at the start, and is held. Empty for an engine that plans nothing.
  virtual MemoryPlan memory_plan() const { return {}; }
  virtual const ModelSpec& spec() const = 0;
  virtual int max_model_len() const = 0;
};

}  // namespace nibble
