// Streams, events and graphs that free themselves; move-only.
#pragma once

#include <utility>

#include "device/cuda/cuda_check.h"

namespace nibble::cuda {

template <class T, cudaError_t (*destroy)(T)>
class Handle {
 public:
  Handle() = default;
  explicit Handle(T raw) : raw_(raw) {}
  Handle(Handle&& other) noexcept : raw_(std::exchange(other.raw_, nullptr)) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(raw_, other.raw_);
    return *this;
  }
  ~Handle() {
    if (raw_ != nullptr) destroy(raw_);
  }
  T get() const { return raw_; }

 private:
  T raw_ = nullptr;
};

class Stream : public Handle<cudaStream_t, cudaStreamDestroy> {
 public:
  Stream() = default;
  static Stream create() {
    Stream stream;
    cudaStream_t raw = nullptr;
    NB_CUDA(cudaStreamCreateWithFlags(&raw, cudaStreamNonBlocking));
    static_cast<Handle&>(stream) = Handle(raw);
    return stream;
  }
};

class Event : public Handle<cudaEvent_t, cudaEventDestroy> {
 public:
  Event() = default;
  static Event create() {
    Event event;
    cudaEvent_t raw = nullptr;
    NB_CUDA(cudaEventCreate(&raw));
    static_cast<Handle&>(event) = Handle(raw);
    return event;
  }
  void record(cudaStream_t stream) const { NB_CUDA(cudaEventRecord(get(), stream)); }
  // Milliseconds from `begin` to this event; waits for both.
  float ms_since(const Event& begin) const {
    float ms = 0;
    NB_CUDA(cudaEventSynchronize(get()));
    NB_CUDA(cudaEventElapsedTime(&ms, begin.get(), get()));
    return ms;
  }
};

// A recorded sequence of launches. Pointers and launch shapes are fixed at capture; what changes
// between replays (ids, tables, lengths) must be read from device memory.
class Graph : public Handle<cudaGraphExec_t, cudaGraphExecDestroy> {
 public:
  Graph() = default;
  // Runs `body`, which enqueues on `stream`, without executing it.
  template <class Body>
  static Graph capture(cudaStream_t stream, Body body) {
    NB_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    body();
    cudaGraph_t recorded = nullptr;
    NB_CUDA(cudaStreamEndCapture(stream, &recorded));
    cudaGraphExec_t raw = nullptr;
    NB_CUDA(cudaGraphInstantiate(&raw, recorded, 0));
    NB_CUDA(cudaGraphDestroy(recorded));
    Graph graph;
    static_cast<Handle&>(graph) = Handle(raw);
    return graph;
  }
  void launch(cudaStream_t stream) const { NB_CUDA(cudaGraphLaunch(get(), stream)); }
};

}  // namespace nibble::cuda
