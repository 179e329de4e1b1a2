// Splits text into the words that BPE works on: hand-written scanners for the published patterns,
// PCRE2 for any other.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/regex.h"

namespace nibble {

class PreTokenizer {
 public:
  // `pattern` is the Split regex of tokenizer.json. Known patterns get a scanner.
  static Result<PreTokenizer> create(std::string_view pattern);

  // Appends the words of `text` (valid UTF-8) in order; together they are the text. Views into it.
  void split(std::string_view text, std::vector<std::string_view>* words) const;

  bool uses_scanner() const { return regex_ == nullptr; }

 private:
  // What the known patterns differ in.
  struct Scanner {
    bool marks_are_letters = false;  // Qwen3.5: [\p{L}\p{M}]
    int max_digits = 1;              // \p{N} or \p{N}{1,3}
  };
  Scanner scanner_;
  std::shared_ptr<const Regex> regex_;
};

}  // namespace nibble
