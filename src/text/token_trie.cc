// Built by sorting the tokens: neighbours share prefixes, so one pass lays the tree out.
#include "text/token_trie.h"

#include <algorithm>

#include "base/check.h"
#include "text/tokenizer.h"

namespace nibble {
namespace {

constexpr size_t kLongestToken = 4096;  // longer ones are never allowed

}  // namespace

TokenTrie::TokenTrie(std::span<const std::string> token_bytes, std::span<const int32_t> end_tokens)
    : end_tokens_(end_tokens.begin(), end_tokens.end()) {
  std::ranges::sort(end_tokens_);
  spans_.reserve(token_bytes.size() + 1);
  spans_.push_back(0);
  for (const std::string& bytes : token_bytes) {
    if (bytes.size() <= kLongestToken) text_ += bytes;
    NB_CHECK(text_.size() < UINT32_MAX, "vocabulary of %zu bytes", text_.size());
    spans_.push_back(static_cast<uint32_t>(text_.size()));
  }
  // The first eight bytes as a number decide most comparisons.
  const auto text_of = [&](int32_t token) { return this->token_bytes(token); };
  struct Key {
    uint64_t head;
    int32_t token;
  };
  std::vector<Key> order(token_bytes.size());
  for (size_t t = 0; t < order.size(); ++t) {
    const std::string_view text = text_of(static_cast<int32_t>(t));
    uint64_t head = 0;
    for (size_t i = 0; i < 8; ++i)
      head = head << 8 | (i < text.size() ? static_cast<uint8_t>(text[i]) : 0);
    order[t] = {head, static_cast<int32_t>(t)};
  }
  std::ranges::sort(order, [&](const Key& a, const Key& b) {
    if (a.head != b.head) return a.head < b.head;
    const int compared = text_of(a.token).compare(text_of(b.token));
    return compared != 0 ? compared < 0 : a.token < b.token;
  });

  std::vector<int32_t> path;  // nodes from the root to the newest
  std::string_view previous;
  for (const auto& [head, token] : order) {
    const std::string_view text = text_of(token);
    if (text.empty() || is_end_token(token)) continue;
    const size_t shared =
        static_cast<size_t>(std::ranges::mismatch(previous, text).in1 - previous.begin());
    for (; path.size() > shared; path.pop_back())
      ends_[static_cast<size_t>(path.back())] = num_nodes();
    for (size_t i = shared; i < text.size(); ++i) {
      path.push_back(num_nodes());
      bytes_.push_back(static_cast<uint8_t>(text[i]));
      depths_.push_back(static_cast<uint16_t>(i + 1));
      ends_.push_back(0);
      first_token_.push_back(static_cast<uint32_t>(tokens_.size()));
    }
    // Tokens of the newest node: its subtree is still empty, so they stay contiguous.
    tokens_.push_back(token);
    max_depth_ = std::max(max_depth_, static_cast<int32_t>(text.size()));
    previous = text;
  }
  for (const int32_t node : path) ends_[static_cast<size_t>(node)] = num_nodes();
  first_token_.push_back(static_cast<uint32_t>(tokens_.size()));
}

std::shared_ptr<const TokenTrie> TokenTrie::of(const Tokenizer& tokenizer,
                                               std::span<const int32_t> end_tokens) {
  std::vector<std::string> bytes(static_cast<size_t>(tokenizer.vocab_size()));
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id)
    if (!tokenizer.is_special(id)) bytes[static_cast<size_t>(id)] = tokenizer.token_bytes(id);
  return std::make_shared<const TokenTrie>(bytes, end_tokens);
}

std::string_view TokenTrie::token_bytes(int32_t token) const {
  const auto t = static_cast<size_t>(token);
  if (t + 1 >= spans_.size()) return {};
  return std::string_view(text_).substr(spans_[t], spans_[t + 1] - spans_[t]);
}

bool TokenTrie::is_end_token(int32_t token) const {
  return std::ranges::binary_search(end_tokens_, token);
}

}  // namespace nibble
