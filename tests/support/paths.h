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
// A copy that the test may break. Returns `to`, which must not exist.
inline std::filesystem::path copy_bundled_model(std::string_view name,
                                                const std::filesystem::path& to) {
  std::filesystem::copy(bundled_model(name), to, std::filesystem::copy_options::recursive);
  return to;
}

}  // namespace nibble::test
