// A device that is not here: it has a size and a layout for weights and computes nothing. What
// `nibble plan --gpus` counts with on a machine without those GPUs.
#pragma once

#include "device/device.h"
#include "device/wrap/metering_ops.h"

namespace nibble {

// The layout it counts is the CUDA backend's: 16-bit weights as they are, or in 12 bits where that
// is asked for; 4-bit codes in tiles of 16 rows, with a 16-bit scale and a 16-bit bias for each row
// and group; other codes packed as on disk, with one scale and, when asymmetric, one 8-bit zero
// point. allocate() fails; copies abort.
class PlanningDevice final : public Device {
 public:
  // compute_capability: 70 for sm_70, 0 if unknown.
  PlanningDevice(std::string name, DeviceMemoryInfo info, int compute_capability = 0)
      : name_(std::move(name)), info_(info), compute_capability_(compute_capability) {}

  std::string name() const override { return name_; }
  Ops& ops() override { return ops_; }
  DeviceMemoryInfo memory() const override { return info_; }
  Result<DeviceMemory> allocate(size_t bytes, const char* who) override;
  Result<DeviceMemory> allocate_host(size_t bytes, const char* who) override;
  void upload(void* to_device, const void* from_host, size_t bytes) override;
  void download(void* to_host, const void* from_device, size_t bytes) override;
  void copy(void* to_device, const void* from_device, size_t bytes) override;
  void synchronize() override {}
  void read(const void* data, size_t bytes) override;
  Tensor prepare_tensor(const Tensor& on_disk, Arena& arena) override;
  LinearWeight prepare_linear(const LinearWeight& on_disk, Arena& arena) override;
  Result<LinearWeight> prepare_compact(const LinearWeight& on_disk, Arena& arena) override;
  int compact_seqs() const override;

 private:
  std::string name_;
  DeviceMemoryInfo info_;
  int compute_capability_;
  MeteringOps ops_;
};

}  // namespace nibble
