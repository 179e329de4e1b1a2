// Text to tokens.
#include <array>
#include <cctype>

#include "base/format.h"
#include "text/jinja/syntax.h"
#include "text/unicode.h"

namespace nibble::jinja {
namespace {

bool is_blank(char c) {
  return c == ' ' || c == '\t' || c == '\v' || c == '\f' || c == '\r';
}
bool is_white(char c) {
  return is_blank(c) || c == '\n';
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) {
    // Line ends become \n; one newline at the very end is dropped.
    source_.reserve(source.size());
    for (size_t i = 0; i < source.size(); ++i) {
      if (source[i] != '\r') {
        source_ += source[i];
      } else {
        source_ += '\n';
        if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
      }
    }
    if (!source_.empty() && source_.back() == '\n') source_.pop_back();
  }

  std::vector<Token> run() {
    while (at_ < source_.size()) {
      const size_t open = find_open(at_);
      std::string data = source_.substr(at_, open - at_);
      const bool closes = open == source_.size();
      const char kind = closes ? '\0' : source_[open + 1];
      const char sign = open + 2 < source_.size() ? source_[open + 2] : '\0';
      if (!closes) strip_before(&data, kind, sign);
      const int data_line = line_;
      count_lines(at_, open);
      if (!data.empty()) tokens_.push_back({Token::Kind::kData, std::move(data), data_line});
      at_ = open;
      if (closes) break;
      at_ += 2;
      if (sign == '-' || sign == '+') ++at_;
      if (kind == '#') {
        skip_comment();
      } else if (kind == '%' && starts_raw()) {
        read_raw();
      } else {
        read_tag(kind);
      }
    }
    tokens_.push_back({Token::Kind::kEnd, "", line_});
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void error(const std::string& message) const { throw TemplateError(line_, message); }

  size_t find_open(size_t from) const {
    for (size_t i = from; i + 1 < source_.size(); ++i)
      if (source_[i] == '{' &&
          (source_[i + 1] == '{' || source_[i + 1] == '%' || source_[i + 1] == '#'))
        return i;
    return source_.size();
  }

  void count_lines(size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) line_ += source_[i] == '\n';
  }

  // `-` strips all white space before a tag; lstrip_blocks strips the blanks of a line that begins
  // with a block or comment.
  void strip_before(std::string* data, char kind, char sign) const {
    if (sign == '-') {
      while (!data->empty() && is_white(data->back())) data->pop_back();
      return;
    }
    if (sign == '+' || kind == '{') return;
    const size_t newline = data->rfind('\n');
    const size_t line_begin = newline == std::string::npos ? 0 : newline + 1;
    if (line_begin == 0 && newline == std::string::npos && !at_line_start_) return;
    for (size_t i = line_begin; i < data->size(); ++i)
      if (!is_blank((*data)[i])) return;
    data->resize(line_begin);
  }

  // After a tag's end: `-` strips all white space, trim_blocks one newline after blocks and
  // comments.
  void strip_after(bool minus, bool plus, bool block) {
    const size_t begin = at_;
    if (minus) {
      while (at_ < source_.size() && is_white(source_[at_])) ++at_;
    } else if (block && !plus && at_ < source_.size() && source_[at_] == '\n') {
      ++at_;
    }
    at_line_start_ = at_ > begin && source_[at_ - 1] == '\n';
    count_lines(begin, at_);
  }

  void skip_comment() {
    const size_t close = source_.find("#}", at_);
    if (close == std::string::npos) error("Missing end of comment tag");
    count_lines(at_, close);
    const bool minus = close > at_ && source_[close - 1] == '-';
    const bool plus = close > at_ && source_[close - 1] == '+';
    at_ = close + 2;
    strip_after(minus, plus, true);
  }

  bool starts_raw() const {
    size_t i = at_;
    while (i < source_.size() && is_white(source_[i])) ++i;
    if (source_.compare(i, 3, "raw") != 0) return false;
    i += 3;
    while (i < source_.size() && is_white(source_[i])) ++i;
    return source_.compare(i, 2, "%}") == 0 || source_.compare(i, 3, "-%}") == 0 ||
           source_.compare(i, 3, "+%}") == 0;
  }

