// The byte strings of a vocabulary as a tree in depth-first order, so that "which tokens can follow
// here" is one forward scan that jumps over refused subtrees.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace nibble {

class Tokenizer;

class TokenTrie {
 public:
  // `token_bytes[t]` is what token t adds to the text; empty for tokens that add none (special
  // tokens, unused ids), which no grammar allows. `end_tokens` end a text.
  TokenTrie(std::span<const std::string> token_bytes, std::span<const int32_t> end_tokens);
  // Special tokens count as empty; other added tokens ("<tool_call>") as their text.
  static std::shared_ptr<const TokenTrie> of(const Tokenizer& tokenizer,
                                             std::span<const int32_t> end_tokens);

  // Node n: byte, depth (from 1), the first node after its subtree, and the tokens that end there:
  // tokens[first_token[n] .. first_token[n + 1]).
  int32_t num_nodes() const { return static_cast<int32_t>(bytes_.size()); }
  uint8_t byte(int32_t node) const { return bytes_[static_cast<size_t>(node)]; }
  int32_t depth(int32_t node) const { return depths_[static_cast<size_t>(node)]; }
  int32_t subtree_end(int32_t node) const { return ends_[static_cast<size_t>(node)]; }
  std::span<const int32_t> tokens(int32_t node) const {
    const auto n = static_cast<size_t>(node);
    return std::span(tokens_).subspan(first_token_[n], first_token_[n + 1] - first_token_[n]);
  }

  int32_t max_depth() const { return max_depth_; }  // bytes of the longest token
  int32_t vocab_size() const { return static_cast<int32_t>(spans_.size()) - 1; }
  std::string_view token_bytes(int32_t token) const;
  std::span<const int32_t> end_tokens() const { return end_tokens_; }
  bool is_end_token(int32_t token) const;

 private:
  std::vector<uint8_t> bytes_;
  std::vector<uint16_t> depths_;
  std::vector<int32_t> ends_;
  std::vector<uint32_t> first_token_;
  std::vector<int32_t> tokens_;
  std::string text_;             // of all tokens, end to end
  std::vector<uint32_t> spans_;  // token t is text_[spans_[t] .. spans_[t + 1])
  std::vector<int32_t> end_tokens_;
  int32_t max_depth_ = 0;
};

}  // namespace nibble
