// What the backends that compute on the CPU share: a device whose memory is the host's, and that
// computes on the checkpoint's own bytes.
#pragma once

#include "device/device.h"

namespace nibble {

class HostDevice : public Device {
 public:
  DeviceMemoryInfo memory() const override;
  bool batch_invariant() const override { return true; }
  std::string memory_holders() const override;  // the three largest other processes
  Result<DeviceMemory> allocate(size_t bytes, const char* who) override;  // mapped lazily
  Result<DeviceMemory> allocate_host(size_t bytes, const char* who) override;
  void upload(void* to_device, const void* from_host, size_t bytes) override;
  void download(void* to_host, const void* from_device, size_t bytes) override;
  void copy(void* to_device, const void* from_device, size_t bytes) override;
  void synchronize() override {}
  Tensor prepare_tensor(const Tensor& on_disk, Arena&) override { return on_disk; }
  LinearWeight prepare_linear(const LinearWeight& on_disk, Arena&) override { return on_disk; }
};

}  // namespace nibble
