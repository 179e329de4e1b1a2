// Anonymous maps: page-aligned, zero on first touch, given back at once.
#include "device/host_memory.h"

#include <sys/mman.h>

#include "base/format.h"

namespace nibble {

Result<DeviceMemory> allocate_host(size_t bytes, const char* who) {
  if (bytes == 0) return DeviceMemory();
  void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED)
    return make_error(ErrorCode::kOutOfMemory, "{}: cannot reserve {} of host memory", who,
                      format_bytes(static_cast<double>(bytes)));
  return DeviceMemory(data, bytes, [](void* begin, size_t size) { ::munmap(begin, size); });
}

}  // namespace nibble
