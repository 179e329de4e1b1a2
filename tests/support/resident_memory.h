// How much memory this process holds, for tests of what requests leave behind.
#pragma once

#include <cstddef>
#include <fstream>

#include "support/sanitized.h"

namespace nibble::test {

// Sanitizers keep freed memory and shadow what is used: a bound on it would be about them.
inline constexpr bool kMemoryIsOurs = !kSanitized;

inline size_t resident_bytes() {
  size_t total = 0;
  size_t resident = 0;
  std::ifstream("/proc/self/statm") >> total >> resident;
  return resident * 4096;
}

}  // namespace nibble::test
