// The patterns of Qwen2/3, Qwen3.5 and Llama 3 share one shape; this is their alternatives in
// order, with backtracking worked out by hand:
//
//   1  (?i:'s|'t|'re|'ve|'m|'ll|'d)      2  [^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+     3  \p{N}
//   4   ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*    5  \s*[\r\n]+     6  \s+(?!\S)     7  \s+
//
// (without \p{M} before Qwen3.5; \p{N}{1,3} in Llama 3).
#include "text/pre_tokenizer.h"

#include <array>

#include "text/unicode.h"

namespace nibble {
namespace {

constexpr std::string_view kQwen35 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

enum Kind : uint8_t { kLetter, kMark, kNumber, kSpace, kNewline, kOther };

Kind classify(char32_t c) {
  static const std::array<Kind, 128> kAscii = [] {
    std::array<Kind, 128> table{};
    for (char32_t i = 0; i < 128; ++i)
      table[i] = i == '\r' || i == '\n' ? kNewline
                 : is_space(i)          ? kSpace
                 : is_letter(i)         ? kLetter
                 : is_number(i)         ? kNumber
                                        : kOther;
    return table;
  }();
  if (c < 128) return kAscii[c];
  if (is_space(c)) return kSpace;
  if (is_letter(c)) return kLetter;
  if (is_mark(c)) return kMark;
  return is_number(c) ? kNumber : kOther;
}

// Length of the contraction at the start of `text`, or 0. U+017F folds to s.
size_t contraction(std::string_view text) {
  if (text.size() < 2 || text[0] != '\'') return 0;
  const auto lower = [&](size_t i) {
    return i < text.size() ? static_cast<char>(text[i] | 0x20) : '\0';
  };
  if (text.substr(1).starts_with("\xc5\xbf")) return 3;
  switch (lower(1)) {
    case 's':
    case 't':
    case 'm':
    case 'd': return 2;
    case 'r':
    case 'v': return lower(2) == 'e' ? 3 : 0;
    case 'l': return lower(2) == 'l' ? 3 : 0;
    default: return 0;
  }
}

}  // namespace

Result<PreTokenizer> PreTokenizer::create(std::string_view pattern) {
  PreTokenizer created;
  if (pattern == kQwen35) {
    created.scanner_ = {.marks_are_letters = true, .max_digits = 1};
  } else if (pattern == kQwen2) {
    created.scanner_ = {.marks_are_letters = false, .max_digits = 1};
  } else if (pattern == kLlama3) {
    created.scanner_ = {.marks_are_letters = false, .max_digits = 3};
  } else {
    NB_TRY(Regex regex, Regex::compile(pattern));
    created.regex_ = std::make_shared<const Regex>(std::move(regex));
  }
  return created;
}

void PreTokenizer::split(std::string_view text, std::vector<std::string_view>* words) const {
  if (regex_ != nullptr) {
    regex_->split_isolated(text, words);
    return;
  }
  size_t at = 0;
  Kind kind = kOther;
  size_t next = 0;  // of the code point that `peek` looked at
  const auto peek = [&](size_t position) {
    if (position >= text.size()) return false;
    const CodePoint c = decode_utf8(text.substr(position));
    kind = classify(c.value);
    next = position + static_cast<size_t>(c.num_bytes);
    return true;
  };
  const auto wordy = [&](Kind k) {
    return k == kLetter || (k == kMark && scanner_.marks_are_letters);
  };
  // Symbols of alternative 4; marks count as symbols where they are no letters.
  const auto symbol = [&](Kind k) {
    return k == kOther || (k == kMark && !scanner_.marks_are_letters);
  };
  const auto run = [&](size_t from, auto accepts) {
    while (peek(from) && accepts(kind)) from = next;
    return from;
  };

  while (at < text.size()) {
    size_t end = at + contraction(text.substr(at));
    if (end == at) {
      peek(at);
      const Kind first = kind;
      const size_t second = next;
      // 2: letters, after at most one character that is no newline, letter or number. A mark may be
      // that character or a letter; either way the run goes on.
      if (wordy(first) && first == kLetter) {
        end = run(second, wordy);
      } else if (first != kNewline && first != kNumber) {
        const size_t letters = run(second, wordy);
        if (letters > second)
          end = letters;
        else if (wordy(first))
          end = second;
      }
      if (end == at && first == kNumber) {  // 3
        end = second;
        for (int digits = 1; digits < scanner_.max_digits && peek(end) && kind == kNumber; ++digits)
          end = next;
      }
      if (end == at) {  // 4
        const size_t symbols_from = text[at] == ' ' ? at + 1 : at;
        const size_t symbols = run(symbols_from, symbol);
        if (symbols > symbols_from) end = run(symbols, [](Kind k) { return k == kNewline; });
      }
      if (end == at) {              // 5, 6, 7: a run of white space
        size_t last = at;           // start of the last character of the run
        size_t after_newline = at;  // end of the last newline in it
        size_t space_end = at;
        while (peek(space_end) && (kind == kSpace || kind == kNewline)) {
          last = space_end;
          space_end = next;
          if (kind == kNewline) after_newline = space_end;
        }
        if (after_newline > at) {
          end = after_newline;
        } else if (space_end == text.size() || last == at) {
          end = space_end;
        } else {
          end = last;  // leaves one for the next word
        }
      }
    }
    words->push_back(text.substr(at, end - at));
    at = end;
  }
}

}  // namespace nibble
