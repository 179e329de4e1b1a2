// JSON Schema (draft 2020-12, the part used in practice) as grammar expressions.
#pragma once

#include <string>
#include <string_view>

#include "base/json.h"
#include "base/result.h"
#include "text/grammar.h"
#include "text/grammar_rules.h"

namespace nibble {

// Adds the values of one schema to `rules`. `$ref` is looked up in the schema given here.
class SchemaGrammar {
 public:
  SchemaGrammar(const Json& schema, const GrammarOptions& options, GrammarRules* rules);
  ~SchemaGrammar();

  // kInvalidArgument or kUnsupported with the path of the keyword; `path` stands before it.
  Result<ExprId> value(std::string_view path = "$");
  // The schema's properties as Qwen writes arguments: <parameter=KEY>\nVALUE\n</parameter>\n.
  Result<ExprId> qwen_parameters(std::string_view path = "$");

 private:
  class Builder;
  std::unique_ptr<Builder> builder_;
};

}  // namespace nibble
