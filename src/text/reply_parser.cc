// Composition: reasoning first, then tool calls inside what is left; and the table of parsers.
#include "text/reply_parser.h"

#include <algorithm>
#include <array>
#include <optional>

#include "base/format.h"
#include "base/text.h"
#include "text/reply_stage.h"

namespace nibble {
namespace {

constexpr std::string_view kThinkOpen = "<think>";
constexpr std::string_view kThinkClose = "</think>";
constexpr std::string_view kToolCall = "<tool_call>";
constexpr std::string_view kToolCallEnd = "</tool_call>";

struct ToolRow {
  std::string_view name;
  std::unique_ptr<ToolStage> (*make)(Json tools);
};
constexpr std::array<ToolRow, 2> kToolParsers = {{
    {"qwen3_coder", make_qwen3_coder_stage},
    {"hermes", make_hermes_stage},
}};
constexpr std::array<std::string_view, 2> kToolParserNames = {"qwen3_coder", "hermes"};
constexpr std::array<std::string_view, 1> kReasoningParserNames = {"qwen3"};

// Content without tool parsing.
class PlainStage final : public ToolStage {
 public:
  void push(std::string_view text, std::vector<ReplyEvent>* events) override {
    if (!text.empty()) events->push_back({ReplyEvent::Kind::kContent, std::string(text), -1, ""});
  }
  void finish(std::vector<ReplyEvent>*) override {}
};

class StagedParser final : public ReplyParser {
 public:
  StagedParser(bool in_reasoning, std::unique_ptr<ToolStage> tools)
      : in_reasoning_(in_reasoning), tools_(std::move(tools)) {}

  std::vector<ReplyEvent> push(std::string_view text) override {
    std::vector<ReplyEvent> events;
    if (!in_reasoning_) {
      tools_->push(text, &events);
      return events;
    }
    pending_ += text;
    advance(&events, /*at_end=*/false);
    return events;
  }

  std::vector<ReplyEvent> finish() override {
    std::vector<ReplyEvent> events;
    if (in_reasoning_) advance(&events, /*at_end=*/true);
    tools_->finish(&events);
    return events;
  }

 private:
  void reason(std::string text, std::vector<ReplyEvent>* events) {
    if (!text.empty()) events->push_back({ReplyEvent::Kind::kReasoning, std::move(text), -1, ""});
  }

  void advance(std::vector<ReplyEvent>* events, bool at_end) {
    // A model may repeat the tag that the prompt has opened already, white space in front.
    if (at_start_) {
      const size_t blank = std::min(pending_.find_first_not_of(" \t\r\n"), pending_.size());
      const std::string_view rest = std::string_view(pending_).substr(blank);
      if (!at_end && rest.size() < kThinkOpen.size() && kThinkOpen.starts_with(rest)) return;
      if (rest.starts_with(kThinkOpen)) pending_.erase(0, blank + kThinkOpen.size());
      at_start_ = false;
    }
    static constexpr std::string_view kEnds[] = {kThinkClose, kToolCall};
    if (const MarkerMatch end = find_marker(pending_, kEnds)) {
      reason(pending_.substr(0, end.position), events);
      // A tool call ends reasoning without a tag of its own and belongs to what follows.
      const size_t rest =
          end.marker == kThinkClose ? end.position + end.marker.size() : end.position;
      in_reasoning_ = false;
      tools_->push(std::string_view(pending_).substr(rest), events);
      pending_.clear();
      return;
    }
    const size_t held = at_end ? 0 : held_suffix(pending_, kEnds);
    reason(pending_.substr(0, pending_.size() - held), events);
    pending_.erase(0, pending_.size() - held);
  }

  bool in_reasoning_;
  bool at_start_ = true;
  std::string pending_;
  std::unique_ptr<ToolStage> tools_;
};

// The last think tag of the prompt decides; a prompt without one leaves reasoning open, unless it
// ends inside a tool call.
bool reasoning_is_open(std::string_view prompt_tail) {
  const size_t call = prompt_tail.rfind(kToolCall);
  if (call != std::string_view::npos &&
      prompt_tail.find(kToolCallEnd, call) == std::string_view::npos &&
      prompt_tail.find(kThinkOpen, call) == std::string_view::npos)
    return false;
  const size_t open = prompt_tail.rfind(kThinkOpen);
  const size_t close = prompt_tail.rfind(kThinkClose);
  if (close == std::string_view::npos) return true;
  return open != std::string_view::npos && open > close;
}

Error unknown(std::string_view kind, const std::string& name,
              std::span<const std::string_view> known) {
  const std::string nearest = nearest_name(name, known);
  return make_error(ErrorCode::kInvalidArgument, "{} parser \"{}\" is not known{}; known are {}",
                    kind, name, nearest.empty() ? "" : format(", did you mean {}?", nearest),
                    join(known, ", "));
}

}  // namespace

MarkerMatch find_marker(std::string_view text, std::span<const std::string_view> markers,
                        size_t from) {
  MarkerMatch best;
  for (const std::string_view marker : markers) {
    const size_t found = text.find(marker, from);
    if (found < best.position || (found == best.position && marker.size() > best.marker.size())) {
      if (found == std::string_view::npos) continue;
      best = {found, marker};
    }
  }
  return best;
}

size_t held_suffix(std::string_view text, std::span<const std::string_view> markers) {
  size_t longest = 0;
  for (const std::string_view marker : markers)
    for (size_t n = std::min(marker.size() - 1, text.size()); n > longest; --n)
      if (text.ends_with(marker.substr(0, n))) longest = n;
  return longest;
}

bool is_blank(std::string_view text) {
  return text.find_first_not_of(" \t\n\r\v\f") == std::string_view::npos;
}

std::span<const std::string_view> known_tool_parsers() {
  return kToolParserNames;
}
std::span<const std::string_view> known_reasoning_parsers() {
  return kReasoningParserNames;
}

Result<std::unique_ptr<ReplyParser>> make_reply_parser(const ReplyParserOptions& options) {
  std::unique_ptr<ToolStage> tools = std::make_unique<PlainStage>();
  if (!options.tool_parser.empty()) {
    const auto row =
        std::ranges::find(kToolParsers, std::string_view(options.tool_parser), &ToolRow::name);
    if (row == kToolParsers.end()) return unknown("tool", options.tool_parser, kToolParserNames);
    tools = row->make(options.tools);
  }
  if (!options.reasoning_parser.empty() && options.reasoning_parser != "qwen3")
    return unknown("reasoning", options.reasoning_parser, kReasoningParserNames);
  const bool reasoning =
      !options.reasoning_parser.empty() && reasoning_is_open(options.prompt_tail);
  return std::unique_ptr<ReplyParser>(std::make_unique<StagedParser>(reasoning, std::move(tools)));
}

}  // namespace nibble
