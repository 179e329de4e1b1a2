// A reply through the parsers whole and cut in two places: the events must add up to the same.
// Nothing the model wrote may be lost: a reply without a call is all there.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "text/reply_parser.h"

namespace {

using nibble::Json;
using nibble::ReplyEvent;

struct Parts {
  std::string reasoning;
  std::string content;
  std::vector<std::string> names;
  std::vector<std::string> arguments;
  bool operator==(const Parts&) const = default;
};

Parts parse(const nibble::ReplyParserOptions& options,
            const std::vector<std::string_view>& pieces) {
  const auto parser = nibble::make_reply_parser(options).value();
  Parts parts;
  const auto take = [&](const std::vector<ReplyEvent>& events) {
    for (const ReplyEvent& event : events) {
      if (event.kind == ReplyEvent::Kind::kReasoning) parts.reasoning += event.text;
      if (event.kind == ReplyEvent::Kind::kContent) parts.content += event.text;
      if (event.kind == ReplyEvent::Kind::kToolCallBegin) {
        if (event.call_index != static_cast<int>(parts.names.size())) std::abort();
        parts.names.push_back(event.name);
        parts.arguments.emplace_back();
      }
      if (event.kind == ReplyEvent::Kind::kToolCallArguments) parts.arguments.back() += event.text;
    }
  };
  for (const std::string_view piece : pieces) take(parser->push(piece));
  take(parser->finish());
  return parts;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 3) return 0;
  static const Json tools =
      nibble::parse_json(R"([{"type": "function", "function": {"name": "f", "parameters": {
        "properties": {"s": {"type": "string"}, "i": {"type": "integer"}, "x": {"type": "number"},
          "o": {"type": "object"}, "b": {"type": "boolean"}}}}}])",
                         "tools")
          .value();
  nibble::ReplyParserOptions options{
      .reasoning_parser = (data[0] & 1) != 0 ? "qwen3" : "",
      .tool_parser = (data[0] & 2) != 0 ? "hermes" : "qwen3_coder",
      .tools = tools,
      .prompt_tail = (data[0] & 4) != 0 ? "<think>\n" : "<think>\n\n</think>\n\n"};
  const std::string_view text(reinterpret_cast<const char*>(data) + 3, size - 3);
  const Parts whole = parse(options, {text});
  const size_t first = text.empty() ? 0 : data[1] * text.size() / 256;
  const size_t second = first + data[2] * (text.size() - first) / 256;
  const Parts cut = parse(
      options, {text.substr(0, first), text.substr(first, second - first), text.substr(second)});
  if (!(cut == whole)) std::abort();
  std::vector<std::string_view> bytes;
  for (size_t i = 0; i < text.size(); ++i) bytes.push_back(text.substr(i, 1));
  if (!(parse(options, bytes) == whole)) std::abort();
  if (whole.names.empty() && options.reasoning_parser.empty() && whole.content != text)
    std::abort();
  return 0;
}