  void read_raw() {
    const size_t head = source_.find("%}", at_);
    const bool minus = source_[head - 1] == '-';
    const bool plus = source_[head - 1] == '+';
    at_ = head + 2;
    strip_after(minus, plus, true);
    size_t open = at_;
    while (true) {
      open = source_.find("{%", open);
      if (open == std::string::npos) error("Missing end of raw directive");
      size_t i = open + 2;
      if (i < source_.size() && (source_[i] == '-' || source_[i] == '+')) ++i;
      while (i < source_.size() && is_white(source_[i])) ++i;
      if (source_.compare(i, 6, "endraw") == 0) {
        const size_t close = source_.find("%}", i);
        if (close == std::string::npos) error("Missing end of raw directive");
        std::string data = source_.substr(at_, open - at_);
        strip_before(&data, '%', source_[open + 2]);
        tokens_.push_back({Token::Kind::kData, std::move(data), line_});
        count_lines(at_, close);
        const bool end_minus = source_[close - 1] == '-';
        const bool end_plus = source_[close - 1] == '+';
        at_ = close + 2;
        strip_after(end_minus, end_plus, true);
        return;
      }
      open += 2;
    }
  }

  void read_tag(char kind) {
    const bool block = kind == '%';
    const std::string_view close = block ? "%}" : "}}";
    tokens_.push_back({block ? Token::Kind::kBlockBegin : Token::Kind::kOutputBegin, "", line_});
    std::string brackets;
    while (true) {
      while (at_ < source_.size() && is_white(source_[at_])) line_ += source_[at_++] == '\n';
      if (at_ >= source_.size()) error("unexpected end of template");
      const std::string_view rest = std::string_view(source_).substr(at_);
      if (brackets.empty()) {
        const bool sign = rest.size() > 2 && (rest[0] == '-' || rest[0] == '+') &&
                          rest.substr(1).starts_with(close) && (block || rest[0] == '-');
        if (sign || rest.starts_with(close)) {
          at_ += sign ? 3 : 2;
          tokens_.push_back({block ? Token::Kind::kBlockEnd : Token::Kind::kOutputEnd, "", line_});
          strip_after(sign && rest[0] == '-', sign && rest[0] == '+', block);
          return;
        }
      }
      read_token(rest, &brackets);
    }
  }

  void read_token(std::string_view rest, std::string* brackets) {
    const char c = rest[0];
    const auto at_ascii = [&](size_t i) {
      return i < rest.size() ? static_cast<unsigned char>(rest[i]) : 0u;
    };
    if (std::isalpha(at_ascii(0)) != 0 || c == '_' || at_ascii(0) >= 0x80) {
      size_t n = 1;
      while (std::isalnum(static_cast<int>(at_ascii(n))) != 0 || at_ascii(n) == '_' ||
             at_ascii(n) >= 0x80)
        ++n;
      push(Token::Kind::kName, n);
    } else if (std::isdigit(static_cast<int>(at_ascii(0))) != 0) {
      read_number(rest);
    } else if (c == '\'' || c == '"') {
      read_string(rest);
    } else {
      static constexpr std::array<std::string_view, 25> kOperators = {
          "**", "//", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "~", "<",
          ">",  "=",  "(",  ")",  "[",  "]",  "{", "}", ",", ":", ".", "|"};
      for (const std::string_view op : kOperators) {
        if (!rest.starts_with(op)) continue;
        if (op == "(" || op == "[" || op == "{") *brackets += op;
        if (op == ")" || op == "]" || op == "}") {
          if (brackets->empty()) error(format("unexpected '{}'", op));
          const char open = brackets->back();
          if ((op == ")") != (open == '(') || (op == "]") != (open == '['))
            error(format("unexpected '{}'", op));
          brackets->pop_back();
        }
        push(Token::Kind::kOperator, op.size());
        return;
      }
      error(format("unexpected char {}",
                   repr(Value(rest.substr(0, static_cast<size_t>(decode_utf8(rest).num_bytes))))));
    }
  }

