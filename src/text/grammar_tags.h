// Text with tags in it: structural tags of a request, and tool calls in a model's own format.
#pragma once

#include "base/json.h"
#include "base/result.h"
#include "text/grammar.h"
#include "text/grammar_rules.h"

namespace nibble {

// Both forms that vLLM takes: {"structures": [{begin, schema, end}], "triggers": [...]}, and
// {"format": {"type": ...}} with const_string, json_schema, qwen_xml_parameter, regex, any_text,
// sequence, or, tag, triggered_tags and tags_with_separator.
Result<ExprId> parse_structural_tag(const Json& tag, const GrammarOptions& options,
                                    GrammarRules* rules);

// One call, or up to 32 when `parallel`, of functions of `tools`; nothing between but a newline.
Result<ExprId> tool_calls_expr(const Json& tools, ToolCallStyle style, bool parallel,
                               const GrammarOptions& options, GrammarRules* rules);

}  // namespace nibble
