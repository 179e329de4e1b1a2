// How much memory this process holds, for tests of what requests leave behind.
#pragma once

#include <cstddef>
#include <fstream>

namespace nibble::test {

// Sanitizers keep freed memory and shadow what is used: a bound on it would be about them.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kMemoryIsOurs = false;
#else
inline constexpr bool kMemoryIsOurs = true;
#endif

inline size_t resident_bytes() {
  size_t total = 0;
  size_t resident = 0;
  std::ifstream("/proc/self/statm") >> total >> resident;
  return resident * 4096;
}

}  // namespace nibble::test
