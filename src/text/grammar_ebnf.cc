// Recursive descent; a rule ends where the next `name ::=` begins.
#include "text/grammar_ebnf.h"

#include <algorithm>
#include <map>
#include <optional>

#include "base/format.h"
#include "text/grammar_regex.h"
#include "text/unicode.h"

namespace nibble {
namespace {

constexpr int kMaxDepth = 100;         // of parentheses
constexpr int32_t kMaxCount = 10'000;  // of {m,n}
constexpr int64_t kMaxSize = 20'000;   // elements of a rule after counts are multiplied out
constexpr size_t kMaxText = size_t{1} << 20;

bool is_name(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
         c == '-' || c == '.';
}
bool starts_name(char c) {
  return is_name(c) && c != '-' && c != '.' && !(c >= '0' && c <= '9');
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Result<GrammarRules> parse() {
    if (text_.size() > kMaxText)
      return make_error(ErrorCode::kInvalidArgument, "grammar: {} bytes, at most {}", text_.size(),
                        kMaxText);
    if (!is_valid_utf8(text_))
      return make_error(ErrorCode::kInvalidArgument, "grammar: not valid UTF-8");
    skip();
    if (at_ == text_.size())
      return make_error(ErrorCode::kInvalidArgument, "grammar: empty; expected root ::= ...");
    while (at_ < text_.size()) NB_TRY_STATUS(rule());
    for (const auto& [name, id] : ids_)
      if (rules_.rules()[static_cast<size_t>(id)].body < 0)
        return make_error(ErrorCode::kInvalidArgument, "grammar: rule {} is used but not defined",
                          name);
    const auto root = ids_.find("root");
    if (root == ids_.end())
      return make_error(ErrorCode::kInvalidArgument, "grammar: no rule named root");
    rules_.start = root->second;
    return std::move(rules_);
  }

 private:
  struct Sized {
    ExprId expr;
    int64_t size;
  };

  Error error(std::string_view what) const {
    const auto line =
        1 + std::count(text_.begin(), text_.begin() + static_cast<ptrdiff_t>(at_), '\n');
    return make_error(ErrorCode::kInvalidArgument, "grammar line {}: {}", line, what);
  }
  void skip() {
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c == '#')
        while (at_ < text_.size() && text_[at_] != '\n') ++at_;
      else if (c == ' ' || c == '\t' || c == '\r' || c == '\n')
        ++at_;
      else
        break;
    }
  }
  bool peek(std::string_view token) const { return text_.substr(at_).starts_with(token); }
  bool take(std::string_view token) {
    if (!peek(token)) return false;
    at_ += token.size();
    skip();
    return true;
  }
  std::string_view name() {
    const size_t start = at_;
    if (at_ < text_.size() && starts_name(text_[at_]))
      while (at_ < text_.size() && is_name(text_[at_])) ++at_;
    return text_.substr(start, at_ - start);
  }
  // Whether `name ::=` begins here.
  bool at_definition() {
    const size_t start = at_;
    const bool is_definition = !name().empty() && (skip(), peek("::="));
    at_ = start;
    return is_definition;
  }
  RuleId id_of(std::string_view rule) {
    const auto [it, is_new] = ids_.try_emplace(std::string(rule), 0);
    if (is_new) it->second = rules_.add_rule(std::string(rule));
    return it->second;
  }

  Status rule() {
    const std::string_view rule_name = name();
    if (rule_name.empty()) return error("expected a rule name");
    skip();
    if (!take("::=")) return error(format("expected ::= after {}", rule_name));
    const RuleId id = id_of(rule_name);
    if (rules_.rules()[static_cast<size_t>(id)].body >= 0)
      return error(format("rule {} is defined twice", rule_name));
    std::vector<ExprId> plain;
    std::vector<ExprId> recursive;  // what follows the rule's own name
    do {
      std::vector<ExprId> parts;
      if (!sequence(0, &parts)) return *failed_;
      const bool is_recursive = !parts.empty() &&
                                rules_.expr(parts[0]).kind == GrammarExpr::Kind::kRule &&
                                rules_.expr(parts[0]).rule == id;
      if (is_recursive) {
        parts.erase(parts.begin());
        if (parts.empty()) return error(format("rule {} stands for itself", rule_name));
        recursive.push_back(rules_.sequence(std::move(parts)));
      } else {
        plain.push_back(rules_.sequence(std::move(parts)));
      }
    } while (take("|"));
    if (at_ < text_.size() && !at_definition())
      return error(format("unexpected \"{}\"", text_.substr(at_, 1)));
    if (plain.empty())
      return error(format("rule {} never ends: all of it starts with itself", rule_name));
    ExprId body = rules_.choice(std::move(plain));
    if (!recursive.empty())
      body = rules_.sequence({body, rules_.repeat(rules_.choice(std::move(recursive)), 0, -1)});
    rules_.define(id, body);
    return {};
  }

  // Elements up to "|", ")", the next definition or the end; their size, or nothing and failed_.
  std::optional<int64_t> sequence(int depth, std::vector<ExprId>* parts) {
    int64_t size = 0;
    while (at_ < text_.size() && !peek("|") && !peek(")") && !at_definition()) {
      const Result<Sized> part = element(depth);
      if (!part) {
        failed_ = part.error();
        return std::nullopt;
      }
      parts->push_back(part->expr);
      size += part->size;
      if (size > kMaxSize) {
        failed_ = error(format("repetition counts that multiply to more than {}", kMaxSize));
        return std::nullopt;
      }
    }
    return size;
  }

