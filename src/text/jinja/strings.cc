// Splitting, stripping and case, one code point at a time.
#include "text/jinja/strings.h"

#include <algorithm>

#include "text/unicode.h"

namespace nibble::jinja {
namespace {

bool strips(std::string_view character, const std::string* set) {
  if (set == nullptr) {
    const char32_t c = decode_utf8(character).value;
    return is_space(c) || (c >= 0x1c && c <= 0x1f);
  }
  return set->find(character) != std::string::npos;
}

}  // namespace

std::string strip_text(const std::string& text, const std::string* set, bool left, bool right) {
  const std::vector<std::string_view> all = characters(text);
  size_t begin = 0;
  size_t end = all.size();
  while (left && begin < end && strips(all[begin], set)) ++begin;
  while (right && begin < end && strips(all[end - 1], set)) --end;
  std::string out;
  for (size_t i = begin; i < end; ++i) out += all[i];
  return out;
}

std::string map_characters(const std::string& text, char32_t (*change)(char32_t)) {
  std::string out;
  for (const std::string_view c : characters(text)) append_utf8(change(decode_utf8(c).value), &out);
  return out;
}

std::string capitalize(const std::string& text) {
  std::string out;
  for (const std::string_view c : characters(text)) {
    const char32_t value = decode_utf8(c).value;
    append_utf8(out.empty() ? to_upper(value) : to_lower(value), &out);
  }
  return out;
}

std::string title(const std::string& text) {
  std::string out;
  bool inside = false;
  for (const std::string_view c : characters(text)) {
    const char32_t value = decode_utf8(c).value;
    append_utf8(inside ? to_lower(value) : to_upper(value), &out);
    inside = is_letter(value);
  }
  return out;
}

std::string replace_all(const std::string& text, const std::string& from, const std::string& to,
                        int64_t count) {
  std::string out;
  size_t at = 0;
  if (from.empty()) {
    for (const std::string_view c : characters(text)) {
      if (count-- != 0) out += to;
      out += c;
    }
    if (count != 0) out += to;
    return out;
  }
  while (count-- != 0) {
    const size_t found = text.find(from, at);
    if (found == std::string::npos) break;
    out.append(text, at, found - at);
    out += to;
    at = found + from.size();
  }
  return out.append(text, at, std::string::npos);
}

List split_whitespace(const std::string& text, int64_t limit, bool from_right) {
  std::vector<std::string> words;
  const std::vector<std::string_view> all = characters(text);
  const auto n = static_cast<int64_t>(all.size());
  const int64_t direction = from_right ? -1 : 1;
  int64_t i = from_right ? n - 1 : 0;
  const auto inside = [&] { return i >= 0 && i < n; };
  while (inside()) {
    while (inside() && strips(all[static_cast<size_t>(i)], nullptr)) i += direction;
    if (!inside()) break;
    const int64_t begin = i;
    if (limit >= 0 && static_cast<int64_t>(words.size()) >= limit) {
      // The rest in one piece, stripped at its far end only.
      i = from_right ? -1 : n;
      std::string rest;
      if (from_right) {
        for (int64_t k = 0; k <= begin; ++k) rest += all[static_cast<size_t>(k)];
        words.push_back(strip_text(rest, nullptr, true, false));
      } else {
        for (int64_t k = begin; k < n; ++k) rest += all[static_cast<size_t>(k)];
        words.push_back(strip_text(rest, nullptr, false, true));
      }
      break;
    }
    while (inside() && !strips(all[static_cast<size_t>(i)], nullptr)) i += direction;
    std::string word;
    const int64_t low = from_right ? i + 1 : begin;
    const int64_t high = from_right ? begin + 1 : i;
    for (int64_t k = low; k < high; ++k) word += all[static_cast<size_t>(k)];
    words.push_back(std::move(word));
  }
  if (from_right) std::reverse(words.begin(), words.end());
  return {words.begin(), words.end()};
}

List split_text(const std::string& text, const std::string& separator, int64_t limit,
                bool from_right) {
  if (separator.empty()) fail("empty separator");
  std::vector<std::string> parts;
  if (from_right) {
    size_t end = text.size();
    while (limit < 0 || static_cast<int64_t>(parts.size()) < limit) {
      if (end < separator.size()) break;
      const size_t found = text.rfind(separator, end - separator.size());
      if (found == std::string::npos) break;
      parts.push_back(text.substr(found + separator.size(), end - found - separator.size()));
      end = found;
    }
    parts.push_back(text.substr(0, end));
    std::reverse(parts.begin(), parts.end());
  } else {
    size_t at = 0;
    while (limit < 0 || static_cast<int64_t>(parts.size()) < limit) {
      const size_t found = text.find(separator, at);
      if (found == std::string::npos) break;
      parts.push_back(text.substr(at, found - at));
      at = found + separator.size();
    }
    parts.push_back(text.substr(at));
  }
  return {parts.begin(), parts.end()};
}

}  // namespace nibble::jinja
