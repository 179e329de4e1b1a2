// One thread that carries the tokens of all answers at work. Their handlers sleep meanwhile: a step
// of the engine wakes this thread, not one thread per sequence (bench_server_overhead).
#pragma once

#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace nibble {

class DeliveryThread {
 public:
  // What one handler has done here.
  class Task {
   public:
    // On this thread, never waiting for anything: does what there is to do. True: the handler goes
    // on by itself, be it that all is done or that waiting is needed.
    virtual bool work() = 0;

   protected:
    ~Task() = default;

   private:
    friend class DeliveryThread;
    enum class State { kAway, kIdle, kQueued, kWorking, kWorkingAgain };
    State state_ = State::kAway;
    std::exception_ptr failure_;
    std::condition_variable returned_;
  };

  DeliveryThread();
  ~DeliveryThread();  // after all run() have returned

  // Calls task.work() now and after each wake(), until it returns true; blocks. What work() throws
  // is thrown here.
  void run(Task& task);
  // Any thread, at any time in the task's life; nothing to do for one that is not in run().
  void wake(Task& task);

 private:
  void loop();

  std::mutex mutex_;
  std::condition_variable ready_;
  std::vector<Task*> queue_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace nibble
