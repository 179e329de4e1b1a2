// GBNF, the EBNF of llama.cpp and xgrammar: `root ::= "yes" | "no"`.
#pragma once

#include <string_view>

#include "base/result.h"
#include "text/grammar_rules.h"

namespace nibble {

// Rules by name; starts at "root". Literals "..." and '...' with \n \r \t \" \' \\ \xHH \uHHHH,
// classes [a-z], . for any character, ( ), |, * + ? {m} {m,} {m,n}, # comments. A rule that starts
// with itself (`list ::= list "," item | item`) is rewritten as a repetition; longer left recursion
// is found when the automaton is built. kInvalidArgument names the line.
Result<GrammarRules> parse_ebnf(std::string_view text);

}  // namespace nibble
