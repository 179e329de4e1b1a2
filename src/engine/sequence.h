// One request on its way through the engine: its tokens, its slots, and the queue its events leave
// by.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "engine/request.h"

namespace nibble {

// Events of one request. The engine thread pushes, one client thread pops.
class EventQueue {
 public:
  void push(TokenEvent event) {
    {
      std::lock_guard lock(mutex_);
      events_.push_back(std::move(event));
    }
    ready_.notify_one();
  }
  TokenEvent pop() {
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [&] { return !events_.empty(); });
    TokenEvent event = std::move(events_.front());
    events_.pop_front();
    return event;
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<TokenEvent> events_;
};

// What client and engine share; outlives either.
struct RequestChannel {
  EventQueue events;
  std::atomic<bool> cancelled{false};
};

//                 num_computed                        tokens.size()
//   |----- cached -----|------- still to run ---------|
//   prompt tokens                 | generated tokens
struct Sequence {
  Request request;
  std::shared_ptr<RequestChannel> channel;
  std::vector<int32_t> tokens;  // prompt, then what was generated
  int32_t num_computed = 0;     // tokens whose keys, values and states are in the caches
  std::vector<int32_t> blocks;  // KV blocks, in order of position
  int32_t state_slot = -1;      // of the recurrent states; -1 while not running
  int64_t arrival = 0;          // order of submission
  uint64_t seed = 0;            // of this request's random draws

  int32_t num_prompt() const { return static_cast<int32_t>(request.prompt.size()); }
  int32_t num_generated() const { return static_cast<int32_t>(tokens.size()) - num_prompt(); }
  int32_t num_pending() const { return static_cast<int32_t>(tokens.size()) - num_computed; }
};

}  // namespace nibble
