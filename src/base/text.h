// Small text helpers: the nearest known name for a misspelt one.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace nibble {

// The candidate with the smallest edit distance to `name` if that is at most a third of its length
// (and at least one), else "". Ties go to the first.
std::string nearest_name(std::string_view name, std::span<const std::string> candidates);
std::string nearest_name(std::string_view name, std::span<const std::string_view> candidates);

}  // namespace nibble
