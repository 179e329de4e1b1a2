// Files as documented in the kernel's Documentation/admin-guide: cgroup-v2.rst,
// cgroup-v1/memory.rst and scheduler/sched-bwc.rst. A limit of any ancestor holds. Inside a
// container the path of the group may not exist below its mount, whose root is then the group
// itself.
#include "base/host_limits.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace nibble {
namespace {

constexpr size_t kNoLimit = size_t{1} << 60;  // version 1 has a number near 2^63 for "none"

// The number that a file begins with; none for "max" and -1.
std::optional<size_t> number_in(const fs::path& path) {
  std::ifstream file(path);
  std::string word;
  if (!(file >> word) || word.find_first_not_of("0123456789") != std::string::npos)
    return std::nullopt;
  return std::stoull(word);
}

// The sum of those lines of a file of "name number" that `names` holds.
size_t sum_of(const fs::path& path, std::initializer_list<std::string_view> names) {
  std::ifstream file(path);
  std::string name;
  size_t value = 0;
  size_t sum = 0;
  while (file >> name >> value)
    if (std::find(names.begin(), names.end(), name) != names.end()) sum += value;
  return sum;
}

HostMemory machine_memory(const fs::path& root) {
  HostMemory memory;
  std::ifstream meminfo(root / "proc/meminfo");
  std::string line;
  while (std::getline(meminfo, line)) {
    std::istringstream words(line);
    std::string key;
    size_t kib = 0;
    words >> key >> kib;
    if (key == "MemTotal:") memory.total = kib * 1024;
    if (key == "MemAvailable:") memory.free = kib * 1024;
  }
  return memory;
}

// The directories of this process's group and of its ancestors. `controller`: of version 1; "" for
// version 2.
std::vector<fs::path> groups(const fs::path& root, const std::string& controller) {
  std::ifstream file(root / "proc/self/cgroup");
  std::string line;
  while (std::getline(file, line)) {  // "4:cpu,cpuacct:/docker/4711", "0::/user.slice"
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string names = "," + line.substr(first + 1, second - first - 1) + ",";
    if (names.find("," + controller + ",") == std::string::npos) continue;
    const fs::path mount = root / "sys/fs/cgroup" / controller;
    std::vector<fs::path> found;
    fs::path group = fs::path(line.substr(second + 1)).relative_path();
    for (;; group = group.parent_path()) {
      found.push_back(mount / group);
      if (group.empty()) return found;
    }
  }
  return {};
}

void limit_memory(HostLimits* limits, size_t most, size_t used, size_t droppable) {
  if (most >= kNoLimit) return;
  HostMemory& memory = limits->memory;
  const size_t held = used - std::min(used, droppable);
  const size_t free = most - std::min(most, held);
  if (memory.total == 0 || most < memory.total) {
    memory.total = most;
    limits->memory_is_limit = true;
  }
  memory.free = std::min(memory.free, free);
}

void limit_cores(HostLimits* limits, double quota, double period) {
  if (!(quota > 0 && period > 0)) return;
  limits->cores = std::min(limits->cores.value_or(quota / period), quota / period);
}

}  // namespace

HostLimits host_limits(const fs::path& root) {
  HostLimits limits;
  limits.memory = machine_memory(root);
  for (const fs::path& group : groups(root, "")) {
    if (const auto most = number_in(group / "memory.max"))
      limit_memory(&limits, *most, number_in(group / "memory.current").value_or(0),
                   sum_of(group / "memory.stat", {"active_file", "inactive_file"}));
    std::ifstream cpu(group / "cpu.max");
    double quota = 0;
    double period = 0;
    if (cpu >> quota >> period) limit_cores(&limits, quota, period);  // "max" is no number
  }
  for (const fs::path& group : groups(root, "memory"))
    if (const auto most = number_in(group / "memory.limit_in_bytes"))
      limit_memory(&limits, *most, number_in(group / "memory.usage_in_bytes").value_or(0),
                   sum_of(group / "memory.stat", {"total_active_file", "total_inactive_file"}));
  for (const fs::path& group : groups(root, "cpu"))
    if (const auto period = number_in(group / "cpu.cfs_period_us"))
      limit_cores(
          &limits,
          static_cast<double>(number_in(group / "cpu.cfs_quota_us").value_or(0)),  // -1: none
          static_cast<double>(*period));
  return limits;
}

int usable_threads(int num_threads, const HostLimits& limits) {
  const auto paid =
      limits.cores ? static_cast<int>(std::ceil(std::min(*limits.cores, 4096.0))) : num_threads;
  return std::max(1, std::min(num_threads, paid));
}

int usable_threads() {
  return usable_threads(static_cast<int>(std::thread::hardware_concurrency()), host_limits());
}

}  // namespace nibble
