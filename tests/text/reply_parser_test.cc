// Replies taken apart: a table of whole replies, and the property that no cut of the stream changes
// the result.
#include "text/reply_parser.h"

#include <gtest/gtest.h>

#include <random>

#include "base/json.h"

namespace nibble {
namespace {

struct Parsed {
  std::string reasoning;
  std::string content;
  Json calls = Json::array();
  bool operator==(const Parsed&) const = default;
};
void PrintTo(const Parsed& parsed, std::ostream* out) {
  *out << dump_json(Json(
      {{"reasoning", parsed.reasoning}, {"content", parsed.content}, {"calls", parsed.calls}}));
}

Json tools() {
  return parse_json(R"([{"type": "function", "function": {"name": "f", "parameters": {
    "type": "object", "properties": {
      "s": {"type": "string"}, "i": {"type": "integer"}, "x": {"type": "number"},
      "b": {"type": "boolean"}, "o": {"type": "object"}, "a": {"type": "array"},
      "n": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
      "m": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}}}])",
                    "tools")
      .value();
}

// Parses `text` pushed in the given pieces.
Parsed parse(const ReplyParserOptions& options, const std::vector<std::string_view>& pieces) {
  auto parser = make_reply_parser(options).value();
  Parsed parsed;
  const auto take = [&](const std::vector<ReplyEvent>& events) {
    for (const ReplyEvent& event : events) {
      switch (event.kind) {
        case ReplyEvent::Kind::kReasoning: parsed.reasoning += event.text; break;
        case ReplyEvent::Kind::kContent: parsed.content += event.text; break;
        case ReplyEvent::Kind::kToolCallBegin:
          EXPECT_EQ(event.call_index, static_cast<int>(parsed.calls.size()));
          parsed.calls.push_back({{"name", event.name}, {"arguments", ""}});
          break;
        case ReplyEvent::Kind::kToolCallArguments:
          parsed.calls.back()["arguments"].get_ref<std::string&>() += event.text;
          break;
        case ReplyEvent::Kind::kToolCallEnd: break;
      }
    }
  };
  for (const std::string_view piece : pieces) take(parser->push(piece));
  take(parser->finish());
  return parsed;
}

ReplyParserOptions coder() {
  return {
      .reasoning_parser = "", .tool_parser = "qwen3_coder", .tools = tools(), .prompt_tail = ""};
}

