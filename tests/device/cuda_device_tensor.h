// What the tests of the CUDA backend share: a GPU or a loud skip, tensors with a copy on the GPU,
// a workspace like the device's own.
#pragma once

#include <gtest/gtest.h>

#include <cstdio>
#include <memory>
#include <utility>
#include <vector>

#include "device/cuda/handles.h"
#include "device/cuda/linear.h"
#include "device/cuda/workspace.h"
#include "device/device.h"
#include "device/host_tensor.h"

namespace nibble::test {

// One device for the whole program; null, said once on stderr, when there is no usable GPU.
inline Device* gpu() {
  static const std::unique_ptr<Device> device = [] {
    Result<std::unique_ptr<Device>> opened = open_device(Backend::kCuda);
    if (opened) return std::move(opened).value();
    std::fprintf(stderr, "*** NOTHING IS TESTED ON A GPU: %s\n", opened.error().message.c_str());
    return std::unique_ptr<Device>();
  }();
  return device.get();
}

// A tensor on the GPU.
class DeviceTensor {
 public:
  explicit DeviceTensor(const HostTensor& host)
      : view_(host.view()), memory_(gpu()->allocate(host.bytes().size(), "test").value()) {
    gpu()->upload(memory_.data(), host.view().data, host.view().num_bytes());
    gpu()->synchronize();
    view_.data = memory_.data();
  }
  // Poisoned with bytes that are NaN in every floating type.
  DeviceTensor(DType dtype, Shape shape) : DeviceTensor(poisoned(dtype, shape)) {}
  operator Tensor() const { return view_; }
  const Tensor& view() const { return view_; }
  HostTensor host() const {
    HostTensor result(view_.dtype, view_.shape);
    gpu()->download(result.view().data, view_.data, view_.num_bytes());
    gpu()->synchronize();
    return result;
  }
  std::vector<float> floats() const { return host().floats(); }

 private:
  static HostTensor poisoned(DType dtype, Shape shape) {
    HostTensor tensor(dtype, shape);
    std::fill_n(static_cast<unsigned char*>(tensor.view().data), tensor.view().num_bytes(),
                static_cast<unsigned char>(0xff));
    return tensor;
  }
  Tensor view_;
  DeviceMemory memory_;
};

// Host values of any type on the GPU.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& values)
      : memory_(gpu()->allocate(values.size() * sizeof(T) + 1, "test").value()) {
    gpu()->upload(memory_.data(), values.data(), values.size() * sizeof(T));
    gpu()->synchronize();
  }
  T* data() const { return static_cast<T*>(memory_.data()); }

 private:
  DeviceMemory memory_;
};

// A weight prepared on the GPU and the memory it lies in.
struct Prepared {
  DeviceMemory memory;
  LinearWeight weight;
  explicit Prepared(const LinearWeight& on_disk, DenseStorage storage = DenseStorage::kPlain) {
    const auto prepare = [&](Arena& arena) {
      return storage == DenseStorage::kCompact ? gpu()->prepare_compact(on_disk, arena).value()
                                               : gpu()->prepare_linear(on_disk, arena);
    };
    Arena counter;
    prepare(counter);
    memory = gpu()->allocate(counter.used(), "test weight").value();
    Arena arena(memory.data(), memory.size());
    weight = prepare(arena);
    gpu()->synchronize();
    EXPECT_EQ(arena.used(), counter.used());
  }
};

// |a - b| / |b| over whole tensors; NaN when either holds one.
inline double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0;
  double norm = 0;
  if (a.size() != b.size()) return INFINITY;
  for (size_t i = 0; i < b.size(); ++i) {
    const double d = static_cast<double>(a[i]) - b[i];
    difference += d * d;
    norm += static_cast<double>(b[i]) * b[i];
  }
  return b.empty() ? 0 : std::sqrt(difference / std::max(norm, 1e-30));
}

// For launchers called directly; on the default stream of the current GPU.
class TestWorkspace {
 public:
  explicit TestWorkspace(size_t scratch_bytes = size_t{96} << 20)
      : scratch_(gpu()->allocate(scratch_bytes, "test").value()),
        counters_(gpu()->allocate(size_t{1} << 20, "test").value()),
        fixed_rows_(gpu()->allocate(size_t{2} << 20, "test").value()) {
    cudaDeviceProp properties{};
    NB_CUDA(cudaGetDeviceProperties(&properties, 0));
    workspace_.num_sms = properties.multiProcessorCount;
    workspace_.compute_capability = cuda::code_capability();
    workspace_.max_shared_bytes = properties.sharedMemPerBlockOptin;
    workspace_.scratch = scratch_.data();
    workspace_.scratch_size = scratch_.size();
    workspace_.counters = static_cast<uint32_t*>(counters_.data());
    workspace_.num_counters = 1 << 18;
    workspace_.fixed_rows = fixed_rows_.data();
    workspace_.fixed_rows_size = fixed_rows_.size();
  }
  operator const cuda::Workspace&() const { return workspace_; }

 private:
  DeviceMemory scratch_;
  DeviceMemory counters_;
  DeviceMemory fixed_rows_;
  cuda::Workspace workspace_;
};

}  // namespace nibble::test
