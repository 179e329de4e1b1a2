// Incremental decoding of one sequence: whole characters only, each byte exactly once.
#pragma once

#include <cstdint>
#include <string>

#include "text/tokenizer.h"

namespace nibble {

class Detokenizer {
 public:
  // `tokenizer` must outlive this object.
  explicit Detokenizer(const Tokenizer& tokenizer, bool skip_special_tokens = true)
      : tokenizer_(&tokenizer), skip_special_tokens_(skip_special_tokens) {}

  // The text that `id` completes; an unfinished UTF-8 sequence is held back.
  std::string push(int32_t id);
  // What is still held back, as U+FFFD per maximal bad subsequence.
  std::string flush();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  std::string pending_;
};

}  // namespace nibble
