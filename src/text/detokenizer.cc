// Holds back the bytes of a character until its last one arrives.
#include "text/detokenizer.h"

#include "text/unicode.h"

namespace nibble {

std::string Detokenizer::push(int32_t id) {
  if (skip_special_tokens_ && tokenizer_->is_special(id)) return "";
  pending_ += tokenizer_->token_bytes(id);
  std::string out;
  size_t at = 0;
  while (at < pending_.size()) {
    const CodePoint c = decode_utf8(std::string_view(pending_).substr(at));
    if (c.truncated) break;
    if (c.valid) {
      out.append(pending_, at, static_cast<size_t>(c.num_bytes));
    } else {
      out += "\xef\xbf\xbd";
    }
    at += static_cast<size_t>(c.num_bytes);
  }
  pending_.erase(0, at);
  return out;
}

std::string Detokenizer::flush() {
  std::string out = repair_utf8(pending_);
  pending_.clear();
  return out;
}

}  // namespace nibble
