// Recursive descent over the pattern.
#include "text/grammar_regex.h"

#include <optional>

#include "base/format.h"
#include "text/unicode.h"

namespace nibble {
namespace {

constexpr int kMaxDepth = 100;          // of groups
constexpr int64_t kMaxSize = 20'000;    // characters after all counts are multiplied out
constexpr size_t kMaxPattern = 65'536;  // bytes
constexpr int64_t kUnbounded = -1;

CharSet digits() {
  return CharSet('0', '9');
}
CharSet word() {
  CharSet set = digits();
  set.add('a', 'z');
  set.add('A', 'Z');
  set.add('_', '_');
  return set;
}
CharSet space() {
  return CharSet::of(U"\t\n\f\r \v");
}

// \pL and \pN, from the tables the tokenizer uses.
const CharSet& category(char name) {
  const auto collect = [](bool (*is_member)(char32_t)) {
    CharSet set;
    for (char32_t c = 0; c <= 0x10ffff; ++c) {
      if (!is_member(c)) continue;
      const char32_t first = c;
      while (c < 0x10ffff && is_member(c + 1)) ++c;
      set.add(first, c);
    }
    (void)set.ranges();  // sorted before threads share it
    return set;
  };
  static const CharSet kLetters = collect(is_letter);
  static const CharSet kNumbers = collect(is_number);
  return name == 'L' ? kLetters : kNumbers;
}

class Parser {
 public:
  Parser(std::string_view pattern, GrammarRegexMode mode, GrammarRules* rules)
      : pattern_(pattern), mode_(mode), rules_(rules) {}

  Result<ExprId> parse() {
    if (pattern_.size() > kMaxPattern)
      return make_error(ErrorCode::kInvalidArgument, "regex: {} bytes, at most {}", pattern_.size(),
                        kMaxPattern);
    if (!is_valid_utf8(pattern_))
      return make_error(ErrorCode::kInvalidArgument, "regex: not valid UTF-8");
    NB_TRY(const Sized whole, alternatives(0));
    if (at_ < pattern_.size()) return error("an unmatched \")\"");
    return whole.expr;
  }

 private:
  struct Sized {
    ExprId expr;
    int64_t size;
  };

  Error error(std::string_view what) const {
    return make_error(ErrorCode::kInvalidArgument, "regex \"{}\": {} at offset {}",
                      pattern_.substr(0, 80), what, at_);
  }
  bool peek(std::string_view text) const { return pattern_.substr(at_).starts_with(text); }
  bool take(std::string_view text) {
    if (!peek(text)) return false;
    at_ += text.size();
    return true;
  }
  ExprId chars(const CharSet& set) {
    return mode_.json_string ? json_string_chars(set, rules_) : rules_->chars(set);
  }
  ExprId anything() { return rules_->repeat(chars(CharSet::all()), 0, -1); }

  Result<Sized> alternatives(int depth) {
    if (depth > kMaxDepth) return error(format("groups nested deeper than {}", kMaxDepth));
    std::vector<ExprId> parts;
    int64_t size = 0;
    do {
      NB_TRY(const Sized part, alternative(depth));
      parts.push_back(part.expr);
      size += part.size;
    } while (take("|"));
    if (size > kMaxSize) return too_large();
    return Sized{rules_->choice(std::move(parts)), size};
  }

  Error too_large() const {
    return error(format("repetition counts that multiply to more than {} characters", kMaxSize));
  }

  Result<Sized> alternative(int depth) {
    std::vector<ExprId> parts;
    int64_t size = 0;
    const bool from_start = depth == 0 && take("^");
    bool to_end = false;
    while (at_ < pattern_.size() && !peek("|") && !peek(")")) {
      if (take("$")) {
        if (depth > 0 || (at_ < pattern_.size() && !peek("|")))
          return error("\"$\" that is not at the end");
        to_end = true;
        break;
      }
      NB_TRY(const Sized part, repeated(depth));
      parts.push_back(part.expr);
      size += part.size;
      if (size > kMaxSize) return too_large();
    }
    if (mode_.search && depth == 0) {
      if (!from_start) parts.insert(parts.begin(), anything());
      if (!to_end) parts.push_back(anything());
    }
    return Sized{rules_->sequence(std::move(parts)), size};
  }

