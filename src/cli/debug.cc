// nibble debug parse: replies through the parsers, for people who debug clients. JSON lines in:
//   {"tools": [...], "enable_thinking": true, "prompt_tail": "...", "deltas": ["...", ...]}
// JSON lines out:
//   {"reasoning", "content", "tool_calls": [{"name", "arguments"}], "emissions": [[...], ...]}
// where emission i is what delta i brought, and the last one what the end of the text brought.
#include <cstdio>
#include <iostream>

#include "base/format.h"
#include "cli/command.h"
#include "text/reply_parser.h"

namespace nibble::cli {
namespace {

struct DebugOptions {
  std::string action;
  std::string tool_parser = "qwen3_coder";
  std::string reasoning_parser;

  template <class V>
  void visit(V& v) {
    v.positional("ACTION", &action, "parse: JSON lines of replies on standard input");
    v.option("tool-parser", &tool_parser, "how tool calls are written",
             {"", "none", "qwen3_coder", "hermes"});
    v.option("reasoning-parser", &reasoning_parser, "how reasoning is written",
             {"", "none", "qwen3"});
  }
};

Json event_json(const ReplyEvent& event) {
  switch (event.kind) {
    case ReplyEvent::Kind::kReasoning: return {{"reasoning", event.text}};
    case ReplyEvent::Kind::kContent: return {{"content", event.text}};
    case ReplyEvent::Kind::kToolCallBegin:
      return {{"index", event.call_index}, {"name", event.name}, {"arguments", ""}};
    case ReplyEvent::Kind::kToolCallArguments:
      return {{"index", event.call_index}, {"arguments", event.text}};
    case ReplyEvent::Kind::kToolCallEnd: break;
  }
  return {{"index", event.call_index}, {"end", true}};
}

// The prompt's end as the chat template writes it, unless the line gives its own.
std::string prompt_tail(const Json& line) {
  const Json tail = line.value("prompt_tail", Json());
  if (tail.is_string()) return tail.get<std::string>();
  const bool thinking = line.value("enable_thinking", Json(true)) != false;
  return thinking ? "<|im_start|>assistant\n<think>\n"
                  : "<|im_start|>assistant\n<think>\n\n</think>\n\n";
}

Result<Json> parse_reply(const Json& line, const DebugOptions& options) {
  if (!line.is_object() || !line.value("deltas", Json()).is_array())
    return make_error(ErrorCode::kInvalidArgument, "expected an object with a list of deltas");
  const auto chosen = [](const std::string& name) { return name == "none" ? "" : name; };
  NB_TRY(const std::unique_ptr<ReplyParser> parser,
         make_reply_parser({.reasoning_parser = chosen(options.reasoning_parser),
                            .tool_parser = chosen(options.tool_parser),
                            .tools = line.value("tools", Json::array()),
                            .prompt_tail = prompt_tail(line)}));
  std::string reasoning;
  std::string content;
  bool has_reasoning = false;
  Json calls = Json::array();
  Json emissions = Json::array();
  const auto take = [&](const std::vector<ReplyEvent>& events) {
    Json emitted = Json::array();
    for (const ReplyEvent& event : events) {
      emitted.push_back(event_json(event));
      switch (event.kind) {
        case ReplyEvent::Kind::kReasoning:
          reasoning += event.text;
          has_reasoning = true;
          break;
        case ReplyEvent::Kind::kContent: content += event.text; break;
        case ReplyEvent::Kind::kToolCallBegin:
          calls.push_back({{"name", event.name}, {"arguments", ""}});
          break;
        case ReplyEvent::Kind::kToolCallArguments:
          calls.back()["arguments"].get_ref<std::string&>() += event.text;
          break;
        case ReplyEvent::Kind::kToolCallEnd: break;
      }
    }
    emissions.push_back(std::move(emitted));
  };
  for (const Json& delta : line["deltas"]) {
    if (!delta.is_string())
      return make_error(ErrorCode::kInvalidArgument, "deltas: expected strings");
    take(parser->push(delta.get_ref<const std::string&>()));
  }
  take(parser->finish());
  const bool blank = content.find_first_not_of(" \t\r\n") == std::string::npos;
  return Json{{"reasoning", has_reasoning ? Json(reasoning) : Json()},
              {"content", content.empty() || (blank && !calls.empty()) ? Json() : Json(content)},
              {"tool_calls", calls},
              {"emissions", emissions}};
}

}  // namespace

int debug(Arguments arguments) {
  DebugOptions options;
  OptionSet set("nibble debug", "take replies apart: JSON lines in, JSON lines out");
  if (const Parsed parsed = parse(set, options, arguments); !parsed.ok) return parsed.exit;
  if (options.action != "parse")
    return fail(make_error(ErrorCode::kInvalidArgument,
                           "nibble debug: unknown action \"{}\"; it can parse", options.action));
  std::string text;
  for (int number = 1; std::getline(std::cin, text); ++number) {
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    Result<Json> line = parse_json(text, format("line {}", number));
    if (!line) return fail(line.error());
    Result<Json> out = parse_reply(*line, options);
    if (!out) return fail({out.error().code, format("line {}: {}", number, out.error().message)});
    std::puts(dump_json(*out).c_str());
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace nibble::cli
