// Comparisons digit by digit: at each position the number either is still equal to the bound, or
// has left it for good and any digits may follow.
#include "text/grammar_number.h"

#include <algorithm>

#include "base/format.h"

namespace nibble {
namespace {

constexpr int kIntegerDigits = 18;
constexpr int kFractionDigits = 16;
constexpr size_t kBoundFractionDigits = 15;
constexpr int64_t kLargest = 999'999'999'999'999'999;

// A number that is not negative: digits without leading zeros, fraction without trailing ones.
struct Decimal {
  std::string whole;
  std::string fraction;
};
struct Bound {
  Decimal value;
  bool exclusive = false;
};

int compare(const Decimal& a, const Decimal& b) {
  if (a.whole.size() != b.whole.size()) return a.whole.size() < b.whole.size() ? -1 : 1;
  if (const int c = a.whole.compare(b.whole); c != 0) return c;
  return a.fraction.compare(b.fraction);
}

class Builder {
 public:
  explicit Builder(GrammarRules* rules) : r_(rules) {}

  ExprId digits(int min, int max) { return r_->repeat(r_->chars(CharSet('0', '9')), min, max); }
  ExprId digit_range(char first, char last) {
    if (first > last) return r_->never();
    return r_->chars(CharSet(static_cast<char32_t>(first), static_cast<char32_t>(last)));
  }
  ExprId literal(std::string_view text) { return r_->bytes(text); }

  // Strings of s.size() digits that are >= s, <= s, or between a and b.
  ExprId at_least(std::string_view s) {
    if (s.find_first_not_of('0') == std::string_view::npos) return all_digits(s.size());
    const ExprId above =
        r_->sequence({digit_range(static_cast<char>(s[0] + 1), '9'), all_digits(s.size() - 1)});
    return r_->choice({above, r_->sequence({literal(s.substr(0, 1)), at_least(s.substr(1))})});
  }
  ExprId at_most(std::string_view s) {
    if (s.find_first_not_of('9') == std::string_view::npos) return all_digits(s.size());
    const ExprId below =
        r_->sequence({digit_range('0', static_cast<char>(s[0] - 1)), all_digits(s.size() - 1)});
    return r_->choice({below, r_->sequence({literal(s.substr(0, 1)), at_most(s.substr(1))})});
  }
  ExprId between(std::string_view a, std::string_view b) {
    if (a.empty()) return r_->empty();
    if (a[0] == b[0])
      return r_->sequence({literal(a.substr(0, 1)), between(a.substr(1), b.substr(1))});
    const ExprId inner = digit_range(static_cast<char>(a[0] + 1), static_cast<char>(b[0] - 1));
    return r_->choice({r_->sequence({literal(a.substr(0, 1)), at_least(a.substr(1))}),
                       r_->sequence({inner, all_digits(a.size() - 1)}),
                       r_->sequence({literal(b.substr(0, 1)), at_most(b.substr(1))})});
  }
  ExprId all_digits(size_t count) {
    const int n = static_cast<int>(count);
    return n == 0 ? r_->empty() : digits(n, n);
  }

  // Whole numbers of [a, b], 0 <= a <= b, without leading zeros.
  ExprId whole_between(int64_t a, int64_t b) {
    if (a > b) return r_->never();
    std::vector<ExprId> parts;
    for (int64_t low = a; low <= b;) {
      const std::string text = std::to_string(low);
      int64_t longest = 1;  // the largest number of as many digits
      for (size_t i = 0; i < text.size(); ++i) longest *= 10;
      const int64_t high = std::min(b, longest - 1);
      parts.push_back(between(text, std::to_string(high)));
      low = high + 1;
    }
    return r_->choice(std::move(parts));
  }

  ExprId any_fraction() {
    return r_->optional(r_->sequence({literal("."), digits(1, kFractionDigits)}));
  }

