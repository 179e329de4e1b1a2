// JSON numbers within bounds, as grammar expressions over decimal digits.
#pragma once

#include <optional>
#include <string>

#include "text/grammar_rules.h"

namespace nibble {

// One end of a range, in plain decimal notation ("-12.5"). Digits of the fraction past the 15th
// are cut.
struct NumberBound {
  std::string decimal;
  bool exclusive = false;
};

// Unbounded numbers have at most 18 digits before the point, 16 behind it and 2 in the exponent:
// enough for every double worth writing, and a model cannot write digits for ever.
ExprId any_integer(GrammarRules* rules);
ExprId any_number(GrammarRules* rules);

// Integers of [low, high]; either may be absent. Nothing when low > high.
ExprId integer_between(std::optional<int64_t> low, std::optional<int64_t> high,
                       GrammarRules* rules);
// Numbers between the bounds, without exponent.
ExprId number_between(const std::optional<NumberBound>& low, const std::optional<NumberBound>& high,
                      GrammarRules* rules);

}  // namespace nibble
