// What each kind of grammar accepts and refuses, by example; and what it says when it cannot.
#include "text/grammar.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>

#include "text/grammar_support.h"

namespace nibble {
namespace {

using test::compiled;
using test::error_of;
using test::matches;
using test::schema;
using testing::HasSubstr;

void expect_texts(const std::shared_ptr<CompiledGrammar>& grammar,
                  const std::vector<std::string>& good, const std::vector<std::string>& bad) {
  for (const std::string& text : good) EXPECT_TRUE(matches(grammar, text)) << text;
  for (const std::string& text : bad) EXPECT_FALSE(matches(grammar, text)) << text;
}

TEST(GrammarRegex, MatchesTheWholeText) {
  expect_texts(compiled(Grammar::regex("a+b?")), {"a", "aab"}, {"", "b", "abb", "xab"});
  expect_texts(compiled(Grammar::regex("^(yes|no)$")), {"yes", "no"}, {"yesno", ""});
  expect_texts(compiled(Grammar::regex("[^a-c\\d]x{2,3}")), {"dxx", "\xc3\xa9xxx"},
               {"axx", "1xx", "dx", "dxxxx"});
  expect_texts(compiled(Grammar::regex("\\w+\\s\\S\\.")), {"ab_1 x.", "a\nx."}, {"ab", "a b,"});
  expect_texts(compiled(Grammar::regex(".")), {"a", "\xe2\x82\xac", "\xf0\x9f\x98\x80"},
               {"\n", "ab", "\xc3", "\xed\xa0\x80", "\xff"});
  expect_texts(compiled(Grammar::regex("(?:a|(?P<n>b))*?c{0,2}")), {"", "abba", "cc", "abc"},
               {"ccc", "ca"});
  expect_texts(compiled(Grammar::regex("[\\x41-\\u0043\\]-]+")), {"ABC", "]-"}, {"D", ""});
  expect_texts(compiled(Grammar::regex("\\p{L}+\\pN")),
               {"\xc3\xa9"
                "1",
                "ab2"},
               {"1", "a"});
  expect_texts(compiled(Grammar::regex("a{x}{2}")), {"a{x}}"}, {"aa"});
}

TEST(GrammarRegex, CharactersAreRangesOfWholeUtf8Sequences) {
  const auto grammar = compiled(Grammar::regex("[\\u{e0}-\\u{20ac}]"));
  expect_texts(grammar, {"\xc3\xa0", "\xdf\xbf", "\xe0\xa0\x80", "\xe2\x82\xac"},
               {"\xc3\x9f", "\xe2\x82\xad", "a", "\xc0\xa0"});
}

TEST(GrammarRegex, SaysWhatItCannotDo) {
  EXPECT_THAT(error_of(Grammar::regex("")), HasSubstr("empty"));
  for (const char* bad :
       {"(",    ")",     "a)",         "[",           "[]",      "[b-a]",  "*a",     "a**",
        "\\",   "(?=a)", "(?<!a)",     "(?i)a",       "\\bword", "(a)\\1", "a{3,2}", "a$b",
        "(a^)", "\\xg1", "\\p{Greek}", "[[:alpha:]]", "\\ud800", "\xff"})
    EXPECT_FALSE(error_of(Grammar::regex(bad)).empty()) << bad;
  EXPECT_THAT(error_of(Grammar::regex("ab\\b")), HasSubstr("offset 4"));
}

TEST(GrammarChoice, IsOneOfTheTexts) {
  const std::vector<std::string> choices = {"red", "green", "re"};
  expect_texts(compiled(Grammar::choice(choices)), {"red", "green", "re"},
               {"r", "blue", "redgreen"});
  EXPECT_THAT(error_of(Grammar::choice({})), HasSubstr("empty list"));
  const std::vector<std::string> empty_text = {"a", ""};
  EXPECT_THAT(error_of(Grammar::choice(empty_text)), HasSubstr("choice[1]"));
}

TEST(GrammarEbnf, FollowsRules) {
  const auto arithmetic = compiled(Grammar::ebnf(R"ebnf(
    # sums of products
    root  ::= term ([+-] term)*
    term  ::= factor ("*" factor)*
    factor ::= [0-9]+ | "(" root ")"
  )ebnf"));
  expect_texts(arithmetic, {"1", "1+2*3", "((1))*(2-3)"}, {"", "1+", "(1", "1)"});
  expect_texts(compiled(Grammar::ebnf("root ::= 'a'{2} \"\\u00e9\"? [^\\]]+ | .")),
               {"aab", "aa\xc3\xa9x", "z"}, {"aa", "aa]"});
}

TEST(GrammarEbnf, TurnsDirectLeftRecursionIntoRepetition) {
  expect_texts(compiled(Grammar::ebnf("root ::= root \",\" item | item\nitem ::= [a-z]")),
               {"a", "a,b,c"}, {"", "a,", ",a", "ab"});
}

TEST(GrammarEbnf, SaysWhatIsWrong) {
  EXPECT_THAT(error_of(Grammar::ebnf("")), HasSubstr("empty"));
  EXPECT_THAT(error_of(Grammar::ebnf("s ::= s")), HasSubstr("stands for itself"));
  EXPECT_THAT(error_of(Grammar::ebnf("root ::= root root")), HasSubstr("never ends"));
  EXPECT_THAT(error_of(Grammar::ebnf("root ::= a\na ::= b \"x\"\nb ::= a | \"y\"")),
              HasSubstr("left recursion"));
  EXPECT_THAT(error_of(Grammar::ebnf("root ::= e a\ne ::= \"\"\na ::= \"x\" | e root")),
              HasSubstr("left recursion"));
  EXPECT_THAT(error_of(Grammar::ebnf("root ::= \"a\" root")), HasSubstr("no text matches"));
  EXPECT_THAT(error_of(Grammar::ebnf("root ::= other")), HasSubstr("not defined"));
  EXPECT_THAT(error_of(Grammar::ebnf("other ::= \"a\"")), HasSubstr("no rule named root"));
  EXPECT_THAT(error_of(Grammar::ebnf("root ::= \"a\nroot")), HasSubstr("line 1"));
  for (const char* bad :
       {"root", "root :", "root ::= (", "root ::= )", "root ::= [a", "root ::= 'a",
        "root ::= \"a\"\nroot ::= \"b\"", "root ::= \"a\"{2", "root ::= \"a\"{3,2}", "root ::= *",
        "root ::= \"\\q\"", "%import common"})
    EXPECT_FALSE(error_of(Grammar::ebnf(bad)).empty()) << bad;
}

TEST(GrammarSchema, ObjectsHaveTheirPropertiesInOrder) {
  const auto grammar = compiled(schema(R"({
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"},
                   "tags": {"type": "array", "items": {"enum": ["a", "b"]}}},
    "required": ["name"]})"));
  expect_texts(grammar,
               {R"({"name": "x"})", R"({"name": "x", "age": 3})", R"({"name": "", "tags": []})",
                R"({"name": "x", "age": -7, "tags": ["a", "b", "a"]})"},
               {R"({})", R"({"age": 3})", R"({"age": 3, "name": "x"})", R"({"name": "x", })",
                R"({"name": "x", "other": 1})", R"({"name":"x"})", R"({"name": "x", "age": 03})",
                R"({"name": "x", "tags": ["c"]})"});
}

TEST(GrammarSchema, OptionalFirstPropertiesLeaveNoStrayComma) {
  const auto grammar = compiled(schema(
      R"({"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"},
          "c": {"type": "null"}}})"));
  expect_texts(grammar,
               {"{}", R"({"a": null})", R"({"b": null})", R"({"c": null})",
                R"({"a": null, "c": null})", R"({"a": null, "b": null, "c": null})"},
               {R"({, "b": null})", R"({"b": null, "a": null})", R"({"a": null "c": null})"});
}

TEST(GrammarSchema, AdditionalPropertiesAreOtherKeys) {
  const auto grammar = compiled(schema(
      R"({"type": "object", "properties": {"id": {"type": "integer"}, "idea": {"type": "integer"}},
          "required": ["id"], "additionalProperties": {"type": "boolean"}})"));
  expect_texts(grammar,
               {R"({"id": 1})", R"({"id": 1, "x": true})", R"({"id": 1, "idea": 2, "ide": false})",
                R"({"id": 1, "": true, "ideas": true})"},
               {R"({"id": 1, "id": true})", R"({"id": 1, "idea": true})", R"({"id": 1, "x": 1})"});
  expect_texts(compiled(schema(R"({"type": "object", "additionalProperties": {"type": "null"},
                                   "minProperties": 1, "maxProperties": 2})")),
               {R"({"a": null})", R"({"a": null, "b": null})"},
               {"{}", R"({"a": null, "b": null, "c": null})"});
  expect_texts(
      compiled(schema(R"({"type": "object", "patternProperties": {"^x_": {"const": 1}}})")),
      {"{}", R"({"x_": 1})", R"({"x_a": 1, "x_b": 1})"}, {R"({"y": 1})"});
  GrammarOptions open;
  open.open_objects = true;
  expect_texts(compiled(schema(R"({"properties": {"a": {"const": 1}}})", open)),
               {R"({"a": 1})", R"({"a": 1, "b": [1, {"c": null}]})"}, {R"({"a": 2})"});
}

TEST(GrammarSchema, ArraysCountTheirItems) {
  expect_texts(compiled(schema(R"({"type": "array", "items": {"const": 1}, "minItems": 2,
                                   "maxItems": 3})")),
               {"[1, 1]", "[1, 1, 1]"}, {"[]", "[1]", "[1, 1, 1, 1]", "[1 1]"});
  expect_texts(compiled(schema(R"({"type": "array", "prefixItems": [{"const": 1}, {"const": "a"}],
                                   "items": {"type": "null"}, "minItems": 1})")),
               {"[1]", R"([1, "a"])", R"([1, "a", null, null])"}, {"[]", "[1, null]", R"(["a"])"});
  expect_texts(
      compiled(schema(R"({"type": "array", "prefixItems": [{"const": 1}, {"const": 2}]})")),
      {"[]", "[1]", "[1, 2]"}, {"[2]", "[1, 2, 3]"});
  expect_texts(compiled(schema(R"({"type": "array", "maxItems": 0})")), {"[]"}, {"[1]", "[ ]"});
}

TEST(GrammarSchema, StringsHaveLengthsPatternsAndFormats) {
  expect_texts(compiled(schema(R"({"type": "string"})")),
               {R"("")", R"("a\n\u00e9\"\\")", "\"\xc3\xa9\xf0\x9f\x98\x80\"", R"("\ud83d\ude00")"},
               {"\"", "\"a", "\"\n\"", R"("\x")", R"("\ud83d")", "\"\xff\"", "abc"});
  expect_texts(compiled(schema(R"({"type": "string", "minLength": 2, "maxLength": 3})")),
               {R"("ab")", R"("abc")", "\"\xc3\xa9\xc3\xa9\"", R"("\na")"},
               {R"("a")", R"("abcd")"});
  expect_texts(compiled(schema(R"({"type": "string", "pattern": "^[a-z\"]+$"})")),
               {R"("a")", R"("\"b")"}, {R"("")", R"("A")", R"(""")"});
  expect_texts(compiled(schema(R"({"type": "string", "pattern": "b.b"})")),
               {R"("xxbabyy")", R"("bab")"}, {R"("ab")"});
  expect_texts(compiled(schema(R"({"type": "string", "format": "date"})")),
               {R"("2024-02-29")", R"("2026-12-31")"},
               {R"("2023-02-29")", R"("2026-04-31")", R"("2026-13-01")", R"("26-1-1")"});
  expect_texts(compiled(schema(R"({"type": "string", "format": "date-time"})")),
               {R"("2026-11-25T21:59:00Z")", R"("2026-11-25T21:59:00.5+01:00")"},
               {R"("2026-11-25")", R"("2026-11-25T24:00:00Z")"});
  expect_texts(compiled(schema(R"({"type": "string", "format": "uuid"})")),
               {R"("123e4567-e89b-12d3-a456-426614174000")"}, {R"("123e4567")"});
  expect_texts(compiled(schema(R"({"type": "string", "format": "ipv4"})")),
               {R"("127.0.0.1")", R"("255.255.255.255")"}, {R"("256.0.0.1")", R"("1.2.3")"});
  expect_texts(compiled(schema(R"({"type": "string", "format": "email"})")),
               {R"("a.b+c@example.org")"}, {R"("a@b@c")", R"("example.org")"});
  expect_texts(compiled(schema(R"({"type": "string", "format": "uri"})")),
               {R"("https://example.org/a/b?c=d#e")"}, {R"("not a uri")"});
  expect_texts(compiled(schema(R"({"type": "string", "format": "made-up"})")), {R"("any")"}, {});
}

TEST(GrammarSchema, NumbersStayWithinTheirBounds) {
  expect_texts(compiled(schema(R"({"type": "number"})")), {"0", "-1", "12.5", "1e9", "-0.5E-3"},
               {"01", ".5", "1.", "+1", "1e", "NaN"});
  const auto age = compiled(schema(R"({"type": "integer", "minimum": 18, "maximum": 120})"));
  for (int i = -200; i < 2000; ++i)
    EXPECT_EQ(matches(age, std::to_string(i)), i >= 18 && i <= 120) << i;
  const auto below = compiled(schema(R"({"type": "integer", "exclusiveMaximum": -3})"));
  for (int i = -1500; i < 20; ++i) EXPECT_EQ(matches(below, std::to_string(i)), i < -3) << i;
  const auto mixed = compiled(schema(R"({"type": "integer", "minimum": -12, "maximum": 7.5})"));
  for (int i = -150; i < 150; ++i) EXPECT_EQ(matches(mixed, std::to_string(i)), i >= -12 && i <= 7);
  expect_texts(compiled(schema(R"({"type": "number", "minimum": 0, "maximum": 1})")),
               {"0", "1", "0.5", "0.999", "1.0", "0.0"}, {"1.01", "-0.1", "2", "1.5"});
  expect_texts(compiled(schema(R"({"type": "number", "exclusiveMinimum": -1.5, "maximum": 2.25})")),
               {"-1.4", "-1", "-0.5", "0", "1.75", "2", "2.25", "2.2"},
               {"-1.5", "-1.50", "-2", "2.26", "2.3", "3"});
  expect_texts(compiled(schema(R"({"type": "number", "exclusiveMinimum": 0})")),
               {"0.1", "0.001", "1", "1.5", "300"}, {"0", "0.0", "-1", "0.000"});
}

TEST(GrammarSchema, CombinesSchemas) {
  expect_texts(compiled(schema(R"({"anyOf": [{"type": "integer"}, {"type": "null"}]})")),
               {"1", "null"}, {"true"});
  expect_texts(compiled(schema(R"({"type": ["integer", "null"]})")), {"1", "null"}, {"\"1\""});
  expect_texts(compiled(schema(R"({"type": "integer", "nullable": true})")), {"1", "null"}, {"a"});
  expect_texts(compiled(schema(R"({"allOf": [{"type": "number", "minimum": 3},
                                             {"type": "integer", "maximum": 5}]})")),
               {"3", "4", "5"}, {"2", "6", "3.5"});
  expect_texts(compiled(schema(R"({"allOf": [{"$ref": "#/$defs/a"},
                  {"properties": {"y": {"const": 2}}, "required": ["y"]}],
                  "$defs": {"a": {"type": "object", "properties": {"x": {"const": 1}},
                                  "required": ["x"]}}})")),
               {R"({"x": 1, "y": 2})"}, {R"({"x": 1})", R"({"y": 2})"});
  expect_texts(compiled(schema(R"({"type": "object", "properties": {"k": {"type": "integer"}},
                  "anyOf": [{"required": ["k"]}, {"properties": {"m": {"const": 0}},
                             "required": ["m"]}]})")),
               {R"({"k": 1})", R"({"k": 1, "m": 0})", R"({"m": 0})"}, {"{}"});
  expect_texts(compiled(schema(R"({"enum": [1, "a", null, {"b": [1, 2]}, "\u00e9"]})")),
               {"1", R"("a")", "null", R"({"b": [1, 2]})", "\"\xc3\xa9\""}, {"2", "a"});
  expect_texts(compiled(schema(R"({"type": "string", "enum": ["a", 1]})")), {R"("a")"}, {"1"});
}

TEST(GrammarSchema, ReferencesMayRecurse) {
  const auto tree = compiled(schema(R"({"$ref": "#/$defs/node", "$defs": {"node": {
      "type": "object", "properties": {"v": {"type": "integer"},
        "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
      "required": ["v", "next"]}}})"));
  expect_texts(tree, {R"({"v": 1, "next": null})", R"({"v": 1, "next": {"v": 2, "next": null}})"},
               {R"({"v": 1})", R"({"v": 1, "next": {"v": 2}})"});
}

TEST(GrammarSchema, JsonObjectIsAnyObject) {
  const auto object = compiled(Grammar::json_object());
  expect_texts(object, {"{}", R"({"a": [1, {"b": null}, "x"], "c": {"d": -1.5e3}})"},
               {"[]", "1", "", R"({"a"})", R"({"a": 1)"});
  GrammarOptions loose;
  loose.any_whitespace = true;
  expect_texts(compiled(Grammar::json_object(loose)),
               {"{}", "{\n  \"a\": [1,2 , 3]\n}", "{\"a\":1}", "{ }"}, {" {}", "{} "});
  // Deep, and in one go.
  std::string deep;
  for (int i = 0; i < 3000; ++i) deep += "{\"a\": ";
  deep += "{}";
  for (int i = 0; i < 3000; ++i) deep += "}";
  EXPECT_TRUE(matches(object, deep));
}

TEST(GrammarSchema, ErrorsNameThePlace) {
  const std::vector<std::pair<const char*, const char*>> cases = {
      {R"({})", "says nothing"},
      {R"(true)", "says nothing"},
      {R"([1])", "must be an object"},
      {R"("x")", "must be an object"},
      {R"({"type": "strnig"})", "$.type"},
      {R"({"type": []})", "$.type"},
      {R"({"properties": []})", "$.properties"},
      {R"({"properties": {"a": {"type": 3}}})", "$.properties.a.type"},
      {R"({"type": "array", "items": {"minimum": "x"}})", "$.items.minimum"},
      {R"({"required": "a", "type": "object"})", "$.required"},
      {R"({"type": "array", "minItems": 1000000000})", "$.minItems"},
      {R"({"type": "array", "minItems": -1})", "$.minItems"},
      {R"({"type": "array", "minItems": 3, "maxItems": 2})", "minItems 3 is more"},
      {R"({"type": "string", "pattern": "("})", "$.pattern"},
      {R"({"type": "string", "pattern": "a", "maxLength": 3})", "pattern together"},
      {R"({"enum": []})", "$.enum"},
      {R"({"anyOf": []})", "$.anyOf"},
      {R"({"allOf": []})", "$.allOf"},
      {R"({"allOf": [{"type": "string"}, {"type": "null"}]})", "exclude each other"},
      {R"({"type": "integer", "minimum": 3, "maximum": 2})", "no integer"},
      {R"({"not": {"type": "string"}})", "$.not"},
      {R"({"type": "array", "uniqueItems": true})", "$.uniqueItems"},
      {R"({"if": {}, "then": {}})", "not supported"},
      {R"({"$ref": "#/$defs/missing"})", "$.$ref"},
      {R"({"$ref": "http://example.org/schema"})", "only references into the same schema"},
      {R"({"$ref": "#"})", "no text matches"},
      {R"({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}})",
       "no text matches"},
      {R"({"allOf": [{"$ref": "#"}]})", "circle"},
      {R"({"type": "object", "properties": {"a": false}, "required": ["a"]})", "no text matches"},
  };
  for (const auto& [text, part] : cases)
    EXPECT_THAT(error_of(schema(text)), HasSubstr(part)) << text;
}

TEST(GrammarTags, FreeTextRunsUntilATrigger) {
  const auto grammar = compiled(Grammar::structural_tag(test::json(R"({
    "type": "structural_tag", "triggers": ["<f="],
    "structures": [{"begin": "<f=a>", "schema": {"const": 1}, "end": "</f>"},
                   {"begin": "<f=b>", "schema": {"const": 2}, "end": "</f>"}]})")));
  expect_texts(grammar, {"", "hello < <f", "x<f=a>1</f>y", "<f=b>2</f><f=a>1</f>"},
               {"<f=a>2</f>", "<f=c>", "<f=a>1"});
}

TEST(GrammarTags, NewStyleFormats) {
  expect_texts(compiled(Grammar::structural_tag(test::json(R"({"format": {"type": "sequence",
      "elements": [{"type": "tag", "begin": "<think>", "content": {"type": "any_text"},
                    "end": "</think>"},
                   {"type": "or", "elements": [{"type": "const_string", "value": "ok"},
                                               {"type": "regex", "pattern": "[0-9]+"}]}]}})"))),
               {"<think>a < b</think>ok", "<think></think>17"},
               {"ok", "<think>a", "<think></think>"});
  expect_texts(compiled(Grammar::structural_tag(test::json(R"({"format": {"type": "triggered_tags",
      "triggers": ["<t>"], "at_least_one": true, "stop_after_first": true,
      "tags": [{"begin": "<t>", "content": {"type": "json_schema",
                "json_schema": {"type": "integer"}}, "end": "</t>"}]}})"))),
               {"<t>1</t>", "say <t>-5</t>"}, {"", "say", "<t>1</t>more"});
  expect_texts(compiled(Grammar::structural_tag(test::json(R"({"format": {
      "type": "tags_with_separator", "separator": ",", "at_least_one": true,
      "tags": [{"begin": "<", "content": {"type": "const_string", "value": "a"}, "end": ">"}]}})"))),
               {"<a>", "<a>,<a>"}, {"", "<a>,", "<a><a>"});
  for (
      const char* bad :
      {"[]", "{}", R"({"triggers": ["a"]})", R"({"structures": [], "triggers": ["a"]})",
       R"({"structures": [{"begin": "x", "schema": {"type": "null"}, "end": ""}], "triggers": ["y"]})",
       R"({"format": {"type": "sequence"}})", R"({"format": {"type": "grammar"}})"})
    EXPECT_FALSE(error_of(Grammar::structural_tag(test::json(bad))).empty()) << bad;
}

const char* kTools = R"([
  {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"},
                   "unit": {"enum": ["C", "F"]}}, "required": ["city"]}}},
  {"type": "function", "function": {"name": "now"}}])";

TEST(GrammarTools, QwenXmlHasTypedParameters) {
  const auto grammar =
      compiled(Grammar::tool_calls(test::json(kTools), ToolCallStyle::kQwenXml, true));
  const std::string weather =
      "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis, \"a\" < b\n</parameter>\n"
      "<parameter=days>\n3\n</parameter>\n<parameter=unit>\nC\n</parameter>\n</function>\n"
      "</tool_call>";
  const std::string now = "<tool_call>\n<function=now>\n</function>\n</tool_call>";
  expect_texts(grammar, {weather, now, "\n\n" + now, weather + "\n" + now},
               {"", "hello", now + "\n", "<tool_call>\n<function=other>\n</function>\n</tool_call>",
                "<tool_call>\n<function=get_weather>\n</function>\n</tool_call>",
                "<tool_call>\n<function=get_weather>\n<parameter=city>\nx\n</parameter>\n"
                "<parameter=days>\nthree\n</parameter>\n</function>\n</tool_call>",
                "<tool_call>\n<function=get_weather>\n<parameter=city>\n</function>\n</parameter>\n"
                "</function>\n</tool_call>"});
  expect_texts(compiled(Grammar::tool_calls(test::json(kTools), ToolCallStyle::kQwenXml, false)),
               {now}, {now + "\n" + now});
}

TEST(GrammarTools, HermesIsJsonInTags) {
  const auto grammar =
      compiled(Grammar::tool_calls(test::json(kTools), ToolCallStyle::kHermes, true));
  expect_texts(
      grammar,
      {"<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"x\"}}\n</tool_call>",
       "<tool_call>\n{\"name\": \"now\", \"arguments\": {\"any\": [1]}}\n</tool_call>"},
      {"<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {}}\n</tool_call>",
       "<tool_call>\n{\"name\": \"nope\", \"arguments\": {}}\n</tool_call>"});
}

TEST(GrammarTools, RefusesToolsItCannotWrite) {
  for (const char* bad :
       {"[]", "{}", "[1]", R"([{"function": {}}])", R"([{"function": {"name": "a>b"}}])",
        R"([{"function": {"name": "a", "parameters": 3}}])"})
    EXPECT_FALSE(
        error_of(Grammar::tool_calls(test::json(bad), ToolCallStyle::kQwenXml, true)).empty())
        << bad;
}

// A second of CPU for whatever a client sends; generous here, the machine may be busy.
TEST(GrammarLimits, HostileGrammarsCompileOrFailQuickly) {
  using Clock = std::chrono::steady_clock;
  const auto timed = [](const char* what, const auto& make) {
    const Clock::time_point start = Clock::now();
    const Result<Grammar> grammar = make();
    if (grammar) {
      const auto result = CompiledGrammar::compile(*grammar, test::byte_trie());
      if (result) {
        GrammarMatcher matcher(*result);
        std::vector<uint32_t> mask(9);
        for (int i = 0; i < 100; ++i) {
          matcher.fill(mask);
          if (!matcher.accept_bytes(i % 2 == 0 ? "a" : "x")) break;
        }
      }
    }
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    EXPECT_LT(seconds, 3.0) << what;
  };
  for (const char* pattern :
       {"(a+)+b", "(x{1,1000}){1,1000}", "(a|a)*b", "(a?){1000}a{1000}",
        "((((a{1,10}){1,10}){1,10}){1,10}){1,10}", "(.*){1,100}x", "a{999999999}"})
    timed(pattern, [&] { return Grammar::regex(pattern); });
  timed("parentheses", [] { return Grammar::regex(std::string(50000, '(')); });
  timed("s ::= s", [] { return Grammar::ebnf("root ::= s\ns ::= s"); });
  timed("ambiguous", [] { return Grammar::ebnf("root ::= \"a\" root root | \"a\""); });
  timed("ambiguous twice", [] {
    return Grammar::ebnf(
        "root ::= \"a\" x | \"a\" y\nx ::= root \"b\"?\ny ::= root \"b\"? | \"a\"");
  });
  timed("counts", [] { return Grammar::ebnf("root ::= (\"a\"{0,9999}){0,9999}"); });
  timed("deep", [] {
    Json deep = {{"type", "null"}};
    for (int i = 0; i < 200; ++i) deep = {{"type", "array"}, {"items", deep}};
    return Grammar::json_schema(deep);
  });
  timed("spread", [] {
    Json all = Json::array();
    for (int i = 0; i < 12; ++i)
      all.push_back(
          {{"anyOf",
            {{{"title", "a"}}, {{"minimum", i}}, {{"maximum", i}}, {{"type", "number"}}}}});
    return Grammar::json_schema({{"allOf", all}});
  });
  timed("long", [] {
    return Grammar::json_schema({{"type", "string"}, {"minLength", 15000}, {"maxLength", 20000}});
  });
}

TEST(GrammarLimits, TooDeepOrTooLargeIsAnError) {
  Json deep = {{"type", "null"}};
  for (int i = 0; i < 200; ++i) deep = {{"type", "array"}, {"items", deep}};
  EXPECT_THAT(error_of(Grammar::json_schema(deep)), HasSubstr("nested deeper than 128"));
  EXPECT_THAT(error_of(Grammar::regex("(x{1,1000}){1,1000}")), HasSubstr("multiply"));
  EXPECT_THAT(error_of(schema(R"({"type": "string", "minLength": 1000000})")),
              HasSubstr("$.minLength"));
}

}  // namespace
}  // namespace nibble
