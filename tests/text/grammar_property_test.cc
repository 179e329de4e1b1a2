// Laws: what the masks let through is valid by an independent validator (valijson, which knows
// draft 7), masks agree
// with trying each token, and the cache changes nothing.
#include <gtest/gtest.h>

#include <random>
#include <valijson/adapters/nlohmann_json_adapter.hpp>
#include <valijson/schema.hpp>
#include <valijson/schema_parser.hpp>
#include <valijson/validator.hpp>

#include "base/file.h"
#include "support/paths.h"
#include "support/random.h"
#include "text/grammar_support.h"
#include "text/tokenizer.h"

namespace nibble {
namespace {

using test::compiled;
using test::is_set;
using test::schema;

const Tokenizer& demo_tokenizer() {
  static const Tokenizer kTokenizer = [] {
    const auto dir = test::bundled_model("nibble-demo-14m");
    return Tokenizer::load(read_file(dir / "tokenizer.json").value(),
                           read_file(dir / "tokenizer_config.json").value(), "demo")
        .value();
  }();
  return kTokenizer;
}
std::shared_ptr<const TokenTrie> demo_trie() {
  static const auto kTrie = [] {
    const int32_t end[] = {demo_tokenizer().token_id("<|im_end|>").value()};
    return TokenTrie::of(demo_tokenizer(), end);
  }();
  return kTrie;
}

// A random text the masks allow; empty when it is not over after `max_tokens`. Short tokens of
// structure are favoured, so that texts end.
std::string random_walk(const std::shared_ptr<CompiledGrammar>& grammar,
                        const std::shared_ptr<const TokenTrie>& trie, int max_tokens,
                        std::mt19937& random) {
  GrammarMatcher matcher(grammar);
  std::vector<uint32_t> mask((static_cast<size_t>(trie->vocab_size()) + 31) / 32);
  std::string text;
  for (int i = 0; i < max_tokens; ++i) {
    matcher.fill(mask);
    std::vector<int32_t> allowed;
    std::vector<int32_t> closing;
    for (int32_t token = 0; token < trie->vocab_size(); ++token) {
      if (!is_set(mask, token)) continue;
      allowed.push_back(token);
      const std::string_view bytes = trie->token_bytes(token);
      if (trie->is_end_token(token) || bytes.find_first_of("\"]}") != std::string_view::npos)
        closing.push_back(token);
    }
    EXPECT_FALSE(allowed.empty()) << "stuck after: " << text;
    if (allowed.empty()) return {};
    const std::vector<int32_t>& from = !closing.empty() && random() % 3 == 0 ? closing : allowed;
    const int32_t token = from[random() % from.size()];
    EXPECT_TRUE(matcher.accept(token)) << "a token of the mask is refused after: " << text;
    if (matcher.ended()) return text;
    text += trie->token_bytes(token);
  }
  return {};
}

const char* kSchemas[] = {
    R"({"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer",
        "minimum": 0, "maximum": 150}, "tags": {"type": "array", "items": {"type": "string",
        "maxLength": 4}, "maxItems": 3}}, "required": ["name", "age"]})",
    R"({"type": "array", "items": {"anyOf": [{"type": "number", "exclusiveMinimum": -2.5,
        "maximum": 10.25}, {"enum": ["a", "b", null]}, {"type": "boolean"}]}, "minItems": 1,
        "maxItems": 4})",
    R"({"type": "object", "properties": {"id": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
        "n": {"type": "integer", "exclusiveMaximum": -17}},
        "additionalProperties": {"type": "integer"}, "required": ["id"]})",
    R"({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {
        "v": {"type": "integer"}, "kids": {"type": "array", "maxItems": 2,
        "items": {"$ref": "#/$defs/node"}}}, "required": ["v"]}}})",
    R"({"allOf": [{"type": "object", "properties": {"a": {"type": "string", "minLength": 2}},
        "required": ["a"]}, {"properties": {"a": {"type": "string", "maxLength": 5},
        "b": {"const": {"c": [1, 2.5, "\u00e9"]}}}}]})",
    R"({"type": "array", "items": [{"type": "integer"}, {"type": "string"}], "additionalItems": false,
        "minItems": 1})",
    R"({"type": "object", "patternProperties": {"^x": {"type": "null"}}, "maxProperties": 2,
        "additionalProperties": false})",
    R"({"type": ["string", "null"]})",
};

TEST(GrammarProperty, TextsOfTheMasksAreValidByAnotherValidator) {
  std::mt19937 random(test::test_seed());
  int num_finished = 0;
  for (const char* text : kSchemas) {
    const auto plain = nlohmann::json::parse(text);
    valijson::Schema validator_schema;
    valijson::SchemaParser parser;
    const valijson::adapters::NlohmannJsonAdapter adapter(plain);
    parser.populateSchema(adapter, validator_schema);
    for (const bool loose : {false, true}) {
      GrammarOptions options;
      options.any_whitespace = loose;
      const auto grammar = compiled(schema(text, options), demo_trie());
      ASSERT_NE(grammar, nullptr);
      for (int i = 0; i < 30; ++i) {
        const std::string document = random_walk(grammar, demo_trie(), 400, random);
        if (document.empty()) continue;
        ++num_finished;
        const auto value = nlohmann::json::parse(document, nullptr, false);
        ASSERT_FALSE(value.is_discarded()) << document;
        valijson::Validator validator;
        valijson::ValidationResults results;
        const valijson::adapters::NlohmannJsonAdapter target(value);
        EXPECT_TRUE(validator.validate(validator_schema, target, &results)) << text << "\n"
                                                                            << document;
      }
    }
  }
  EXPECT_GT(num_finished, 200) << "walks hardly ever end: this test proves little";
}

