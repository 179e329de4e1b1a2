// The front doors: each makes rules out of one kind of request.
#include "text/grammar.h"

#include <algorithm>

#include "base/format.h"
#include "text/grammar_ebnf.h"
#include "text/grammar_json.h"
#include "text/grammar_regex.h"
#include "text/grammar_rules.h"
#include "text/grammar_schema.h"
#include "text/grammar_tags.h"
#include "text/unicode.h"

namespace nibble {
namespace {

// Rules whose only one so far is the start.
GrammarRules with_start(std::string name) {
  GrammarRules rules;
  rules.start = rules.add_rule(std::move(name));
  return rules;
}

}  // namespace

Result<Grammar> Grammar::json_schema(const Json& schema, const GrammarOptions& options) {
  if (schema.is_boolean() || (schema.is_object() && schema.empty()))
    return make_error(ErrorCode::kInvalidArgument,
                      "json schema {}: says nothing about the value; ask for json_object instead",
                      dump_json(schema));
  GrammarRules rules = with_start("schema");
  SchemaGrammar builder(schema, options, &rules);
  NB_TRY(const ExprId value, builder.value());
  rules.define(rules.start, value);
  return Grammar(std::make_shared<const GrammarRules>(std::move(rules)));
}

Result<Grammar> Grammar::json_object(const GrammarOptions& options) {
  GrammarRules rules = with_start("json object");
  rules.define(rules.start, JsonGrammar(options, &rules).any_object());
  return Grammar(std::make_shared<const GrammarRules>(std::move(rules)));
}

Result<Grammar> Grammar::regex(std::string_view pattern) {
  if (pattern.empty()) return make_error(ErrorCode::kInvalidArgument, "regex: an empty pattern");
  GrammarRules rules = with_start("regex");
  NB_TRY(const ExprId whole, parse_grammar_regex(pattern, {}, &rules));
  rules.define(rules.start, whole);
  return Grammar(std::make_shared<const GrammarRules>(std::move(rules)));
}

Result<Grammar> Grammar::choice(std::span<const std::string> choices) {
  if (choices.empty())
    return make_error(ErrorCode::kInvalidArgument, "choice: an empty list; give at least one text");
  GrammarRules rules = with_start("choice");
  std::vector<ExprId> parts;
  for (size_t i = 0; i < choices.size(); ++i) {
    if (choices[i].empty())
      return make_error(ErrorCode::kInvalidArgument, "choice[{}]: an empty text", i);
    if (!is_valid_utf8(choices[i]))
      return make_error(ErrorCode::kInvalidArgument, "choice[{}]: not valid UTF-8", i);
    parts.push_back(rules.bytes(choices[i]));
  }
  rules.define(rules.start, rules.choice(std::move(parts)));
  return Grammar(std::make_shared<const GrammarRules>(std::move(rules)));
}

Result<Grammar> Grammar::ebnf(std::string_view text) {
  NB_TRY(GrammarRules rules, parse_ebnf(text));
  return Grammar(std::make_shared<const GrammarRules>(std::move(rules)));
}

Result<Grammar> Grammar::structural_tag(const Json& tag, const GrammarOptions& options) {
  GrammarRules rules = with_start("structural tag");
  NB_TRY(const ExprId whole, parse_structural_tag(tag, options, &rules));
  rules.define(rules.start, whole);
  return Grammar(std::make_shared<const GrammarRules>(std::move(rules)));
}

Result<Grammar> Grammar::tool_calls(const Json& tools, ToolCallStyle style, bool parallel,
                                    const GrammarOptions& options) {
  GrammarRules rules = with_start("tool calls");
  NB_TRY(const ExprId whole, tool_calls_expr(tools, style, parallel, options, &rules));
  rules.define(rules.start, whole);
  return Grammar(std::make_shared<const GrammarRules>(std::move(rules)));
}

}  // namespace nibble
