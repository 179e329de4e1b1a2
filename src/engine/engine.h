// The engine: takes requests in token ids, runs them in one thread by continuous batching, hands
// tokens back through one queue per request. Knows no text and no HTTP.
#pragma once

#include <memory>

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
  // The sequence leaves the batch before the next step; the last event is kAbort.
  virtual void cancel() = 0;
};

struct EngineStats {
  int num_running = 0;
  int num_waiting = 0;
  double kv_usage = 0;        // 0..1
  int64_t prompt_tokens = 0;  // totals since start
  int64_t generated_tokens = 0;
  int64_t num_preemptions = 0;
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
  // What was planned at the start, and is held. Empty for an engine that plans nothing.
  virtual MemoryPlan memory_plan() const { return {}; }
  virtual const ModelSpec& spec() const = 0;
  virtual int max_model_len() const = 0;
};

}  // namespace nibble
