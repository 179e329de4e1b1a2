// Anonymous maps: page-aligned, zero on first touch, given back at once.
#include "device/host_memory.h"

#include <sys/mman.h>

#include <cstring>
#include <fstream>
#include <string>

#include "base/format.h"

namespace nibble {

DeviceMemoryInfo HostDevice::memory() const {
  DeviceMemoryInfo info;
  std::ifstream meminfo("/proc/meminfo");
  std::string key;
  std::string unit;
  size_t kib = 0;
  while (meminfo >> key >> kib >> unit) {
    if (key == "MemTotal:") info.total = kib * 1024;
    if (key == "MemAvailable:") info.free = kib * 1024;
  }
  return info;
}

Result<DeviceMemory> HostDevice::allocate(size_t bytes, const char* who) {
  if (bytes == 0) return DeviceMemory();
  void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED)
    return make_error(ErrorCode::kOutOfMemory, "{}: cannot reserve {} of host memory", who,
                      format_bytes(static_cast<double>(bytes)));
  return DeviceMemory(data, bytes, [](void* begin, size_t size) { ::munmap(begin, size); });
}

Result<DeviceMemory> HostDevice::allocate_host(size_t bytes, const char* who) {
  return allocate(bytes, who);
}

void HostDevice::upload(void* to_device, const void* from_host, size_t bytes) {
  std::memcpy(to_device, from_host, bytes);
}
void HostDevice::download(void* to_host, const void* from_device, size_t bytes) {
  std::memcpy(to_host, from_device, bytes);
}
void HostDevice::copy(void* to_device, const void* from_device, size_t bytes) {
  std::memmove(to_device, from_device, bytes);
}

}  // namespace nibble
