// Weights from mapped files to the GPU at the speed of the bus: several threads copy a piece into
// pinned memory (which is also what brings its pages in from disk), while the pieces before it
// travel. A plain copy from mapped memory would do both in turn, in one thread of the driver.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <memory>

#include "base/thread_pool.h"
#include "device/cuda/handles.h"

namespace nibble::cuda {

// One thread uses it.
class WeightUpload {
 public:
  explicit WeightUpload(cudaStream_t stream) : stream_(stream) {}
  ~WeightUpload() { end(); }

  // Enqueues the copy on the stream; `from` may be reused or unmapped on return.
  void copy(void* to, const void* from, size_t bytes);
  // Waits for all copies and frees threads and pinned memory; the next copy() takes them again.
  void end();

 private:
  static constexpr size_t kPiece = size_t{16} << 20;
  static constexpr int kPieces = 4;
  struct Slot {
    void* memory = nullptr;
    Event sent;
  };

  void begin();

  cudaStream_t stream_;
  std::unique_ptr<ThreadPool> threads_;  // null: not begun
  std::array<Slot, kPieces> slots_;
  size_t next_ = 0;
};

}  // namespace nibble::cuda
