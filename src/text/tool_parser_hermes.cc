// <tool_call>{"name": ..., "arguments": {...}}</tool_call>: a call is known when its JSON is
// complete.
#include "text/reply_stage.h"

namespace nibble {
namespace {

using Kind = ReplyEvent::Kind;

constexpr std::string_view kOpen = "<tool_call>";
constexpr std::string_view kClose = "</tool_call>";

class HermesStage final : public ToolStage {
 public:
  void push(std::string_view text, std::vector<ReplyEvent>* events) override {
    buffer_ += text;
    while (step(events, /*at_end=*/false)) {
    }
  }
  void finish(std::vector<ReplyEvent>* events) override {
    while (step(events, /*at_end=*/true)) {
    }
    if (num_calls_ == 0 && !blank_.empty()) events->push_back({Kind::kContent, blank_, -1, ""});
  }

 private:
  void content(std::string_view text, std::vector<ReplyEvent>* events) {
    if (text.empty()) return;
    if (!in_content_ && is_blank(text)) {
      blank_ += text;
      return;
    }
    events->push_back({Kind::kContent, blank_ + std::string(text), -1, ""});
    blank_.clear();
    in_content_ = true;
  }

  bool step(std::vector<ReplyEvent>* events, bool at_end) {
    static constexpr std::string_view kMarkers[] = {kOpen};
    const MarkerMatch open = find_marker(buffer_, kMarkers);
    if (!open) {
      const size_t held = at_end ? 0 : held_suffix(buffer_, kMarkers);
      content(std::string_view(buffer_).substr(0, buffer_.size() - held), events);
      buffer_.erase(0, buffer_.size() - held);
      return false;
    }
    content(std::string_view(buffer_).substr(0, open.position), events);
    buffer_.erase(0, open.position);
    const size_t close = buffer_.find(kClose);
    if (close == std::string::npos && !at_end) return false;
    const size_t body_end = close == std::string::npos ? buffer_.size() : close;
    const size_t end = close == std::string::npos ? buffer_.size() : close + kClose.size();
    const std::string_view body =
        std::string_view(buffer_).substr(kOpen.size(), body_end - kOpen.size());
    if (!emit_call(body, events)) content(std::string_view(buffer_).substr(0, end), events);
    buffer_.erase(0, end);
    return !buffer_.empty();
  }

  bool emit_call(std::string_view body, std::vector<ReplyEvent>* events) {
    const Result<Json> call = parse_json(body, "tool call", {.allow_duplicate_keys = true});
    if (!call || !call->is_object() || !call->contains("name") || !(*call)["name"].is_string())
      return false;
    Json arguments = call->contains("arguments") ? (*call)["arguments"] : Json::object();
    if (arguments.is_string()) {
      Result<Json> parsed = parse_json(arguments.get_ref<const std::string&>(), "arguments",
                                       {.allow_duplicate_keys = true});
      if (!parsed) return false;
      arguments = std::move(*parsed);
    }
    if (!arguments.is_object()) return false;
    blank_.clear();
    in_content_ = false;
    events->push_back({Kind::kToolCallBegin, "", num_calls_, (*call)["name"].get<std::string>()});
    events->push_back({Kind::kToolCallArguments, dump_json_python(arguments), num_calls_, ""});
    events->push_back({Kind::kToolCallEnd, "", num_calls_, ""});
    ++num_calls_;
    return true;
  }

  std::string buffer_;
  std::string blank_;
  bool in_content_ = false;
  int num_calls_ = 0;
};

}  // namespace

std::unique_ptr<ToolStage> make_hermes_stage(Json) {
  return std::make_unique<HermesStage>();
}

}  // namespace nibble
