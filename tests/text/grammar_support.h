// Short ways to compile a grammar and to try texts against it.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/grammar.h"
#include "text/token_trie.h"

namespace nibble::test {

// 256 tokens of one byte each, and an end token.
inline constexpr int32_t kEndToken = 256;
inline std::shared_ptr<const TokenTrie> byte_trie() {
  static const std::shared_ptr<const TokenTrie> kTrie = [] {
    std::vector<std::string> bytes(257);
    for (size_t i = 0; i < 256; ++i) bytes[i] = std::string(1, static_cast<char>(i));
    const int32_t end[] = {kEndToken};
    return std::make_shared<const TokenTrie>(bytes, end);
  }();
  return kTrie;
}

inline std::shared_ptr<CompiledGrammar> compiled(const Result<Grammar>& grammar,
                                                 std::shared_ptr<const TokenTrie> trie = nullptr) {
  if (!grammar) {
    ADD_FAILURE() << grammar.error().message;
    return nullptr;
  }
  Result<std::shared_ptr<CompiledGrammar>> result =
      CompiledGrammar::compile(*grammar, trie ? trie : byte_trie());
  if (!result) {
    ADD_FAILURE() << result.error().message;
    return nullptr;
  }
  return *result;
}

inline bool matches(const std::shared_ptr<CompiledGrammar>& grammar, std::string_view text) {
  if (grammar == nullptr) return false;
  GrammarMatcher matcher(grammar);
  return matcher.accept_bytes(text) && matcher.complete();
}

// What is wrong with `grammar`, at either stage; "" when it compiles.
inline std::string error_of(const Result<Grammar>& grammar) {
  if (!grammar) return grammar.error().message;
  const auto result = CompiledGrammar::compile(*grammar, byte_trie());
  return result ? "" : result.error().message;
}

inline Json json(std::string_view text) {
  return parse_json(text, "test", {.max_depth = 500}).value();
}
inline Result<Grammar> schema(std::string_view text, const GrammarOptions& options = {}) {
  return Grammar::json_schema(json(text), options);
}

inline bool is_set(const std::vector<uint32_t>& mask, int32_t token) {
  return (mask[static_cast<size_t>(token) / 32] >> (token % 32) & 1) != 0;
}

}  // namespace nibble::test
