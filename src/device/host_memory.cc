// Anonymous maps: page-aligned, zero on first touch, given back at once.
#include "device/host_memory.h"

#include <sys/mman.h>
#include <unistd.h>
#include <atomic>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "base/format.h"
#include "base/host_limits.h"

namespace nibble {

DeviceMemoryInfo HostDevice::memory() const {
  DeviceMemoryInfo info;
  info.is_host = true;
  const HostLimits limits = host_limits();
  info.total = limits.memory.total;
  info.free = limits.memory.free;
  info.is_limit = limits.memory_is_limit;
  return info;
}

std::string HostDevice::memory_holders() const {
  if (host_limits().memory_is_limit) return "";  // what others hold is not counted against it
  struct Holder {
    size_t bytes;
    std::string text;
  };
  std::vector<Holder> holders;
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    const std::string pid = entry.path().filename().string();
    if (pid.find_first_not_of("0123456789") != std::string::npos) continue;
    if (pid == std::to_string(::getpid())) continue;
    size_t total = 0;
    size_t resident = 0;
    std::ifstream(entry.path() / "statm") >> total >> resident;
    std::string name;
    std::getline(std::ifstream(entry.path() / "comm"), name);
    const size_t bytes = resident * page;
    if (bytes < (size_t{64} << 20)) continue;  // not worth a word
    holders.push_back({bytes, format("{} (pid {}) {}", name, pid, format_bytes(bytes))});
  }
  std::ranges::sort(holders, [](const Holder& a, const Holder& b) { return a.bytes > b.bytes; });
  std::string text;
  for (size_t i = 0; i < std::min<size_t>(holders.size(), 3); ++i)
    text += (i > 0 ? ", " : "") + holders[i].text;
  return text;
}

Result<DeviceMemory> HostDevice::allocate(size_t bytes, const char* who) {
  if (bytes == 0) return DeviceMemory();
  void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED)
    return make_error(ErrorCode::kOutOfMemory, "{}: cannot reserve {} of host memory", who,
                      format_bytes(bytes));
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

void HostDevice::read(const void* data, size_t bytes) {
  const auto* words = static_cast<const uint64_t*>(data);
  uint64_t lanes[8] = {};
  for (size_t i = 0; i + 8 <= bytes / sizeof(uint64_t); i += 8)
    for (size_t lane = 0; lane < 8; ++lane) lanes[lane] ^= words[i + lane];
  uint64_t mixed = 0;
  for (const uint64_t lane : lanes) mixed ^= lane;
  static std::atomic<uint64_t> sink;  // keeps the reads alive
  sink.fetch_xor(mixed, std::memory_order_relaxed);
}

}  // namespace nibble
