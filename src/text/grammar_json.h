// JSON text as grammar expressions: what any value is, and the pieces that values of a schema are
// put together from. Used by grammar_schema.cc, grammar_tags.cc and grammar.cc.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "text/grammar.h"
#include "text/grammar_rules.h"

namespace nibble {

// Adds to `rules`, which must outlive it; what has been made once is made of one rule.
class JsonGrammar {
 public:
  JsonGrammar(const GrammarOptions& options, GrammarRules* rules) : options_(options), r_(*rules) {}

  ExprId any_value();
  ExprId any_object();
  ExprId string();
  // One character between the quotes. Surrogates only as a pair.
  ExprId character();
  // A string that is none of `names`, which are sorted and need no escapes.
  ExprId string_but(std::span<const std::string> names);

  // min to max of `item`; max -1: any number.
  ExprId list_of(ExprId item, int32_t min, int32_t max);
  // The same of `entry`, a key with its value.
  ExprId object_of(ExprId entry, int32_t min, int32_t max);

  // `{`, `}`, `[`, `]` with the white space that may stand inside, `, ` and `: `.
  ExprId open(std::string_view bracket);
  ExprId close(std::string_view bracket);
  ExprId comma();
  ExprId colon();

 private:
  ExprId space();
  ExprId separated(ExprId item, int32_t min, int32_t max, const char* name_of_next);
  ExprId text_but(std::span<const std::string> names, size_t at, int depth);

  GrammarOptions options_;
  GrammarRules& r_;
  RuleId any_value_ = -1;
  RuleId any_object_ = -1;
  ExprId string_ = -1;
  ExprId character_ = -1;
  ExprId rest_of_string_ = -1;
  ExprId space_ = -1;
};

}  // namespace nibble