  // What may follow the point for a fraction >= (or >) 0.s.
  ExprId fraction_above(std::string_view s, bool exclusive) {
    if (s.empty()) {
      if (!exclusive) return digits(0, kFractionDigits);
      return r_->sequence({r_->repeat(literal("0"), 0, kFractionDigits), digit_range('1', '9'),
                           digits(0, kFractionDigits)});
    }
    return r_->choice(
        {r_->sequence({digit_range(static_cast<char>(s[0] + 1), '9'), digits(0, kFractionDigits)}),
         r_->sequence({literal(s.substr(0, 1)), fraction_above(s.substr(1), exclusive)})});
  }
  ExprId fraction_below(std::string_view s, bool exclusive) {
    if (s.empty()) return exclusive ? r_->never() : r_->repeat(literal("0"), 0, kFractionDigits);
    ExprId rest = fraction_below(s.substr(1), exclusive);
    if (s.size() > 1) rest = r_->optional(rest);
    return r_->choice(
        {r_->sequence({digit_range('0', static_cast<char>(s[0] - 1)), digits(0, kFractionDigits)}),
         r_->sequence({literal(s.substr(0, 1)), rest})});
  }
  ExprId fraction_between(std::string_view a, bool a_exclusive, std::string_view b,
                          bool b_exclusive) {
    const char first = a.empty() ? '0' : a[0];
    if (b.empty()) return a.empty() && !a_exclusive ? fraction_below(b, b_exclusive) : r_->never();
    const std::string_view a_rest = a.empty() ? a : a.substr(1);
    if (first == b[0])
      return r_->sequence({literal(b.substr(0, 1)),
                           fraction_between(a_rest, a_exclusive, b.substr(1), b_exclusive)});
    ExprId b_rest = fraction_below(b.substr(1), b_exclusive);
    if (b.size() > 1) b_rest = r_->optional(b_rest);
    return r_->choice(
        {r_->sequence({literal(std::string(1, first)), fraction_above(a_rest, a_exclusive)}),
         r_->sequence({digit_range(static_cast<char>(first + 1), static_cast<char>(b[0] - 1)),
                       digits(0, kFractionDigits)}),
         r_->sequence({literal(b.substr(0, 1)), b_rest})});
  }
  // Numbers of [low, high], both not negative.
  ExprId positive_between(const Bound& low, const Bound& high) {
    const int order = compare(low.value, high.value);
    if (order > 0 || (order == 0 && (low.exclusive || high.exclusive))) return r_->never();
    const int64_t low_whole = std::stoll(low.value.whole);
    const int64_t high_whole = std::stoll(high.value.whole);
    const std::string& low_fraction = low.value.fraction;
    const std::string& high_fraction = high.value.fraction;
    const bool low_bare = low_fraction.empty() && !low.exclusive;
    const bool high_bare = !high_fraction.empty() || !high.exclusive;
    std::vector<ExprId> parts;
    if (low_whole == high_whole) {
      if (low_bare && high_bare) parts.push_back(literal(low.value.whole));
      if (!high_fraction.empty())
        parts.push_back(r_->sequence(
            {literal(low.value.whole), literal("."),
             fraction_between(low_fraction, low.exclusive, high_fraction, high.exclusive)}));
      return r_->choice(std::move(parts));
    }
    if (low_bare) parts.push_back(literal(low.value.whole));
    parts.push_back(r_->sequence({literal(low.value.whole), literal("."), above(low)}));
    if (low_whole + 1 <= high_whole - 1)
      parts.push_back(r_->sequence({whole_between(low_whole + 1, high_whole - 1), any_fraction()}));
    if (high_bare) parts.push_back(literal(high.value.whole));
    if (high_bare && high_fraction.empty())
      parts.push_back(r_->sequence(
          {literal(high.value.whole), literal("."), r_->repeat(literal("0"), 1, kFractionDigits)}));
    if (!high_fraction.empty())
      parts.push_back(r_->sequence({literal(high.value.whole), literal("."),
                                    fraction_below(high_fraction, high.exclusive)}));
    return r_->choice(std::move(parts));
  }