struct Row {
  const char* name;
  const char* text;
  const char* content;
  const char* calls;  // [[name, arguments], ...]
};
constexpr Row kRows[] = {
    {"no tools", "Just text.", "Just text.", "[]"},
    {"single",
     "<tool_call>\n<function=f>\n<parameter=s>\nDallas\n</parameter>\n</function>\n</tool_call>",
     "", R"([["f", {"s": "Dallas"}]])"},
    {"text before",
     "Sure!\n<tool_call>\n<function=f>\n<parameter=s>\nx\n</parameter>\n</function>\n</tool_call>",
     "Sure!\n", R"([["f", {"s": "x"}]])"},
    {"multi-line object",
     "<tool_call>\n<function=f>\n<parameter=o>\n{\"width\": 10, \n \"height\": 20}\n</parameter>\n"
     "<parameter=i>\n2\n</parameter>\n</function>\n</tool_call>",
     "", R"([["f", {"o": {"width": 10, "height": 20}, "i": 2}]])"},
    {"parallel, same name twice",
     "<tool_call>\n<function=f>\n<parameter=i>\n1\n</parameter>\n</function>\n</tool_call>\n"
     "<tool_call>\n<function=f>\n<parameter=i>\n2\n</parameter>\n</function>\n</tool_call>",
     "", R"([["f", {"i": 1}], ["f", {"i": 2}]])"},
    {"no outer tags", "<function=f>\n<parameter=s>\nx\n</parameter>\n</function>", "",
     R"([["f", {"s": "x"}]])"},
    {"type table",
     "<tool_call>\n<function=f>\n<parameter=i>\n42\n</parameter>\n<parameter=x>\n3.14\n</"
     "parameter>\n"
     "<parameter=b>\ntrue\n</parameter>\n<parameter=s>\nhello world\n</parameter>\n"
     "<parameter=a>\n[1, \"two\"]\n</parameter>\n</function>\n</tool_call>",
     "", R"([["f", {"i": 42, "x": 3.14, "b": true, "s": "hello world", "a": [1, "two"]}]])"},
    {"a string is never converted", "<function=f>\n<parameter=s>\n42\n</parameter>\n</function>",
     "", R"([["f", {"s": "42"}]])"},
    {"nullable",
     "<function=f>\n<parameter=n>\nnull\n</parameter>\n<parameter=m>\ntext\n</parameter>\n</"
     "function>",
     "", R"([["f", {"n": null, "m": "text"}]])"},
    {"an integer that is none", "<function=f>\n<parameter=i>\nabc\n</parameter>\n</function>", "",
     R"([["f", {"i": "abc"}]])"},
    {"missing </parameter>",
     "<tool_call>\n<function=f>\n<parameter=s>\nDallas\n<parameter=i>\n3\n</parameter>\n</"
     "function>\n</tool_call>",
     "", R"([["f", {"s": "Dallas", "i": 3}]])"},
    {"no parameters", "<tool_call><function=f></function></tool_call>", "", R"([["f", {}]])"},
    {"markup that is no call", "<meta charset=\"utf-8\"><title><<span> <tool_ <functional>",
     "<meta charset=\"utf-8\"><title><<span> <tool_ <functional>", "[]"},
    {"JSON in tags", "<tool_call>{\"name\":\"f\"}</tool_call>",
     "<tool_call>{\"name\":\"f\"}</tool_call>", "[]"},
    {"unfinished", "<tool_call><function=f>", "", R"([["f", {}]])"},
    {"an empty name", "<tool_call><function=></function></tool_call>", "", R"([["", {}]])"},
    {"cut in a value", "<tool_call>\n<function=f>\n<parameter=s>\nabc", "",
     R"([["f", {"s": "abc"}]])"},
    {"a bad call, then a good one",
     "<tool_call>\n<function=f\n</function>\n</"
     "tool_call>\n<tool_call>\n<function=f>\n<parameter=i>\n"
     "1\n</parameter>\n</function>\n</tool_call>",
     "<tool_call>\n<function=f\n</function>\n</tool_call>\n", R"([["f", {"i": 1}]])"},
    {"a name that swallows", "<function=f\n<parameter=s>x</parameter></function>", "x</parameter>",
     R"([["f\n<parameter=s", {}]])"},
    {"text, then a bare function, then a closing tag",
     "Look.\n<function=f>\n<parameter=s>\nx\n</parameter>\n</function>\n</tool_call>", "Look.\n",
     R"([["f", {"s": "x"}]])"},
    {"two bare functions", "<function=f>\n</function>\n<function=g>\n</function>", "",
     R"([["f", {}], ["g", {}]])"},
    {"two functions in one call",
     "<tool_call>\n<function=f>\n</function>\n<function=g>\n</function>\n</tool_call>", "",
     R"([["f", {}], ["g", {}]])"},
    {"numbers",
     "<function=f>\n<parameter=i>\n3.5\n</parameter>\n<parameter=x>\n5.0\n</parameter>\n"
     "<parameter=n>\n1_000\n</parameter>\n<parameter=b>\nyes\n</parameter>\n</function>",
     "", R"([["f", {"i": 3.5, "x": 5, "n": 1000, "b": "yes"}]])"},
    {"a JSON fallback", "<function=f>\n<parameter=i>\ntrue\n</parameter>\n</function>", "",
     R"([["f", {"i": true}]])"},
    {"a Python literal is no object",
     "<function=f>\n<parameter=o>\n{'a': 1}\n</parameter>\n</function>", "",
     R"([["f", {"o": "{'a': 1}"}]])"},
    {"an array for an object", "<function=f>\n<parameter=o>\n[1]\n</parameter>\n</function>", "",
     R"([["f", {"o": [1]}]])"},
    {"null is a word to a string", "<function=f>\n<parameter=s>\nnull\n</parameter>\n</function>",
     "", R"([["f", {"s": "null"}]])"},
    {"one newline at each end", "<function=f>\n<parameter=s>\n\n x \n\n</parameter>\n</function>",
     "", R"([["f", {"s": "\n x \n"}]])"},
    {"unknown function", "<function=g>\n<parameter=q>\n1\n</parameter>\n</function>", "",
     R"([["g", {"q": "1"}]])"},
};

TEST(ReplyParser, TheTableOfWholeReplies) {
  for (const Row& row : kRows) {
    SCOPED_TRACE(row.name);
    const Parsed parsed = parse(coder(), {row.text});
    EXPECT_EQ(parsed.content, row.content);
    Json calls = Json::array();
    for (const Json& call : parsed.calls) {
      const Result<Json> arguments = parse_json(call["arguments"].get<std::string>(), "arguments");
      ASSERT_TRUE(arguments) << call["arguments"];
      calls.push_back(Json::array({call["name"], *arguments}));
    }
    EXPECT_EQ(calls, parse_json(row.calls, "row").value());
  }
}

