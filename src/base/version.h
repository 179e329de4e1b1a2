// The version that --version, /version and reports show.
#pragma once

#include <string_view>

namespace nibble {

inline constexpr std::string_view kVersion = "0.1.0";

}  // namespace nibble
