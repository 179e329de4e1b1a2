// The seed of every randomised test.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace nibble::test {

// NIBBLE_TEST_SEED repeats a failed run.
inline uint32_t test_seed() {
  const char* given = std::getenv("NIBBLE_TEST_SEED");
  return given != nullptr ? static_cast<uint32_t>(std::strtoul(given, nullptr, 10)) : 20261124u;
}

}  // namespace nibble::test