  Result<Sized> repeated(int depth) {
    NB_TRY(Sized part, atom(depth));
    for (int count = 0;; ++count) {
      int64_t min = 0;
      int64_t max = kUnbounded;
      if (take("*")) {
      } else if (take("+")) {
        min = 1;
      } else if (take("?")) {
        max = 1;
      } else if (peek("{")) {
        NB_TRY(const bool is_count, counts(&min, &max));
        if (!is_count) break;
      } else {
        break;
      }
      if (count > 0) return error("a repetition of a repetition");
      take("?");  // lazy or greedy, the same texts match
      const int64_t copies = std::max<int64_t>(1, max == kUnbounded ? min : max);
      if (copies > kMaxSize || part.size * copies > kMaxSize) return too_large();
      part = {rules_->repeat(part.expr, static_cast<int32_t>(min), static_cast<int32_t>(max)),
              part.size * copies};
    }
    return part;
  }

  // {m}, {m,}, {m,n}; false when the brace is an ordinary character.
  Result<bool> counts(int64_t* min, int64_t* max) {
    size_t i = at_ + 1;
    const auto number = [&](int64_t* value) {
      const size_t start = i;
      for (*value = 0; i < pattern_.size() && pattern_[i] >= '0' && pattern_[i] <= '9'; ++i)
        *value = std::min<int64_t>(*value * 10 + (pattern_[i] - '0'), 1'000'000'000);
      return i > start;
    };
    if (!number(min)) return false;
    *max = *min;
    if (i < pattern_.size() && pattern_[i] == ',') {
      ++i;
      if (!number(max)) *max = kUnbounded;
    }
    if (i >= pattern_.size() || pattern_[i] != '}') return false;
    if (*max != kUnbounded && *max < *min) return error("a repetition with its counts swapped");
    at_ = i + 1;
    return true;
  }

  Result<Sized> atom(int depth) {
    if (take("(")) {
      if (take("?")) {
        if (take("P<") || (peek("<") && !peek("<=") && !peek("<!") && take("<"))) {
          while (at_ < pattern_.size() && pattern_[at_] != '>') ++at_;
          if (!take(">")) return error("a group name without \">\"");
        } else if (!take(":")) {
          return error("look-around or flags, which are not supported,");
        }
      }
      NB_TRY(const Sized inside, alternatives(depth + 1));
      if (!take(")")) return error("a group without \")\"");
      return inside;
    }
    for (const std::string_view stray : {"*", "+", "?"})
      if (peek(stray)) return error(format("\"{}\" with nothing to repeat", stray));
    if (peek("^")) return error("\"^\" that is not at the start");
    if (take(".")) return Sized{chars(CharSet('\n', '\n').complement()), 1};
    if (peek("[")) {
      NB_TRY(const CharSet set, bracket());
      if (set.empty()) return error("an empty class");
      return Sized{chars(set), 1};
    }
    if (peek("\\")) {
      NB_TRY(const CharSet set, escape());
      return Sized{chars(set), 1};
    }
    const char32_t c = next_char();
    return Sized{chars(CharSet(c, c)), 1};
  }

  char32_t next_char() {
    const CodePoint c = decode_utf8(pattern_.substr(at_));
    at_ += static_cast<size_t>(c.num_bytes);
    return c.value;
  }

  Result<CharSet> escape() {
    take("\\");
    if (at_ >= pattern_.size()) return error("a backslash with nothing behind it");
    const char32_t c = next_char();
    switch (c) {
      case 'd': return digits();
      case 'D': return digits().complement();
      case 'w': return word();
      case 'W': return word().complement();
      case 's': return space();
      case 'S': return space().complement();
      case 'n': return CharSet('\n', '\n');
      case 't': return CharSet('\t', '\t');
      case 'r': return CharSet('\r', '\r');
      case 'f': return CharSet('\f', '\f');
      case 'v': return CharSet('\v', '\v');
      case 'p':
      case 'P': {
        for (const std::string_view name : {"{L}", "L", "{N}", "N"}) {
          if (!take(name)) continue;
          const CharSet& set = category(name[name.size() == 1 ? 0 : 1]);
          return c == 'P' ? set.complement() : set;
        }
        return error("a Unicode class other than \\p{L} and \\p{N}");
      }
      case 'x':
        if (take("{")) return hex(1, 6, "}");
        return hex(2, 2, "");
      case 'u':
        if (take("{")) return hex(1, 6, "}");
        return hex(4, 4, "");
      default: break;
    }
    const bool is_word = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (is_word) return error(format("\\{}, which is not supported,", static_cast<char>(c)));
    return CharSet(c, c);
  }

  Result<CharSet> hex(int min_digits, int max_digits, std::string_view closing) {
    char32_t value = 0;
    int count = 0;
    for (; count < max_digits && at_ < pattern_.size(); ++count, ++at_) {
      const char c = pattern_[at_];
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) break;
      value = value * 16 + static_cast<char32_t>(digit);
    }
    if (count < min_digits || !take(closing)) return error("a bad hexadecimal escape");
    const CharSet set(value, value);
    if (value > 0x10ffff || set.empty()) return error("an escape that is no character");
    return set;
  }