 private:
  // fraction_above(), never empty.
  ExprId above(const Bound& low) {
    if (low.value.fraction.empty() && !low.exclusive) return digits(1, kFractionDigits);
    return fraction_above(low.value.fraction, low.exclusive);
  }
  GrammarRules* r_;
};

Decimal magnitude(std::string_view text) {
  if (text.starts_with("-")) text.remove_prefix(1);
  const size_t point = text.find('.');
  Decimal d;
  d.whole = text.substr(0, point);
  d.whole.erase(0, std::min(d.whole.find_first_not_of('0'), d.whole.size() - 1));
  if (point != std::string_view::npos) d.fraction = text.substr(point + 1, kBoundFractionDigits);
  while (d.fraction.ends_with('0')) d.fraction.pop_back();
  return d;
}

bool is_negative(const NumberBound& bound) {
  const Decimal d = magnitude(bound.decimal);
  return bound.decimal.starts_with("-") && (d.whole != "0" || !d.fraction.empty());
}

}  // namespace

ExprId any_integer(GrammarRules* rules) {
  Builder b(rules);
  return rules->choice({rules->bytes("0"), rules->sequence({rules->optional(rules->bytes("-")),
                                                            b.digit_range('1', '9'),
                                                            b.digits(0, kIntegerDigits - 1)})});
}

ExprId any_number(GrammarRules* rules) {
  Builder b(rules);
  const ExprId whole =
      rules->choice({rules->bytes("0"),
                     rules->sequence({b.digit_range('1', '9'), b.digits(0, kIntegerDigits - 1)})});
  const ExprId exponent =
      rules->sequence({rules->chars(CharSet::of(U"eE")),
                       rules->optional(rules->chars(CharSet::of(U"+-"))), b.digits(1, 2)});
  return rules->sequence(
      {rules->optional(rules->bytes("-")), whole, b.any_fraction(), rules->optional(exponent)});
}

ExprId integer_between(std::optional<int64_t> low, std::optional<int64_t> high,
                       GrammarRules* rules) {
  Builder b(rules);
  const int64_t first = std::max(low.value_or(-kLargest), -kLargest);
  const int64_t last = std::min(high.value_or(kLargest), kLargest);
  std::vector<ExprId> parts;
  if (first < 0)
    parts.push_back(rules->sequence(
        {rules->bytes("-"),
         b.whole_between(std::max<int64_t>(1, -std::min<int64_t>(last, -1)), -first)}));
  if (last < 0 && first >= 0) return rules->never();
  if (last >= 0) parts.push_back(b.whole_between(std::max<int64_t>(0, first), last));
  return rules->choice(std::move(parts));
}

ExprId number_between(const std::optional<NumberBound>& low, const std::optional<NumberBound>& high,
                      GrammarRules* rules) {
  Builder b(rules);
  const Bound zero{{"0", ""}, false};
  const Bound above_zero{{"0", ""}, true};
  const Bound largest{{std::to_string(kLargest), ""}, false};
  const bool low_negative = !low || is_negative(*low);
  const bool high_negative = high && is_negative(*high);
  std::vector<ExprId> parts;
  if (low_negative) {
    const Bound far = low ? Bound{magnitude(low->decimal), low->exclusive} : largest;
    const Bound near =
        high_negative ? Bound{magnitude(high->decimal), high->exclusive} : above_zero;
    parts.push_back(rules->sequence({rules->bytes("-"), b.positive_between(near, far)}));
  }
  if (!high_negative) {
    const Bound near = low_negative ? zero : Bound{magnitude(low->decimal), low->exclusive};
    const Bound far = high ? Bound{magnitude(high->decimal), high->exclusive} : largest;
    parts.push_back(b.positive_between(near, far));
  }
  return parts.empty() ? rules->never() : rules->choice(std::move(parts));
}

}  // namespace nibble
