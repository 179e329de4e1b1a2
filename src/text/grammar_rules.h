// What the front ends (JSON Schema, regex, EBNF, tags) build and the automaton runs: named rules
// over a few kinds of expression. Characters are code points; the automaton turns them into bytes.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nibble {

// A set of Unicode scalar values (surrogates are never members).
class CharSet {
 public:
  CharSet() = default;
  CharSet(char32_t first, char32_t last) { add(first, last); }
  static CharSet all() { return CharSet(0, 0x10ffff); }
  static CharSet of(std::u32string_view members);

  void add(char32_t first, char32_t last);
  void add(const CharSet& other);
  CharSet complement() const;
  CharSet without(const CharSet& other) const;
  bool contains(char32_t c) const;
  bool empty() const { return ranges().empty(); }
  // Sorted, disjoint, not touching.
  const std::vector<std::pair<char32_t, char32_t>>& ranges() const;

 private:
  mutable std::vector<std::pair<char32_t, char32_t>> ranges_;
  mutable bool sorted_ = true;
};

using ExprId = int32_t;
using RuleId = int32_t;

struct GrammarExpr {
  enum class Kind {
    kNever,     // matches nothing
    kBytes,     // `bytes`; may be empty
    kChars,     // one character of `chars`
    kSequence,  // `parts`, one after the other
    kChoice,    // one of `parts`
    kRepeat,    // parts[0], `min` to `max` times; max -1: any number
    kRule,      // the rule `rule`
    kUntil,     // see GrammarRules::until()
  };
  Kind kind = Kind::kNever;
  std::string bytes = {};
  CharSet chars = {};
  std::vector<ExprId> parts = {};
  int32_t min = 0;
  int32_t max = 0;
  RuleId rule = -1;
  std::vector<std::string> triggers = {};  // kUntil: triggers[i] goes on with parts[i]
  std::vector<std::string> excluded = {};
  bool may_end = false;
};

class GrammarRules {
 public:
  ExprId never();
  ExprId empty() { return bytes(""); }
  ExprId bytes(std::string_view text);
  ExprId chars(const CharSet& set);
  ExprId sequence(std::vector<ExprId> parts);
  ExprId choice(std::vector<ExprId> parts);
  ExprId repeat(ExprId part, int32_t min, int32_t max);
  ExprId optional(ExprId part) { return repeat(part, 0, 1); }
  // Any bytes that hold none of the strings, then triggers[i] followed by parts[i]; with
  // `may_end`, also any bytes alone. The longest string wins where several end at one place.
  ExprId until(std::vector<std::string> triggers, std::vector<ExprId> parts,
               std::vector<std::string> excluded, bool may_end);

  // A rule may be named before it is defined. An undefined rule matches nothing.
  RuleId add_rule(std::string name);
  void define(RuleId rule, ExprId body) { rules_[static_cast<size_t>(rule)].body = body; }
  ExprId call(RuleId rule);
  // A rule of its own for `body`: its states exist once, however often it is called.
  ExprId call_new(std::string name, ExprId body);

  struct Rule {
    std::string name;
    ExprId body = -1;
  };
  std::span<const Rule> rules() const { return rules_; }
  const GrammarExpr& expr(ExprId id) const { return exprs_[static_cast<size_t>(id)]; }
  size_t num_exprs() const { return exprs_.size(); }
  RuleId start = 0;

 private:
  ExprId add(GrammarExpr expr);
  std::vector<GrammarExpr> exprs_;
  std::vector<Rule> rules_;
};

}  // namespace nibble