  Result<Sized> alternatives(int depth) {
    if (depth > kMaxDepth) return error(format("parentheses nested deeper than {}", kMaxDepth));
    std::vector<ExprId> choices;
    int64_t size = 0;
    do {
      std::vector<ExprId> parts;
      const std::optional<int64_t> part = sequence(depth, &parts);
      if (!part) return *failed_;
      size += *part;
      choices.push_back(rules_.sequence(std::move(parts)));
    } while (take("|"));
    return Sized{rules_.choice(std::move(choices)), size};
  }

  Result<Sized> element(int depth) {
    NB_TRY(Sized part, atom(depth));
    for (int count = 0;; ++count) {
      int64_t min = 0;
      int64_t max = -1;
      if (take("*")) {
      } else if (take("+")) {
        min = 1;
      } else if (take("?")) {
        max = 1;
      } else if (take("{")) {
        NB_TRY(min, number());
        max = min;
        if (take(",")) {
          max = -1;
          if (!peek("}")) {
            NB_TRY(max, number());
          }
        }
        if (!take("}")) return error("expected } after a repetition count");
        if (max >= 0 && max < min) return error("a repetition with its counts swapped");
      } else {
        break;
      }
      if (count > 1) return error("a repetition of a repetition of a repetition");
      part.size *= std::max<int64_t>({1, min, max});
      if (part.size > kMaxSize)
        return error(format("repetition counts that multiply to more than {}", kMaxSize));
      part.expr = rules_.repeat(part.expr, static_cast<int32_t>(min), static_cast<int32_t>(max));
    }
    return part;
  }

  Result<int64_t> number() {
    int64_t value = 0;
    const size_t start = at_;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_)
      value = std::min<int64_t>(value * 10 + (text_[at_] - '0'), kMaxCount + 1);
    if (at_ == start) return error("expected a repetition count");
    if (value > kMaxCount) return error(format("a repetition count above {}", kMaxCount));
    skip();
    return value;
  }

  Result<Sized> atom(int depth) {
    if (take("(")) {
      NB_TRY(const Sized inside, alternatives(depth + 1));
      if (!take(")")) return error("a ( without )");
      return inside;
    }
    if (peek("\"") || peek("'")) {
      NB_TRY(const std::string text, literal());
      skip();
      return Sized{rules_.bytes(text), static_cast<int64_t>(text.size()) + 1};
    }
    if (peek("[")) return char_class();
    if (peek(".")) {
      ++at_;
      skip();
      return Sized{rules_.chars(CharSet::all()), 1};
    }
    const std::string_view rule_name = name();
    if (rule_name.empty()) return error(format("unexpected \"{}\"", text_.substr(at_, 1)));
    skip();
    return Sized{rules_.call(id_of(rule_name)), 1};
  }

  Result<std::string> literal() {
    const char quote = text_[at_++];
    std::string out;
    while (at_ < text_.size() && text_[at_] != quote) {
      if (text_[at_] == '\n') break;
      if (text_[at_] != '\\') {
        out += text_[at_++];
        continue;
      }
      NB_TRY(const char32_t c, escape());
      append_utf8(c, &out);
    }
    if (at_ >= text_.size() || text_[at_] != quote) return error("a literal without its end quote");
    ++at_;
    return out;
  }

  Result<char32_t> escape() {
    ++at_;
    if (at_ >= text_.size()) return error("a backslash with nothing behind it");
    const char c = text_[at_++];
    switch (c) {
      case 'n': return U'\n';
      case 'r': return U'\r';
      case 't': return U'\t';
      case 'x': return hex(2);
      case 'u': return hex(4);
      case 'U': return hex(8);
      default: break;
    }
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'))
      return error(format("unknown escape \\{}", c));
    return static_cast<char32_t>(static_cast<unsigned char>(c));
  }

  Result<char32_t> hex(int count) {
    uint64_t value = 0;
    for (int i = 0; i < count; ++i, ++at_) {
      const char c = at_ < text_.size() ? text_[at_] : ' ';
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) return error("a bad hexadecimal escape");
      value = value * 16 + static_cast<uint64_t>(digit);
    }
    if (value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff))
      return error("an escape that is no character");
    return static_cast<char32_t>(value);
  }

  // The regex parser knows classes; here one ends at the first unescaped "]".
  Result<Sized> char_class() {
    size_t end = at_ + 1;
    while (end < text_.size() && text_[end] != ']') end += text_[end] == '\\' ? 2 : 1;
    if (end >= text_.size()) return error("a class without ]");
    const Result<ExprId> parsed =
        parse_grammar_regex(text_.substr(at_, end + 1 - at_), {}, &rules_);
    if (!parsed) return error(parsed.error().message);
    at_ = end + 1;
    skip();
    return Sized{*parsed, 1};
  }

  std::string_view text_;
  size_t at_ = 0;
  GrammarRules rules_;
  std::map<std::string, RuleId, std::less<>> ids_;
  std::optional<Error> failed_;
};

}  // namespace

Result<GrammarRules> parse_ebnf(std::string_view text) {
  return Parser(text).parse();
}

}  // namespace nibble