  void push(Token::Kind kind, size_t size) {
    tokens_.push_back({kind, source_.substr(at_, size), line_});
    at_ += size;
  }

  void read_number(std::string_view rest) {
    size_t n = 0;
    const auto digits = [&] {
      while (n < rest.size() &&
             (std::isdigit(static_cast<unsigned char>(rest[n])) != 0 || rest[n] == '_'))
        ++n;
    };
    const auto digit_at = [&](size_t i) {
      return i < rest.size() && std::isdigit(static_cast<unsigned char>(rest[i])) != 0;
    };
    digits();
    bool real = false;
    if (n < rest.size() && rest[n] == '.' && digit_at(n + 1)) {
      real = true;
      ++n;
      digits();
    }
    if (n < rest.size() && (rest[n] == 'e' || rest[n] == 'E')) {
      const size_t sign = n + 1 < rest.size() && (rest[n + 1] == '+' || rest[n + 1] == '-') ? 1 : 0;
      if (digit_at(n + 1 + sign)) {
        real = true;
        n += 1 + sign;
        digits();
      }
    }
    push(real ? Token::Kind::kFloat : Token::Kind::kInteger, n);
    std::erase(tokens_.back().text, '_');
  }

  void read_string(std::string_view rest) {
    const char quote = rest[0];
    const int begin_line = line_;
    std::string text;
    size_t i = 1;
    for (;; ++i) {
      if (i >= rest.size()) error("unexpected end of a string");
      if (rest[i] == quote) break;
      if (rest[i] == '\n') ++line_;
      if (rest[i] != '\\') {
        text += rest[i];
        continue;
      }
      if (++i >= rest.size()) error("unexpected end of a string");
      i += read_escape(rest.substr(i), &text);
    }
    tokens_.push_back({Token::Kind::kString, std::move(text), begin_line});
    at_ += i + 1;
  }

  // One escape after the backslash; returns how many bytes beyond the first it took.
  size_t read_escape(std::string_view rest, std::string* text) const {
    const auto hex = [&](size_t digits) {
      uint32_t value = 0;
      for (size_t i = 1; i <= digits; ++i) {
        if (i >= rest.size() || std::isxdigit(static_cast<unsigned char>(rest[i])) == 0)
          error("truncated escape in a string");
        const char c = static_cast<char>(std::tolower(static_cast<unsigned char>(rest[i])));
        value = value * 16 + static_cast<uint32_t>(c <= '9' ? c - '0' : c - 'a' + 10);
      }
      if (value > 0x10ffff || (value >= 0xd800 && value < 0xe000))
        error("illegal Unicode character");
      append_utf8(value, text);
      return digits;
    };
    switch (rest[0]) {
      case 'n': *text += '\n'; return 0;
      case 't': *text += '\t'; return 0;
      case 'r': *text += '\r'; return 0;
      case 'b': *text += '\b'; return 0;
      case 'f': *text += '\f'; return 0;
      case 'v': *text += '\v'; return 0;
      case 'a': *text += '\a'; return 0;
      case '\n': return 0;
      case '\\':
      case '\'':
      case '"': *text += rest[0]; return 0;
      case 'x': return hex(2);
      case 'u': return hex(4);
      case 'U': return hex(8);
      default:
        if (rest[0] >= '0' && rest[0] <= '7') {
          size_t n = 0;
          uint32_t value = 0;
          while (n < 3 && n < rest.size() && rest[n] >= '0' && rest[n] <= '7')
            value = value * 8 + static_cast<uint32_t>(rest[n++] - '0');
          append_utf8(value, text);
          return n - 1;
        }
        *text += '\\';
        *text += rest[0];
        return 0;
    }
  }

  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool at_line_start_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  return Lexer(source).run();
}

}  // namespace nibble::jinja
