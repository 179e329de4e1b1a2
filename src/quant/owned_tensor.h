// A tensor that owns its bytes: in host memory, in a file, or on a device.
#pragma once

#include <memory>
#include <vector>

#include "base/file.h"
#include "device/device.h"
#include "tensor/tensor.h"

namespace nibble {

class OwnedTensor {
 public:
  OwnedTensor() = default;
  OwnedTensor(DType dtype, Shape shape)  // host memory, zeroed
      : bytes_(static_cast<size_t>(shape.num_elements()) * dtype_size(dtype)),
        view_{bytes_.data(), dtype, shape} {}
  static OwnedTensor copy_of(const Tensor& from);  // in host memory, of host memory
  // Its pages live in an unnamed file in `folder`, which the kernel writes back under pressure.
  static Result<OwnedTensor> on_disk(const fs::path& folder, DType dtype, Shape shape);
  // Zeroed memory that the device computes in, or host memory it reaches at full speed.
  static Result<OwnedTensor> on(Device& device, DType dtype, Shape shape, const char* who);
  static Result<OwnedTensor> beside(Device& device, DType dtype, Shape shape, const char* who);

  OwnedTensor(OwnedTensor&&) noexcept = default;
  OwnedTensor& operator=(OwnedTensor&&) noexcept = default;

  const Tensor& view() const { return view_; }
  bool empty() const { return view_.data == nullptr; }

 private:
  static Result<OwnedTensor> in(Result<DeviceMemory> memory, DType dtype, Shape shape);

  std::vector<std::byte> bytes_;
  std::shared_ptr<std::byte> mapped_;
  DeviceMemory memory_;
  Tensor view_;
};

// Whole tensors between host and device; waited for, so any host memory serves.
OwnedTensor to_host(Device& device, const Tensor& on_device);
void to_device(Device& device, const Tensor& on_host, const Tensor& on_device);
Result<OwnedTensor> copied_to(Device& device, const Tensor& on_host, const char* who);

}  // namespace nibble
