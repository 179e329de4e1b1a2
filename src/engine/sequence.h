// One request on its way through the engine: its tokens, its slots, and the queue its events leave
// by.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "engine/block_hash.h"
#include "engine/loop_guard.h"
#include "engine/request.h"

namespace nibble {

// Events of one request, a ring. The engine thread pushes, one client thread at a time pops.
// Pushing allocates only when the client is behind by more events than room was made for.
class EventQueue {
 public:
  static constexpr size_t kMostRoom = 1024;
  EventQueue() : events_(64) {}
  // Room for `count` events, within reason. Before the first push.
  void reserve(size_t count) {
    events_.resize(std::max(events_.size(), std::bit_ceil(std::min(count, kMostRoom))));
  }

  void push(TokenEvent event) {
    {
      std::lock_guard lock(mutex_);
      if (size_ == events_.size()) grow();
      events_[(first_ + size_++) & (events_.size() - 1)] = std::move(event);
      if (wake_ && size_ == 1) wake_();
    }
    ready_.notify_one();
  }
  TokenEvent pop() {
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [&] { return size_ > 0; });
    return take();
  }
  bool try_pop(TokenEvent* event) {
    std::lock_guard lock(mutex_);
    if (size_ == 0) return false;
    *event = take();
    return true;
  }
  // As RequestHandle::on_event().
  void set_wake(std::function<void()> wake) {
    std::lock_guard lock(mutex_);
    wake_ = std::move(wake);
    if (wake_ && size_ > 0) wake_();
  }

 private:
  TokenEvent take() {
    TokenEvent event = std::move(events_[first_]);
    first_ = (first_ + 1) & (events_.size() - 1);
    --size_;
    return event;
  }
  void grow() {
    std::vector<TokenEvent> larger(2 * events_.size());
    for (size_t i = 0; i < size_; ++i)
      larger[i] = std::move(events_[(first_ + i) & (events_.size() - 1)]);
    events_ = std::move(larger);
    first_ = 0;
  }

  std::mutex mutex_;
  std::condition_variable ready_;
  std::function<void()> wake_;
  std::vector<TokenEvent> events_;  // a power of two
  size_t first_ = 0;
  size_t size_ = 0;
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
  using Time = std::chrono::steady_clock::time_point;

  Request request;
  std::shared_ptr<RequestChannel> channel;
  std::vector<int32_t> tokens;  // prompt, then what was generated
  int32_t num_computed = 0;     // tokens whose keys, values and states are in the caches
  std::vector<int32_t> blocks;  // KV blocks, in order of position
  int32_t state_slot = -1;      // of the recurrent states; -1 while not running
  int64_t arrival = 0;          // order of submission
  uint64_t seed = 0;            // of this request's random draws

  std::unique_ptr<LoopGuard> loop_guard;  // null: nothing to watch for

  // Prefix cache; see scheduler.cc.
  BlockHash root;                 // what the first block's hash is chained to
  std::vector<BlockHash> hashes;  // of full blocks of `tokens`, as far as known
  int32_t num_published = 0;      // blocks that have their name in the cache
  int32_t branch = 0;             // leaves a kept prefix at this token; 0: nowhere
  int32_t last_snapshot = 0;      // position of the newest one, in tokens
  int32_t rolling_snapshot = -1;  // its slot, while generating
  BlockHash rolling_hash;         // the slot is still ours if it has this name

  // Scheduling.
  int32_t client = -1;      // index of the scheduler's
  bool admitted = false;    // has run before: was preempted if it waits
  int32_t step_index = -1;  // in the planned step

  // What its report will say.
  int32_t num_from_device = 0;  // prompt tokens resumed at the first admission
  int32_t num_from_tiers = 0;
  int32_t num_from_disk = 0;  // tokens read from disk to host memory for it
  int32_t num_preemptions = 0;
  Time submitted, first_scheduled, first_token, last_token;
  std::vector<std::vector<TokenLogprob>> prompt_logprobs;

  int32_t num_prompt() const { return static_cast<int32_t>(request.prompt.size()); }
  int32_t num_generated() const { return static_cast<int32_t>(tokens.size()) - num_prompt(); }
  int32_t num_pending() const { return static_cast<int32_t>(tokens.size()) - num_computed; }
  // Logits of every prompt row are wanted, so nothing of the prompt may come from the cache.
  bool wants_prompt_logprobs() const {
    return request.sampling.num_prompt_logprobs >= 0 && num_generated() == 0;
  }
};

}  // namespace nibble
