// A queue, and threads that live until stop().
#include "net/worker_pool.h"

#include <system_error>
#include <utility>

namespace nibble {

bool WorkerPool::submit(std::function<void()> job) {
  std::lock_guard lock(mutex_);
  if (stopping_) return false;
  const bool can_grow = threads_.size() < max_threads_;
  if (num_idle_ <= jobs_.size() && can_grow) {
    try {
      threads_.emplace_back([this] { work(); });
    } catch (const std::system_error&) {  // out of threads: those that exist go on
      if (threads_.empty()) return false;
    }
  } else if (jobs_.size() >= max_queued_) {
    return false;
  }
  jobs_.push_back(std::move(job));
  ready_.notify_one();
  return true;
}

void WorkerPool::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  ready_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void WorkerPool::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    ++num_idle_;
    ready_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
    --num_idle_;
    if (jobs_.empty()) return;
    const std::function<void()> job = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    job();
    lock.lock();
  }
}

}  // namespace nibble
