// Workers sleep on a condition variable, wake for a loop, and take ranges from one counter.
// A loop ends only when every worker has joined it and left again, even one that woke too late to
// get a range: so no worker can sleep through a loop into the next, nor touch a body that is gone.
#include "base/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "base/host_limits.h"
#include "base/log.h"

namespace nibble {
namespace {
thread_local bool inside_loop = false;
}

struct ThreadPool::State {
  std::mutex loop_mutex;  // held by the thread that runs a loop
  std::mutex mutex;       // guards what follows
  std::condition_variable wake;
  std::condition_variable done;
  uint64_t generation = 0;
  int num_active = 0;
  bool stopping = false;

  const std::function<void(size_t, size_t)>* body = nullptr;
  size_t count = 0;
  size_t step = 0;
  std::atomic<size_t> next{0};
  std::vector<std::jthread> workers;

  // noexcept: a body that throws would leave other threads inside a loop whose caller is gone.
  void drain() noexcept {
    inside_loop = true;
    for (size_t begin = next.fetch_add(step); begin < count; begin = next.fetch_add(step))
      (*body)(begin, std::min(begin + step, count));
    inside_loop = false;
  }

  void work() {
    uint64_t seen = 0;
    while (true) {
      {
        std::unique_lock lock(mutex);
        wake.wait(lock, [&] { return stopping || generation != seen; });
        if (stopping) return;
        seen = generation;
      }
      drain();
      std::lock_guard lock(mutex);
      if (--num_active == 0) done.notify_one();
    }
  }
};

ThreadPool::ThreadPool(int num_threads) : state_(std::make_unique<State>()) {
  if (num_threads <= 0) num_threads = usable_threads();
  try {
    for (int i = 1; i < num_threads; ++i)
      state_->workers.emplace_back([state = state_.get()] { state->work(); });
  } catch (const std::system_error& error) {  // a limit on processes: go on with what there is
    log_warning("thread pool is smaller than asked for: {} num_threads={} wanted={}", error.what(),
                state_->workers.size() + 1, num_threads);
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stopping = true;
  }
  state_->wake.notify_all();
}

int ThreadPool::num_threads() const {
  return static_cast<int>(state_->workers.size()) + 1;
}

void ThreadPool::parallel_for(size_t count, size_t grain,
                              const std::function<void(size_t, size_t)>& body) {
  if (count == 0) return;
  const size_t num_threads = state_->workers.size() + 1;
  grain = std::max<size_t>(grain, 1);
  if (inside_loop || num_threads == 1 || count <= grain) {
    body(0, count);
    return;
  }
  std::lock_guard loop_lock(state_->loop_mutex);
  State& state = *state_;
  {
    std::lock_guard lock(state.mutex);
    state.body = &body;
    state.count = count;
    // About four ranges per thread even out uneven work at little cost.
    state.step = std::max(grain, (count - 1) / (num_threads * 4) + 1);
    state.next = 0;
    state.num_active = static_cast<int>(num_threads) - 1;
    ++state.generation;
  }
  state.wake.notify_all();
  state.drain();
  std::unique_lock lock(state.mutex);
  state.done.wait(lock, [&] { return state.num_active == 0; });
}

}  // namespace nibble
