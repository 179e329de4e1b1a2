// Patterns of JSON Schema's string formats.
#pragma once

#include <string_view>

namespace nibble {

// A regular expression that matches whole values of the format; empty for a format that is not
// known, which then says nothing. Narrower than the standards where those are wide (URIs without
// per cent escapes in hosts, four-digit years from 1000).
std::string_view string_format_pattern(std::string_view format);

}  // namespace nibble
