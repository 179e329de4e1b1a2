// Comparing secrets.
#pragma once

#include <string_view>

namespace nibble {

// Takes a time that depends on the lengths only.
bool equal_secret(std::string_view a, std::string_view b);

}  // namespace nibble
