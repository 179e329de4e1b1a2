// Any bytes as a JSON Schema, a regular expression or an EBNF grammar (the first byte chooses),
// then the rest of the time as text against what compiled.
#include <cstdint>
#include <string>

#include "text/grammar.h"
#include "text/token_trie.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  if (size < 2) return 0;
  static const std::shared_ptr<const TokenTrie> kTrie = [] {
    std::vector<std::string> bytes(259);
    for (size_t i = 0; i < 256; ++i) bytes[i] = std::string(1, static_cast<char>(i));
    bytes[257] = "\": ";
    bytes[258] = "aab";
    const int32_t end[] = {256};
    return std::make_shared<const TokenTrie>(bytes, end);
  }();
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const auto make = [&]() -> Result<Grammar> {
    switch (data[0] % 4) {
      case 0: return Grammar::regex(text);
      case 1: return Grammar::ebnf(text);
      default: break;
    }
    NB_TRY(const Json json, parse_json(text, "fuzz", {.max_depth = 200}));
    if (data[0] % 4 == 3) return Grammar::structural_tag(json);
    return Grammar::json_schema(json);
  };
  const Result<Grammar> grammar = make();
  if (!grammar) return 0;
  const auto compiled = CompiledGrammar::compile(*grammar, kTrie, 1 << 20);
  if (!compiled) return 0;
  GrammarMatcher matcher(*compiled);
  std::vector<uint32_t> mask(9);
  for (size_t i = 0; i < 32 && !matcher.ended(); ++i) {
    matcher.fill(mask);
    // The first allowed token from a place that depends on the input.
    const auto start = static_cast<int32_t>(data[i % size]);
    int32_t chosen = -1;
    for (int32_t k = 0; k < 259 && chosen < 0; ++k) {
      const int32_t token = (start + k) % 259;
      if ((mask[static_cast<size_t>(token) / 32] >> (token % 32) & 1) != 0) chosen = token;
    }
    if (chosen < 0) break;
    if (!matcher.accept(chosen)) __builtin_trap();  // a mask must not lie
  }
  return 0;
}
