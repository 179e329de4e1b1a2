// Constrained decoding: a JSON Schema, a regular expression, a list of choices, an EBNF grammar or
// tool-call tags become one grammar over bytes, and a matcher says which tokens may come next.
// Coverage, limits and the form of generated JSON: docs/reference/structured-output.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace nibble {

class Tokenizer;
class GrammarRules;      // text/grammar_rules.h
class GrammarAutomaton;  // text/grammar_automaton.h
class TokenTrie;         // text/token_trie.h

struct GrammarOptions {
  // Between the tokens of JSON: false allows exactly `", "` and `": "`; true allows up to 32 white
  // space characters anywhere JSON allows them.
  bool any_whitespace = false;
  // False: objects with `properties` take no others unless `additionalProperties` asks for them.
  // True: JSON Schema's own default, they do.
  bool open_objects = false;
};

// How a tool call is written in the reply; text/reply_parser.h reads both.
enum class ToolCallStyle {
  kQwenXml,  // <tool_call>\n<function=NAME>\n<parameter=KEY>\nVALUE\n</parameter>\n</function>...
  kHermes,   // <tool_call>\n{"name": NAME, "arguments": {...}}\n</tool_call>
};

// Rules that every engine of grammars below works on. Immutable, cheap to copy. All factories are
// bounded in time and memory whatever they are given (depth 128, 200,000 states); errors are
// kInvalidArgument or kUnsupported, one line, and name the place: a path such as
// "$.properties.age.minimum", or an offset in the text.
class Grammar {
 public:
  static Result<Grammar> json_schema(const Json& schema, const GrammarOptions& options = {});
  static Result<Grammar> json_object(const GrammarOptions& options = {});
  static Result<Grammar> regex(std::string_view pattern);  // matches the whole text
  static Result<Grammar> choice(std::span<const std::string> choices);
  static Result<Grammar> ebnf(std::string_view text);  // GBNF; starts at the rule "root"
  // vLLM's structural tags: {"structures": [{begin, schema, end}], "triggers": [...]}.
  static Result<Grammar> structural_tag(const Json& tag, const GrammarOptions& options = {});
  // One call of any of `tools` (OpenAI tool objects), or several when `parallel`; nothing else.
  static Result<Grammar> tool_calls(const Json& tools, ToolCallStyle style, bool parallel,
                                    const GrammarOptions& options = {});

  const GrammarRules& rules() const { return *rules_; }

 private:
  explicit Grammar(std::shared_ptr<const GrammarRules> rules) : rules_(std::move(rules)) {}
  std::shared_ptr<const GrammarRules> rules_;
};

// A grammar ready to mask the tokens of one vocabulary. Shared by all requests with this grammar;
// thread-safe (one mutex). What it learns about the grammar's states (which tokens each allows) is
// kept under `max_cache_bytes` and forgotten all at once when it does not fit.
class CompiledGrammar {
 public:
  static constexpr size_t kDefaultCacheBytes = size_t{64} << 20;
  // kInvalidArgument for left recursion and for more states than the limit.
  static Result<std::shared_ptr<CompiledGrammar>> compile(
      const Grammar& grammar, std::shared_ptr<const TokenTrie> trie,
      size_t max_cache_bytes = kDefaultCacheBytes);
  ~CompiledGrammar();

  // Fills masks ahead, so that the first requests do not pay: as many states as `milliseconds`
  // allow, the starts of rules first.
  void warm_up(int milliseconds);
  size_t cache_bytes() const;

 private:
  friend class GrammarMatcher;
  struct State;
  explicit CompiledGrammar(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// One text in the making. Not thread-safe; cheap to copy, which is how to go back.
class GrammarMatcher {
 public:
  explicit GrammarMatcher(std::shared_ptr<CompiledGrammar> grammar);
  GrammarMatcher(const GrammarMatcher&);
  GrammarMatcher& operator=(const GrammarMatcher&);
  ~GrammarMatcher();

  // Bit t of mask[t / 32] is set iff token t may come next; all other bits are cleared. End tokens
  // are allowed only when the text is complete, and then alone when nothing may follow.
  void fill(std::span<uint32_t> mask);
  // False, with the state unchanged, when the token may not come next.
  bool accept(int32_t token);
  // The same for bytes of text.
  bool accept_bytes(std::string_view bytes);
  bool complete() const;  // the text so far is a whole one
  bool ended() const;     // an end token was accepted

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace nibble
