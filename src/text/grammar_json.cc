// Values nest through rules of their own: a rule is named before what it holds is made.
#include "text/grammar_json.h"

#include <algorithm>
#include <vector>

#include "text/grammar_number.h"

namespace nibble {
namespace {

// "09af": the ranges 0-9 and a-f.
CharSet hex_digits(std::string_view ranges) {
  CharSet set;
  for (size_t i = 0; i + 1 < ranges.size(); i += 2)
    set.add(static_cast<char32_t>(ranges[i]), static_cast<char32_t>(ranges[i + 1]));
  return set;
}

}  // namespace

ExprId JsonGrammar::any_value() {
  if (any_value_ >= 0) return r_.call(any_value_);
  any_value_ = r_.add_rule("value");
  const ExprId call = r_.call(any_value_);
  r_.define(any_value_, r_.choice({any_object(), list_of(call, 0, -1), string(),
                                   r_.call_new("number", any_number(&r_)), r_.bytes("true"),
                                   r_.bytes("false"), r_.bytes("null")}));
  return call;
}

ExprId JsonGrammar::any_object() {
  if (any_object_ < 0) {
    any_object_ = r_.add_rule("object");
    const ExprId entry = r_.call_new("entry", r_.sequence({string(), colon(), any_value()}));
    r_.define(any_object_, object_of(entry, 0, -1));
  }
  return r_.call(any_object_);
}

ExprId JsonGrammar::string() {
  if (string_ < 0)
    string_ = r_.call_new(
        "string", r_.sequence({r_.bytes("\""), r_.repeat(character(), 0, -1), r_.bytes("\"")}));
  return string_;
}

ExprId JsonGrammar::character() {
  if (character_ >= 0) return character_;
  CharSet plain = CharSet(0, 0x1f);
  plain.add('"', '"');
  plain.add('\\', '\\');
  const ExprId hex = r_.chars(hex_digits("09afAF"));
  const ExprId low_hex = r_.chars(hex_digits("07"));
  const ExprId not_d = r_.chars(hex_digits("09acAC"));
  const ExprId ef = r_.chars(hex_digits("efEF"));
  const ExprId d = r_.chars(CharSet::of(U"dD"));
  const ExprId scalar = r_.choice(
      {r_.sequence({r_.choice({not_d, ef}), hex, hex, hex}), r_.sequence({d, low_hex, hex, hex}),
       r_.sequence({d, r_.chars(hex_digits("89abAB")), hex, hex, r_.bytes("\\u"), d,
                    r_.chars(hex_digits("cfCF")), hex, hex})});
  return character_ = r_.choice(
             {r_.chars(plain.complement()),
              r_.sequence({r_.bytes("\\"), r_.choice({r_.chars(CharSet::of(U"\"\\/bfnrt")),
                                                      r_.sequence({r_.bytes("u"), scalar})})})});
}

// Characters along the tree of names, until one leaves it.
ExprId JsonGrammar::string_but(std::span<const std::string> names) {
  if (names.empty()) return string();
  return r_.call_new("key", r_.sequence({r_.bytes("\""), text_but(names, 0, 0)}));
}

// `names` share their first `at` bytes. Includes the closing quote.
ExprId JsonGrammar::text_but(std::span<const std::string> names, size_t at, int depth) {
  if (rest_of_string_ < 0)
    rest_of_string_ =
        r_.call_new("rest of key", r_.sequence({r_.repeat(character(), 0, -1), r_.bytes("\"")}));
  const bool is_name = !names.empty() && names[0].size() == at;
  if (is_name) names = names.subspan(1);
  std::vector<ExprId> parts;
  if (!is_name) parts.push_back(r_.bytes("\""));
  CharSet leaving = CharSet(0x20, 0x10ffff).without(CharSet::of(U"\"\\"));
  for (size_t i = 0; i < names.size();) {
    const auto byte = static_cast<unsigned char>(names[i][at]);
    size_t end = i;
    while (end < names.size() && static_cast<unsigned char>(names[end][at]) == byte) ++end;
    if (byte >= 0x80 || depth > 100) {
      // Not told apart byte by byte: nothing that starts like such a name is offered.
      leaving = leaving.without(CharSet(0x80, 0x10ffff));
      if (byte < 0x80) leaving = leaving.without(CharSet(byte, byte));
    } else {
      leaving = leaving.without(CharSet(byte, byte));
      const char c = static_cast<char>(byte);
      parts.push_back(r_.sequence(
          {r_.bytes(std::string(1, c)), text_but(names.subspan(i, end - i), at + 1, depth + 1)}));
    }
    i = end;
  }
  parts.push_back(r_.sequence({r_.chars(leaving), rest_of_string_}));
  return r_.choice(std::move(parts));
}

// Items with commas, nothing around them.
ExprId JsonGrammar::separated(ExprId item, int32_t min, int32_t max, const char* name_of_next) {
  const ExprId rest = r_.repeat(r_.call_new(name_of_next, r_.sequence({comma(), item})),
                                std::max(0, min - 1), max < 0 ? -1 : max - 1);
  const ExprId inside = r_.sequence({item, rest});
  return min == 0 ? r_.optional(inside) : inside;
}

ExprId JsonGrammar::list_of(ExprId item, int32_t min, int32_t max) {
  if (max == 0) return r_.bytes("[]");
  const ExprId inside = separated(item, min, max, "next item");
  return r_.sequence({open("["), inside, close("]")});
}

ExprId JsonGrammar::object_of(ExprId entry, int32_t min, int32_t max) {
  if (max == 0) return r_.bytes("{}");
  const ExprId inside = separated(entry, min, max, "next entry");
  return r_.sequence({open("{"), inside, close("}")});
}

ExprId JsonGrammar::space() {
  if (!options_.any_whitespace) return r_.empty();
  if (space_ < 0)
    space_ = r_.call_new("space", r_.repeat(r_.chars(CharSet::of(U" \t\n\r")), 0, 32));
  return space_;
}

ExprId JsonGrammar::open(std::string_view bracket) {
  return r_.sequence({r_.bytes(bracket), space()});
}

ExprId JsonGrammar::close(std::string_view bracket) {
  return r_.sequence({space(), r_.bytes(bracket)});
}

ExprId JsonGrammar::comma() {
  if (!options_.any_whitespace) return r_.bytes(", ");
  return r_.sequence({space(), r_.bytes(","), space()});
}

ExprId JsonGrammar::colon() {
  if (!options_.any_whitespace) return r_.bytes(": ");
  return r_.sequence({space(), r_.bytes(":"), space()});
}

}  // namespace nibble
