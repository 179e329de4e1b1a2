// Character sets and the construction of expressions.
#include "text/grammar_rules.h"

#include <algorithm>

namespace nibble {

CharSet CharSet::of(std::u32string_view members) {
  CharSet set;
  for (const char32_t c : members) set.add(c, c);
  return set;
}

void CharSet::add(char32_t first, char32_t last) {
  constexpr char32_t kFirstSurrogate = 0xd800;
  constexpr char32_t kLastSurrogate = 0xdfff;
  last = std::min<char32_t>(last, 0x10ffff);
  sorted_ = false;
  if (first < kFirstSurrogate && last >= kFirstSurrogate) {
    ranges_.emplace_back(first, kFirstSurrogate - 1);
    if (last > kLastSurrogate) ranges_.emplace_back(kLastSurrogate + 1, last);
  } else {
    if (first >= kFirstSurrogate && first <= kLastSurrogate) first = kLastSurrogate + 1;
    if (first <= last) ranges_.emplace_back(first, last);
  }
}

void CharSet::add(const CharSet& other) {
  for (const auto& [first, last] : other.ranges()) add(first, last);
}

const std::vector<std::pair<char32_t, char32_t>>& CharSet::ranges() const {
  if (sorted_) return ranges_;
  std::ranges::sort(ranges_);
  std::vector<std::pair<char32_t, char32_t>> merged;
  for (const auto& range : ranges_) {
    if (!merged.empty() && range.first <= merged.back().second + 1)
      merged.back().second = std::max(merged.back().second, range.second);
    else
      merged.push_back(range);
  }
  ranges_ = std::move(merged);
  sorted_ = true;
  return ranges_;
}

CharSet CharSet::complement() const {
  CharSet out;
  char32_t next = 0;
  for (const auto& [first, last] : ranges()) {
    if (first > next) out.add(next, first - 1);
    next = last + 1;
  }
  if (next <= 0x10ffff) out.add(next, 0x10ffff);
  return out;
}

CharSet CharSet::without(const CharSet& other) const {
  CharSet outside = complement();
  outside.add(other);
  return outside.complement();
}

bool CharSet::contains(char32_t c) const {
  return std::ranges::any_of(ranges(),
                             [&](const auto& r) { return r.first <= c && c <= r.second; });
}

ExprId GrammarRules::add(GrammarExpr expr) {
  exprs_.push_back(std::move(expr));
  return static_cast<ExprId>(exprs_.size()) - 1;
}

ExprId GrammarRules::never() {
  return add({});
}

ExprId GrammarRules::bytes(std::string_view text) {
  GrammarExpr expr{.kind = GrammarExpr::Kind::kBytes};
  expr.bytes = text;
  return add(std::move(expr));
}

ExprId GrammarRules::chars(const CharSet& set) {
  GrammarExpr expr{.kind = GrammarExpr::Kind::kChars};
  expr.chars = set;
  return add(std::move(expr));
}

ExprId GrammarRules::sequence(std::vector<ExprId> parts) {
  if (parts.size() == 1) return parts[0];
  GrammarExpr expr{.kind = GrammarExpr::Kind::kSequence};
  expr.parts = std::move(parts);
  return add(std::move(expr));
}

ExprId GrammarRules::choice(std::vector<ExprId> parts) {
  if (parts.size() == 1) return parts[0];
  GrammarExpr expr{.kind = GrammarExpr::Kind::kChoice};
  expr.parts = std::move(parts);
  return add(std::move(expr));
}

ExprId GrammarRules::repeat(ExprId part, int32_t min, int32_t max) {
  GrammarExpr expr{.kind = GrammarExpr::Kind::kRepeat};
  expr.parts = {part};
  expr.min = min;
  expr.max = max;
  return add(std::move(expr));
}

ExprId GrammarRules::until(std::vector<std::string> triggers, std::vector<ExprId> parts,
                           std::vector<std::string> excluded, bool may_end) {
  GrammarExpr expr{.kind = GrammarExpr::Kind::kUntil};
  expr.triggers = std::move(triggers);
  expr.parts = std::move(parts);
  expr.excluded = std::move(excluded);
  expr.may_end = may_end;
  return add(std::move(expr));
}

RuleId GrammarRules::add_rule(std::string name) {
  rules_.push_back({std::move(name), -1});
  return static_cast<RuleId>(rules_.size()) - 1;
}

ExprId GrammarRules::call(RuleId rule) {
  GrammarExpr expr{.kind = GrammarExpr::Kind::kRule};
  expr.rule = rule;
  return add(std::move(expr));
}

ExprId GrammarRules::call_new(std::string name, ExprId body) {
  const RuleId rule = add_rule(std::move(name));
  define(rule, body);
  return call(rule);
}

}  // namespace nibble
