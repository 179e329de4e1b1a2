// Times single steps of a loaded model through ModelRunner, as serving runs them, without requests:
// what `nibble bench decode` and `bench prefill` print.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "device/wrap/timing_ops.h"
#include "engine/memory_plan.h"

namespace nibble {

// Every sequence has `context` tokens cached and adds `num_tokens`.
struct StepShape {
  int32_t num_seqs = 1;
  int32_t context = 0;
  int32_t num_tokens = 1;
};

struct StepTiming {
  StepShape shape;
  StepCost cost = {};  // what the step needs at least, by the forward pass itself
  double seconds = 0;
  bool recorded = false;  // replayed as one (CUDA graphs)
  // Seconds by OpClass when each operation waits for the one before; empty unless asked for.
  std::optional<std::array<double, 5>> class_seconds = {};
};

struct StepTimingOptions {
  int repeats = 20;           // timed steps; the median counts
  bool by_class = false;      // one more step, operation by operation
  bool whole_logits = false;  // bring logits to the host, as sampling needs; else greedy choices
};

// The same step over and over: the context is not computed but filled with random keys and values,
// each sequence in blocks of its own, and a step overwrites what the one before wrote. Reserves
// memory by the engine's own plan and gives it back. `target` is the device's memory before the
// model was loaded. kOutOfMemory when the shape does not fit.
Result<StepTiming> time_step(const Model& model, Device& device, const MemoryTarget& target,
                             EngineOptions engine, const StepShape& shape,
                             const StepTimingOptions& options);

}  // namespace nibble