TEST(GrammarProperty, AMaskAllowsExactlyTheTokensThatTheTextCanTake) {
  std::mt19937 random(test::test_seed());
  const auto trie = demo_trie();
  const std::vector<Result<Grammar>> grammars = {
      schema(kSchemas[0]),
      schema(kSchemas[2]),
      Grammar::json_object(),
      Grammar::regex("(ab?|[^a]{2,200}c)*[0-9]{3,}x"),
      Grammar::ebnf("root ::= item (\", \" item){0,300}\nitem ::= [a-z]+ | \"(\" root \")\""),
      schema(R"({"type": "string", "minLength": 100, "maxLength": 300})"),
      Grammar::tool_calls(test::json(R"([{"function": {"name": "f", "parameters": {"type": "object",
          "properties": {"s": {"type": "string"}, "n": {"type": "integer"}}}}}])"),
                          ToolCallStyle::kQwenXml, true)};
  std::vector<uint32_t> mask((static_cast<size_t>(trie->vocab_size()) + 31) / 32);
  for (const Result<Grammar>& source : grammars) {
    const auto grammar = compiled(source, trie);
    ASSERT_NE(grammar, nullptr);
    GrammarMatcher matcher(grammar);
    for (int i = 0; i < 40 && !matcher.ended(); ++i) {
      matcher.fill(mask);
      std::vector<int32_t> allowed;
      for (int32_t token = 0; token < trie->vocab_size(); ++token) {
        GrammarMatcher probe = matcher;
        ASSERT_EQ(is_set(mask, token), probe.accept(token))
            << token << " \"" << trie->token_bytes(token) << "\" step " << i;
        if (is_set(mask, token)) allowed.push_back(token);
      }
      ASSERT_FALSE(allowed.empty());
      ASSERT_TRUE(matcher.accept(allowed[random() % allowed.size()]));
    }
  }
}

TEST(GrammarProperty, ASmallCacheGivesTheSameMasks) {
  std::mt19937 random(test::test_seed());
  const auto trie = demo_trie();
  const Grammar grammar = schema(kSchemas[0]).value();
  const auto large = CompiledGrammar::compile(grammar, trie).value();
  const auto tiny = CompiledGrammar::compile(grammar, trie, 20'000).value();
  const auto warm = CompiledGrammar::compile(grammar, trie).value();
  warm->warm_up(50);
  std::vector<uint32_t> a((static_cast<size_t>(trie->vocab_size()) + 31) / 32);
  std::vector<uint32_t> b = a;
  std::vector<uint32_t> c = a;
  for (int round = 0; round < 5; ++round) {
    GrammarMatcher one(large);
    GrammarMatcher two(tiny);
    GrammarMatcher three(warm);
    for (int i = 0; i < 60 && !one.ended(); ++i) {
      one.fill(a);
      two.fill(b);
      three.fill(c);
      ASSERT_EQ(a, b);
      ASSERT_EQ(a, c);
      std::vector<int32_t> allowed;
      for (int32_t token = 0; token < trie->vocab_size(); ++token)
        if (is_set(a, token)) allowed.push_back(token);
      const int32_t token = allowed[random() % allowed.size()];
      ASSERT_TRUE(one.accept(token) && two.accept(token) && three.accept(token));
      ASSERT_EQ(one.complete(), two.complete());
    }
  }
}

TEST(GrammarMatcher, RefusesWithoutMovingAndEndsOnce) {
  const auto grammar = compiled(Grammar::regex("ab*"));
  GrammarMatcher matcher(grammar);
  EXPECT_FALSE(matcher.accept(test::kEndToken)) << "not complete yet";
  EXPECT_FALSE(matcher.accept('b'));
  EXPECT_TRUE(matcher.accept('a'));
  EXPECT_TRUE(matcher.complete());
  const GrammarMatcher earlier = matcher;
  EXPECT_TRUE(matcher.accept('b'));
  EXPECT_TRUE(matcher.accept(test::kEndToken));
  EXPECT_TRUE(matcher.ended());
  EXPECT_FALSE(matcher.accept('b'));
  EXPECT_FALSE(earlier.ended()) << "a copy stays where it was";
  std::vector<uint32_t> mask(9);
  matcher.fill(mask);
  EXPECT_TRUE(is_set(mask, test::kEndToken));
  EXPECT_FALSE(is_set(mask, 'b'));
}

}  // namespace
}  // namespace nibble
