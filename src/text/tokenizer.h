// Byte-level BPE from tokenizer.json: added tokens, NFC, pre-tokenizer, merges, decoder.
// Immutable after load; threads may share it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace nibble {

class Tokenizer {
 public:
  // `tokenizer_config_json` may be empty; tokens of its added_tokens_decoder that tokenizer.json
  // lacks are added. `what` names the source in errors.
  static Result<Tokenizer> load(std::string_view tokenizer_json,
                                std::string_view tokenizer_config_json, std::string_view what);
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // Adds no special tokens of its own. With `parse_added_tokens` false, text such as "<|im_end|>"
  // is encoded as ordinary characters. Invalid UTF-8 is replaced by U+FFFD first.
  std::vector<int32_t> encode(std::string_view text, bool parse_added_tokens = true) const;

  // Bytes of the ids, invalid UTF-8 replaced by U+FFFD. Unknown ids decode to nothing.
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens = false) const;

  // The raw bytes of one token (may be half a character); empty for unknown ids.
  std::string_view token_bytes(int32_t id) const;
  bool is_special(int32_t id) const;  // dropped when special tokens are skipped
  bool is_added(int32_t id) const;
  std::optional<int32_t> token_id(
      std::string_view content) const;          // of an added token or vocabulary piece
  int32_t vocab_size() const;                   // largest id + 1
  std::optional<int32_t> eos_token_id() const;  // from tokenizer_config.json

  struct State;  // defined in tokenizer.cc

 private:
  explicit Tokenizer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace nibble
