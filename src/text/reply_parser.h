// What a model's reply is made of: reasoning, content, tool calls. Incremental parsers turn a text
// stream, cut anywhere, into the same events; nothing the model wrote is lost.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace nibble {

struct ReplyEvent {
  enum class Kind { kReasoning, kContent, kToolCallBegin, kToolCallArguments, kToolCallEnd };
  Kind kind = Kind::kContent;
  std::string text;     // reasoning, content, or the next piece of the arguments' JSON text
  int call_index = -1;  // of tool call events, from 0
  std::string name;     // of kToolCallBegin
};

// Splits one reply. Use one object per choice.
class ReplyParser {
 public:
  virtual ~ReplyParser() = default;
  virtual std::vector<ReplyEvent> push(std::string_view text) = 0;
  // The end of the stream: flushes what was held back.
  virtual std::vector<ReplyEvent> finish() = 0;
};

struct ReplyParserOptions {
  std::string reasoning_parser;  // "" or "qwen3"
  std::string tool_parser;       // "" or "qwen3_coder", "hermes"
  Json tools = Json::array();    // OpenAI tool objects; schemas type the arguments
  std::string prompt_tail;       // end of the rendered prompt: its last think tag decides whether
                                 // the reply starts inside reasoning
};

// Unknown parser names list the known ones.
Result<std::unique_ptr<ReplyParser>> make_reply_parser(const ReplyParserOptions& options);
std::span<const std::string_view> known_tool_parsers();
std::span<const std::string_view> known_reasoning_parsers();

}  // namespace nibble