  Result<CharSet> bracket() {
    take("[");
    const bool negated = take("^");
    CharSet set;
    for (bool first = true; first || !peek("]"); first = false) {
      if (at_ >= pattern_.size()) return error("a class without \"]\"");
      if (peek("[:")) return error("a POSIX class, which is not supported,");
      CharSet low;
      bool is_class = false;
      if (peek("\\")) {
        is_class = at_ + 1 < pattern_.size() &&
                   std::string_view("dDwWsSpP").find(pattern_[at_ + 1]) != std::string_view::npos;
        if (peek("\\b")) {
          at_ += 2;
          low = CharSet('\b', '\b');
        } else {
          NB_TRY(low, escape());
        }
      } else {
        const char32_t c = next_char();
        low = CharSet(c, c);
      }
      const bool is_range =
          !is_class && peek("-") && at_ + 1 < pattern_.size() && pattern_[at_ + 1] != ']';
      if (!is_range) {
        set.add(low);
        continue;
      }
      take("-");
      CharSet high;
      if (peek("\\")) {
        NB_TRY(high, escape());
      } else {
        const char32_t c = next_char();
        high = CharSet(c, c);
      }
      const char32_t first_char = low.ranges()[0].first;
      const char32_t last_char = high.ranges()[0].first;
      if (high.ranges().size() != 1 || high.ranges()[0].second != last_char ||
          last_char < first_char)
        return error("a class range that is no range");
      set.add(first_char, last_char);
    }
    take("]");
    return negated ? set.complement() : set;
  }

  std::string_view pattern_;
  GrammarRegexMode mode_;
  GrammarRules* rules_;
  size_t at_ = 0;
};

}  // namespace

ExprId json_string_chars(const CharSet& set, GrammarRules* rules) {
  CharSet escaped(0, 0x1f);
  escaped.add('"', '"');
  escaped.add('\\', '\\');
  std::vector<ExprId> parts;
  if (const CharSet plain = set.without(escaped); !plain.empty())
    parts.push_back(rules->chars(plain));
  constexpr std::string_view kShort = "\"\\\b\f\n\r\t";
  constexpr std::string_view kLetters = "\"\\bfnrt";
  const CharSet special = set.without(escaped.complement());
  for (const auto& [first, last] : special.ranges())
    for (char32_t c = first; c <= last; ++c) {
      const size_t known = kShort.find(static_cast<char>(c));
      parts.push_back(rules->bytes(known != std::string_view::npos
                                       ? format("\\{}", kLetters[known])
                                       : format("\\u{:04x}", static_cast<uint32_t>(c))));
    }
  return parts.empty() ? rules->never() : rules->choice(std::move(parts));
}

Result<ExprId> parse_grammar_regex(std::string_view pattern, GrammarRegexMode mode,
                                   GrammarRules* rules) {
  return Parser(pattern, mode, rules).parse();
}

}  // namespace nibble
