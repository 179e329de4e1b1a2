// Python's str operations over UTF-8: the parts methods and filters share.
#pragma once

#include <string>

#include "text/jinja/value.h"

namespace nibble::jinja {

// Strips the characters of `set` (null: white space) at either end.
std::string strip_text(const std::string& text, const std::string* set, bool left, bool right);
std::string map_characters(const std::string& text, char32_t (*change)(char32_t));
std::string capitalize(const std::string& text);
std::string title(const std::string& text);
// The first `count` occurrences (negative: all).
std::string replace_all(const std::string& text, const std::string& from, const std::string& to,
                        int64_t count);
// str.split: at most `limit` splits (negative: all), from either end.
List split_whitespace(const std::string& text, int64_t limit, bool from_right);
List split_text(const std::string& text, const std::string& separator, int64_t limit,
                bool from_right);

}  // namespace nibble::jinja
