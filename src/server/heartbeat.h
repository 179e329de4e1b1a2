// Whether the engine still makes steps: what /health says. Looked at whenever somebody asks, so it
// needs no thread. Thread-safe.
#pragma once

#include <chrono>
#include <mutex>

#include "engine/engine.h"

namespace nibble {

class Heartbeat {
 public:
  using Clock = std::chrono::steady_clock;
  // `limit`: how long a step may take.
  explicit Heartbeat(std::chrono::seconds limit) : limit_(limit) {}

  // False when requests have been running for the limit and no step has ended: seen by two looks
  // that far apart, with no step in between.
  bool alive(const EngineStats& stats, Clock::time_point now = Clock::now()) {
    std::lock_guard lock(mutex_);
    if (stats.num_running == 0 || stats.num_steps != num_steps_) {
      num_steps_ = stats.num_steps;
      since_ = now;
    }
    return now - since_ < limit_;
  }

 private:
  const std::chrono::seconds limit_;
  std::mutex mutex_;
  int64_t num_steps_ = -1;  // at the last look that saw a change
  Clock::time_point since_;
};

}  // namespace nibble
