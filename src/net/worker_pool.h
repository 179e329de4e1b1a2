// Threads for blocking HTTP handlers: started on demand up to a limit, fed by a bounded queue.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace nibble {

class WorkerPool {
 public:
  WorkerPool(int max_threads, int max_queued)
      : max_threads_(static_cast<size_t>(max_threads)),
        max_queued_(static_cast<size_t>(max_queued)) {}
  ~WorkerPool() { stop(); }
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // False when the queue is full or no thread can be started; the job is not kept then.
  bool submit(std::function<void()> job);
  // Runs what is queued, then joins. Later jobs are refused.
  void stop();

 private:
  void work();

  const size_t max_threads_;
  const size_t max_queued_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<std::function<void()>> jobs_;
  std::vector<std::thread> threads_;
  size_t num_idle_ = 0;
  bool stopping_ = false;
};

}  // namespace nibble
