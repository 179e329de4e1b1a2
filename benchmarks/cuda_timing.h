// What the benchmarks of CUDA kernels share: device memory with random contents, medians of event
// timings over replayed graphs, and the card's read bandwidth.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "device/cuda/handles.h"
#include "device/cuda/linear.h"
#include "device/cuda/read.h"
#include "device/cuda/workspace.h"

namespace nibble::bench {

// Freed by the end of the program.
inline void* device_bytes(size_t bytes) {
  void* data = nullptr;
  NB_CUDA(cudaMalloc(&data, bytes));
  return data;
}

template <class T>
const T* to_device(const std::vector<T>& values) {
  void* data = device_bytes(values.size() * sizeof(T));
  NB_CUDA(cudaMemcpy(data, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return static_cast<const T*>(data);
}

// `bytes` of device memory made of a random pattern of T, about 8 MiB long, over and over.
template <class T, class Draw>
T* random_device(size_t bytes, Draw draw) {
  std::vector<T> pattern(std::min<size_t>(bytes / sizeof(T), (size_t{8} << 20) / sizeof(T) - 1021));
  for (T& value : pattern) value = draw();
  auto* data = static_cast<uint8_t*>(device_bytes(bytes));
  for (size_t at = 0; at < bytes; at += pattern.size() * sizeof(T))
    NB_CUDA(cudaMemcpy(data + at, pattern.data(), std::min(bytes - at, pattern.size() * sizeof(T)),
                       cudaMemcpyHostToDevice));
  return reinterpret_cast<T*>(data);
}

inline std::mt19937& random() {
  static std::mt19937 generator(1);
  return generator;
}
// Standard normal values as bf16 bits.
inline uint16_t* random_bf16(int64_t count, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  return random_device<uint16_t>(static_cast<size_t>(count) * 2, [&] {
    const float value = normal(random());
    uint32_t bits = 0;
    static_assert(sizeof bits == sizeof value);
    std::copy_n(reinterpret_cast<const unsigned char*>(&value), 4,
                reinterpret_cast<unsigned char*>(&bits));
    return static_cast<uint16_t>((bits + 0x8000u) >> 16);
  });
}

inline cuda::Workspace make_workspace(size_t scratch_bytes) {
  cudaDeviceProp properties{};
  NB_CUDA(cudaGetDeviceProperties(&properties, 0));
  cuda::Workspace workspace;
  workspace.num_sms = properties.multiProcessorCount;
  workspace.compute_capability = cuda::code_capability();
  workspace.max_shared_bytes = properties.sharedMemPerBlockOptin;
  workspace.scratch = device_bytes(scratch_bytes);
  workspace.scratch_size = scratch_bytes;
  return workspace;
}

// Median milliseconds of what `body(stream)` enqueues, replayed as a graph.
template <class Body>
double median_ms(Body body, int repeats = 20) {
  static const cuda::Stream stream = cuda::Stream::create();
  const cuda::Graph graph = cuda::Graph::capture(stream.get(), [&] { body(stream.get()); });
  const cuda::Event begin = cuda::Event::create();
  const cuda::Event end = cuda::Event::create();
  std::vector<float> times;
  for (int i = -3; i < repeats; ++i) {
    begin.record(stream.get());
    graph.launch(stream.get());
    end.record(stream.get());
    const float ms = end.ms_since(begin);
    if (i >= 0) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

// Bytes per second of reading a buffer far larger than the L2 cache.
inline double read_bandwidth() {
  constexpr size_t kBytes = size_t{4} << 30;
  uint16_t* data = random_bf16(kBytes / 2);
  const cuda::Workspace workspace = make_workspace(1024);
  const double ms =
      median_ms([&](cudaStream_t stream) { enqueue_read(data, kBytes, workspace, stream); });
  NB_CUDA(cudaFree(data));
  return kBytes / (ms * 1e-3);
}

inline void print_card(double bandwidth) {
  cudaDeviceProp properties{};
  NB_CUDA(cudaGetDeviceProperties(&properties, 0));
  std::printf("%s, %d SMs, read bandwidth %.2f TB/s\n", properties.name,
              properties.multiProcessorCount, bandwidth / 1e12);
}

}  // namespace nibble::bench
