// Allocation, and copies that wait.
#include "quant/owned_tensor.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "base/format.h"

namespace nibble {

OwnedTensor OwnedTensor::copy_of(const Tensor& from) {
  OwnedTensor copy(from.dtype, from.shape);
  std::memcpy(copy.view_.data, from.data, from.num_bytes());
  return copy;
}

Result<OwnedTensor> OwnedTensor::on_disk(const fs::path& folder, DType dtype, Shape shape) {
  OwnedTensor tensor;
  tensor.view_ = {nullptr, dtype, shape};
  const size_t size = tensor.view_.num_bytes();
  const int fd = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  void* data = MAP_FAILED;
  // Blocks are claimed now: a full disk is an error here, not a signal later.
  const int error = fd < 0 ? errno : ::posix_fallocate(fd, 0, static_cast<off_t>(size));
  if (fd >= 0 && error == 0)
    data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (fd >= 0) ::close(fd);
  if (data == MAP_FAILED)
    return make_error(ErrorCode::kIo, "{}: no room for {} of activations: {}", folder.string(),
                      format_bytes(size), std::strerror(error));
  tensor.mapped_ = {static_cast<std::byte*>(data), [size](std::byte* p) { ::munmap(p, size); }};
  tensor.view_.data = data;
  return tensor;
}

Result<OwnedTensor> OwnedTensor::on(Device& device, DType dtype, Shape shape, const char* who) {
  return in(device.allocate(Tensor{nullptr, dtype, shape}.num_bytes(), who), dtype, shape);
}

Result<OwnedTensor> OwnedTensor::beside(Device& device, DType dtype, Shape shape, const char* who) {
  return in(device.allocate_host(Tensor{nullptr, dtype, shape}.num_bytes(), who), dtype, shape);
}

Result<OwnedTensor> OwnedTensor::in(Result<DeviceMemory> memory, DType dtype, Shape shape) {
  OwnedTensor tensor;
  NB_TRY(tensor.memory_, std::move(memory));
  tensor.view_ = {tensor.memory_.data(), dtype, shape};
  return tensor;
}

OwnedTensor to_host(Device& device, const Tensor& on_device) {
  OwnedTensor host(on_device.dtype, on_device.shape);
  device.download(host.view().data, on_device.data, on_device.num_bytes());
  device.synchronize();
  return host;
}

void to_device(Device& device, const Tensor& on_host, const Tensor& on_device) {
  device.upload(on_device.data, on_host.data, on_host.num_bytes());
  device.synchronize();
}

Result<OwnedTensor> copied_to(Device& device, const Tensor& on_host, const char* who) {
  NB_TRY(OwnedTensor copy, OwnedTensor::on(device, on_host.dtype, on_host.shape, who));
  to_device(device, on_host, copy.view());
  return copy;
}

}  // namespace nibble
