// How much of this machine the process may use: what containers and service managers allow
// (Linux control groups, versions 2 and 1) is often less than what the machine has.
#pragma once

#include <cstddef>
#include <optional>

#include "base/file.h"

namespace nibble {

struct HostMemory {
  size_t total = 0;  // bytes; of the machine, or the limit if that is less
  size_t free = 0;   // of it, what may be taken now; pages of files that can be dropped are free
};

struct HostLimits {
  HostMemory memory;             // zeros where the kernel does not tell
  std::optional<double> cores;   // processor time a second; none: no limit
  bool memory_is_limit = false;  // memory is a control group's, not the machine's
};

// As of now. `root` stands for / in tests. Thread-safe.
HostLimits host_limits(const fs::path& root = "/");

// Threads that can run at once: of `num_threads` hardware threads (those this process may run on)
// as many as the limit pays for, at least one.
int usable_threads(int num_threads, const HostLimits& limits);
int usable_threads();

}  // namespace nibble
