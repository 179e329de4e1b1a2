// Small text helpers: the nearest known name for a misspelt one, ASCII case, lists.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace nibble {

// The candidate with the smallest edit distance to `name` if that is at most a third of its length
// (and at least one), else "". Ties go to the first.
std::string nearest_name(std::string_view name, std::span<const std::string> candidates);
std::string nearest_name(std::string_view name, std::span<const std::string_view> candidates);

// A-Z to a-z; all other bytes stay.
std::string ascii_lower(std::string_view text);
// "a, b, c".
std::string join(std::span<const std::string_view> parts, std::string_view separator);
// Breaks `text` at spaces into lines of at most `width`, all but the first indented.
std::string wrapped(std::string_view text, size_t width, size_t indent);

}  // namespace nibble
