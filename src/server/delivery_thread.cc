// A queue of tasks that have something to do; each is in it at most once.
#include "server/delivery_thread.h"

#include <utility>

namespace nibble {

DeliveryThread::DeliveryThread() : thread_([this] { loop(); }) {}

DeliveryThread::~DeliveryThread() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  ready_.notify_one();
  thread_.join();
}

void DeliveryThread::run(Task& task) {
  std::unique_lock lock(mutex_);
  task.state_ = Task::State::kQueued;
  queue_.push_back(&task);
  ready_.notify_one();
  task.returned_.wait(lock, [&] { return task.state_ == Task::State::kAway; });
  if (task.failure_) std::rethrow_exception(std::exchange(task.failure_, nullptr));
}

void DeliveryThread::wake(Task& task) {
  std::lock_guard lock(mutex_);
  if (task.state_ == Task::State::kWorking) task.state_ = Task::State::kWorkingAgain;
  if (task.state_ != Task::State::kIdle) return;
  task.state_ = Task::State::kQueued;
  queue_.push_back(&task);
  if (queue_.size() == 1) ready_.notify_one();
}

void DeliveryThread::loop() {
  std::vector<Task*> batch;
  std::unique_lock lock(mutex_);
  while (true) {
    ready_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (queue_.empty()) return;
    batch.swap(queue_);
    for (Task* task : batch) {
      task->state_ = Task::State::kWorking;
      lock.unlock();
      bool away = true;
      std::exception_ptr failure;
      try {
        away = task->work();
      } catch (...) {
        failure = std::current_exception();
      }
      lock.lock();
      if (away) {
        task->failure_ = std::move(failure);
        task->state_ = Task::State::kAway;
        task->returned_.notify_one();  // under the lock: the task may be gone right after it
      } else if (task->state_ == Task::State::kWorkingAgain) {
        task->state_ = Task::State::kQueued;
        queue_.push_back(task);
      } else {
        task->state_ = Task::State::kIdle;
      }
    }
    batch.clear();
  }
}

}  // namespace nibble
