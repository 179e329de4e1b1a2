// nibble debug parse: one JSON line of deltas in, one line of what the parsers made of them out.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <iostream>
#include <sstream>

#include "base/json.h"
#include "cli/command.h"

namespace nibble {
namespace {

struct Outcome {
  int exit;
  std::string out;
  std::string error;
};

Outcome parse_lines(const std::string& lines, std::vector<std::string> flags = {}) {
  flags.insert(flags.begin(), "parse");
  std::istringstream in(lines);
  std::streambuf* const console = std::cin.rdbuf(in.rdbuf());
  std::cin.clear();
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  const int exit = cli::debug(flags);
  Outcome outcome{exit, testing::internal::GetCapturedStdout(),
                  testing::internal::GetCapturedStderr()};
  std::cin.rdbuf(console);
  return outcome;
}

std::string line(const std::vector<std::string>& deltas, Json more = Json::object()) {
  more["deltas"] = deltas;
  return dump_json(more) + "\n";
}

// What the emissions add up to.
Json added_up(const Json& out) {
  std::string reasoning;
  std::string content;
  Json calls = Json::array();
  for (const Json& emission : out["emissions"])
    for (const Json& event : emission) {
      reasoning += event.value("reasoning", "");
      content += event.value("content", "");
      if (event.contains("name")) calls.push_back({{"name", event["name"]}, {"arguments", ""}});
      if (event.contains("arguments"))
        calls[event["index"].get<size_t>()]["arguments"].get_ref<std::string&>() +=
            event["arguments"].get<std::string>();
    }
  return {{"reasoning", reasoning}, {"content", content}, {"calls", calls}};
}

constexpr std::string_view kReply =
    "I look.\n</think>\n\nHere:\n<tool_call>\n<function=weather>\n<parameter=city>\nŁódź\n"
    "</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>";
const std::vector<std::string> kQwen = {"--tool-parser", "qwen3_coder", "--reasoning-parser",
                                        "qwen3"};

Json tools() {
  return {{"tools", parse_json(R"([{"type": "function", "function": {"name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"},
    "days": {"type": "integer"}}}}}])",
                               "tools")
                        .value()}};
}

TEST(DebugParse, SplitsAReplyAndSaysWhatEachDeltaBrought) {
  const Outcome outcome = parse_lines(line({"I look.\n</th", "ink>\n\nHi"}, tools()), kQwen);
  ASSERT_EQ(outcome.exit, 0) << outcome.error;
  const Json out = parse_json(outcome.out, "out").value();
  EXPECT_EQ(out["reasoning"], "I look.\n");
  EXPECT_EQ(out["content"], "\n\nHi");
  EXPECT_EQ(out["tool_calls"], Json::array());
  ASSERT_EQ(out["emissions"].size(), 3u);  // one per delta, and one of the end
  EXPECT_THAT(dump_json(out["emissions"][0]), testing::HasSubstr("I look."));
  EXPECT_THAT(dump_json(out["emissions"][0]), testing::Not(testing::HasSubstr("</th")));
}

TEST(DebugParse, EveryCutInTwoGivesTheSameReply) {
  std::string lines = line({std::string(kReply)}, tools());
  size_t num_lines = 1;
  for (size_t cut = 1; cut < kReply.size(); ++cut) {
    if ((static_cast<unsigned char>(kReply[cut]) & 0xC0) == 0x80) continue;  // inside a letter
    lines += line({std::string(kReply.substr(0, cut)), std::string(kReply.substr(cut))}, tools());
    ++num_lines;
  }
  const Outcome outcome = parse_lines(lines, kQwen);
  ASSERT_EQ(outcome.exit, 0) << outcome.error;
  std::istringstream out(outcome.out);
  std::string text;
  ASSERT_TRUE(std::getline(out, text));
  const Json whole = parse_json(text, "out").value();
  EXPECT_EQ(whole["content"], "\n\nHere:\n");
  ASSERT_EQ(whole["tool_calls"].size(), 1u);
  EXPECT_EQ(whole["tool_calls"][0]["name"], "weather");
  const Json arguments =
      parse_json(whole["tool_calls"][0]["arguments"].get<std::string>(), "arguments").value();
  EXPECT_EQ(arguments, Json({{"city", "Łódź"}, {"days", 3}}));
  size_t num_read = 1;
  for (; std::getline(out, text); ++num_read) {
    const Json cut = parse_json(text, "out").value();
    for (const char* member : {"reasoning", "content", "tool_calls"})
      EXPECT_EQ(cut[member], whole[member]) << num_read;
    EXPECT_EQ(added_up(cut)["calls"], whole["tool_calls"]) << num_read;
    EXPECT_EQ(added_up(cut)["reasoning"], whole["reasoning"]) << num_read;
  }
  EXPECT_EQ(num_read, num_lines);
}

TEST(DebugParse, ThePromptsTailDecidesWhetherAReplyBeginsInReasoning) {
  const auto content = [](Json more) {
    const Outcome outcome = parse_lines(line({"plain"}, std::move(more)), kQwen);
    return parse_json(outcome.out, "out").value()["content"];
  };
  EXPECT_EQ(content({{"enable_thinking", true}}), Json());
  EXPECT_EQ(content({{"enable_thinking", false}}), "plain");
  EXPECT_EQ(content({{"prompt_tail", "<think>\n\n</think>\n\n"}, {"enable_thinking", true}}),
            "plain");
}

TEST(DebugParse, ABadLineIsNamed) {
  for (const std::string_view bad :
       {"{", "[]", R"({"deltas": 1})", R"({"deltas": [1]})", R"({"text": "x"})"}) {
    const Outcome outcome = parse_lines(line({"fine"}) + std::string(bad) + "\n");
    EXPECT_EQ(outcome.exit, 2) << bad;
    EXPECT_THAT(outcome.error, testing::HasSubstr("line 2")) << bad;
    EXPECT_EQ(std::ranges::count(outcome.out, '\n'), 1) << bad;  // the first line was answered
  }
  EXPECT_EQ(parse_lines("", {"--tool-parser", "unheard-of"}).exit, 2);
}

}  // namespace
}  // namespace nibble
