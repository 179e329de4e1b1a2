// A fixed set of threads for data-parallel loops. One loop runs at a time; loops do not nest.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <memory>

namespace nibble {

class ThreadPool {
 public:
  // `num_threads` counts the calling thread; 0 means usable_threads().
  explicit ThreadPool(int num_threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const;

  // Calls body(begin, end) over disjoint ranges that cover [0, count), each at least `grain` long
  // but for the last. Returns when all are done. A call from inside a body runs inline.
  // Allocates nothing.
  void parallel_for(size_t count, size_t grain,
                    const std::function<void(size_t begin, size_t end)>& body);
  // By reference: a std::function that copies a lambda with many captures is on the heap.
  template <class Body>
  void parallel_for(size_t count, size_t grain, const Body& body) {
    parallel_for(count, grain, std::function<void(size_t begin, size_t end)>(std::cref(body)));
  }
  // Calls body(begin, end) with ranges of `size`, the last shorter: the same ones however many
  // threads there are.
  template <class Body>
  void for_pieces(size_t count, size_t size, const Body& body) {
    parallel_for((count + size - 1) / size, 1, [&](size_t first, size_t last) {
      for (size_t piece = first; piece < last; ++piece)
        body(piece * size, std::min(piece * size + size, count));
    });
  }

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace nibble
