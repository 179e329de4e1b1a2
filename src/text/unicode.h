// Unicode facts and UTF-8: NFC, categories, repair. Doorkeeper of utf8proc (Unicode 15.0).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace nibble {

// One decoded code point and the bytes it took. `valid` is false for a maximal bad subsequence (1-3
// bytes), which stands for one U+FFFD, as in Python's errors="replace".
struct CodePoint {
  char32_t value = 0xfffd;
  int num_bytes = 1;
  bool valid = false;
  bool truncated = false;  // a valid prefix that ends with the text
};
CodePoint decode_utf8(std::string_view text);  // text must not be empty
void append_utf8(char32_t value, std::string* out);

// Bad bytes replaced by U+FFFD.
std::string repair_utf8(std::string_view text);
bool is_valid_utf8(std::string_view text);
size_t count_code_points(std::string_view text);

// Normalization form C of valid UTF-8.
std::string normalize_nfc(std::string_view text);

bool is_letter(char32_t c);  // \p{L}
bool is_mark(char32_t c);    // \p{M}
bool is_number(char32_t c);  // \p{N}
bool is_space(char32_t c);   // \s: White_Space (U+180E is not)

char32_t to_lower(char32_t c);  // simple mappings
char32_t to_upper(char32_t c);

}  // namespace nibble
