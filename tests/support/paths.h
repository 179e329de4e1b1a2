// Where tests find their data: the source tree they were built from.
#pragma once

#include <filesystem>
#include <string_view>

namespace nibble::test {

// tests/golden/NAME
inline std::filesystem::path golden(std::string_view name) {
  return std::filesystem::path(NIBBLE_SOURCE_DIR) / "tests/golden" / name;
}
// models/NAME
inline std::filesystem::path bundled_model(std::string_view name) {
  return std::filesystem::path(NIBBLE_SOURCE_DIR) / "models" / name;
}

}  // namespace nibble::test