TEST(ReplyParser, IntegersBeyond64BitsKeepEveryDigit) {
  const Parsed parsed =
      parse(coder(), {"<function=f>\n<parameter=i>\n-123456789012345678901234567890\n"
                      "</parameter>\n</function>"});
  ASSERT_EQ(parsed.calls.size(), 1u);
  EXPECT_EQ(parsed.calls[0]["arguments"], "{\"i\": -123456789012345678901234567890}");
}

TEST(ReplyParser, WhereReasoningEnds) {
  struct Case {
    const char* prompt_tail;
    const char* text;
    const char* reasoning;
    const char* content;
  };
  const char* const open = "<think>\n";
  const char* const closed = "<think>\n\n</think>\n\n";
  const Case cases[] = {
      {open, "R</think>C", "R", "C"},
      {open, "R</think>", "R", ""},
      {open, "<think>R</think>C", "R", "C"},
      {open, "\n<think>R</think>C", "R", "C"},
      {open, "<think>R", "R", ""},
      {open, "R\n1\n</think>\nC\n2", "R\n1\n", "\nC\n2"},
      {open, "<thin", "<thin", ""},
      {open, "  x", "  x", ""},
      {closed, "C only", "", "C only"},
      {closed, "a</think>b", "", "a</think>b"},
      {"no tag at all", "R</think>C", "R", "C"},
      {"<tool_call>\n{\"name\":", " \"f\"}", "", " \"f\"}"},
      {"<tool_call>x</tool_call> example", "R</think>C", "R", "C"},
  };
  for (const Case& one : cases) {
    SCOPED_TRACE(std::string(one.prompt_tail) + " | " + one.text);
    const ReplyParserOptions options{.reasoning_parser = "qwen3",
                                     .tool_parser = "",
                                     .tools = Json::array(),
                                     .prompt_tail = one.prompt_tail};
    const Parsed parsed = parse(options, {one.text});
    EXPECT_EQ(parsed.reasoning, one.reasoning);
    EXPECT_EQ(parsed.content, one.content);
    std::vector<std::string_view> bytes;
    const std::string_view text = one.text;
    for (size_t i = 0; i < text.size(); ++i) bytes.push_back(text.substr(i, 1));
    EXPECT_EQ(parse(options, bytes), parsed);
  }
}

TEST(ReplyParser, NoCutOfTheStreamChangesTheResult) {
  std::mt19937 random(20261124);
  for (const std::string_view tool_parser : {"qwen3_coder", "hermes"}) {
    for (const Row& row : kRows) {
      ReplyParserOptions options = coder();
      options.tool_parser = tool_parser;
      options.reasoning_parser = "qwen3";
      options.prompt_tail = "<|im_start|>assistant\n<think>\n";
      const std::string text =
          std::string("thinking <b>\n</think>\n\n") + row.text +
          "\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"i\": 1}}\n</tool_call>";
      const std::string_view view = text;
      SCOPED_TRACE(std::string(tool_parser) + " " + row.name);
      const Parsed whole = parse(options, {view});
      for (size_t cut = 1; cut < text.size(); ++cut)
        ASSERT_EQ(parse(options, {view.substr(0, cut), view.substr(cut)}), whole) << "cut " << cut;
      for (int trial = 0; trial < 40; ++trial) {
        std::vector<std::string_view> pieces;
        for (size_t at = 0; at < text.size();) {
          const size_t length = 1 + random() % (trial < 10 ? 1 : 12);
          pieces.push_back(view.substr(at, length));
          at += length;
        }
        ASSERT_EQ(parse(options, pieces), whole) << "trial " << trial;
      }
    }
  }
}

TEST(ReplyParser, ReasoningEndsWithItsTagOrATool) {
  ReplyParserOptions options = coder();
  options.reasoning_parser = "qwen3";
  options.prompt_tail = "<think>\n";
  EXPECT_EQ(parse(options, {"why\n</think>\n\nthus"}).reasoning, "why\n");
  EXPECT_EQ(parse(options, {"only thoughts"}).reasoning, "only thoughts");
  const Parsed tool = parse(options, {"hm <tool_call><function=f></function></tool_call>"});
  EXPECT_EQ(tool.reasoning, "hm ");
  EXPECT_EQ(tool.calls.size(), 1u);
  options.prompt_tail = "<think>\n\n</think>\n\n";
  EXPECT_EQ(parse(options, {"plain"}).content, "plain");
}

TEST(ReplyParser, UnknownParsersListTheKnownOnes) {
  const auto parser = make_reply_parser(
      {.reasoning_parser = "", .tool_parser = "qwen", .tools = {}, .prompt_tail = ""});
  ASSERT_FALSE(parser);
  EXPECT_NE(parser.error().message.find("qwen3_coder"), std::string::npos);
}

}  // namespace
}  // namespace nibble
