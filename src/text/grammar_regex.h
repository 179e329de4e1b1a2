// Regular expressions as grammar expressions: RE2's syntax less what needs a look at the
// surroundings (word boundaries, look-around, back references, flags).
#pragma once

#include <string_view>

#include "base/result.h"
#include "text/grammar_rules.h"

namespace nibble {

struct GrammarRegexMode {
  // False: the pattern must match the whole text; ^ and $ may be written. True: anywhere in it, as
  // JSON Schema's `pattern` does.
  bool search = false;
  // Characters are written as in a JSON string: a quote as \", a newline as \n.
  bool json_string = false;
};

// kInvalidArgument with the offset: syntax, what is not supported, repetition counts that multiply
// to more than 20,000.
Result<ExprId> parse_grammar_regex(std::string_view pattern, GrammarRegexMode mode,
                                   GrammarRules* rules);

// One character of `set` as it stands in a JSON string.
ExprId json_string_chars(const CharSet& set, GrammarRules* rules);

}  // namespace nibble
