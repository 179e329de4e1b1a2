// What this program can compute on, for people: "cpu" or "cpu, cuda".
#pragma once

#include <string_view>

namespace nibble {

std::string_view built_backends();

}  // namespace nibble
