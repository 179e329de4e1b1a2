// <tool_call> <function=NAME> <parameter=KEY> VALUE </parameter> ... </function> </tool_call>
//
// One buffer, five states; each step either consumes text or waits for more. Values arrive whole,
// so an arguments piece is a complete `"key": value`. What turns out not to be a call goes out as
// content, character for character; white space around calls does not.
//
//   kText --<tool_call>--> kOpened --<function=--> kName --">"--> kBody --<parameter=--> kValue
//     ^----------------------- </function>, </tool_call> -----------'  ^----- value ends ---'
#include "text/reply_stage.h"
#include "text/tool_arguments.h"

namespace nibble {
namespace {

using Kind = ReplyEvent::Kind;

constexpr std::string_view kOpen = "<tool_call>";
constexpr std::string_view kClose = "</tool_call>";
constexpr std::string_view kFunction = "<function=";
constexpr std::string_view kFunctionEnd = "</function>";
constexpr std::string_view kParameter = "<parameter=";
constexpr std::string_view kParameterEnd = "</parameter>";

class Qwen3CoderStage final : public ToolStage {
 public:
  explicit Qwen3CoderStage(Json tools) : tools_(std::move(tools)) {}

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
  enum class State { kText, kOpened, kName, kBody, kValue };

  // True when it moved on and should be called again.
  bool step(std::vector<ReplyEvent>* events, bool at_end) {
    switch (state_) {
      case State::kText: return text_step(events, at_end);
      case State::kOpened: return opened_step(events, at_end);
      case State::kName: return name_step(events, at_end);
      case State::kBody: return body_step(events, at_end);
      case State::kValue: return value_step(events, at_end);
    }
    return false;
  }

  // Blank text waits: it belongs to the content that follows it, or to nothing when a call does.
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

  std::string take(size_t size) {
    std::string taken = buffer_.substr(0, size);
    buffer_.erase(0, size);
    return taken;
  }

  bool text_step(std::vector<ReplyEvent>* events, bool at_end) {
    static constexpr std::string_view kMarkers[] = {kOpen, kFunction, kClose};
    // A closing tag means something only after a call.
    const std::span<const std::string_view> markers(kMarkers, num_calls_ > 0 ? 3 : 2);
    const MarkerMatch found = find_marker(buffer_, markers);
    if (!found) {
      const size_t held = at_end ? 0 : held_suffix(buffer_, markers);
      content(take(buffer_.size() - held), events);
      return false;
    }
    content(take(found.position), events);
    if (found.marker == kClose) {
      take(kClose.size());
      in_content_ = false;
    } else {
      state_ = found.marker == kOpen ? State::kOpened : State::kName;
      raw_ = take(found.marker.size());
    }
    return true;
  }

  // After <tool_call>: a function, or nothing that is a call.
  bool opened_step(std::vector<ReplyEvent>* events, bool at_end) {
    static constexpr std::string_view kMarkers[] = {kFunction, kClose};
    const MarkerMatch found = find_marker(buffer_, kMarkers);
    if (!found) {
      if (!at_end) return false;
      content(raw_ + take(buffer_.size()), events);
      state_ = State::kText;
      return false;
    }
    if (found.marker == kClose) {
      content(raw_ + take(found.position + kClose.size()), events);
      state_ = State::kText;
      return true;
    }
    raw_ += take(found.position + kFunction.size());
    state_ = State::kName;
    return true;
  }

  bool name_step(std::vector<ReplyEvent>* events, bool at_end) {
    const size_t end = buffer_.find('>');
    if (end == std::string::npos) {
      if (!at_end) return false;
      content(raw_ + take(buffer_.size()), events);
      state_ = State::kText;
      return false;
    }
    const std::string name = take(end + 1);
    // The first ">" belongs to a closing tag: this function has no name and is no call.
    for (const std::string_view tag : {kFunctionEnd, kClose}) {
      if (!name.ends_with(tag)) continue;
      content(raw_ + name, events);
      state_ = State::kText;
      return true;
    }
    blank_.clear();
    function_ = name.substr(0, end);
    events->push_back({Kind::kToolCallBegin, "", num_calls_, function_});
    events->push_back({Kind::kToolCallArguments, "{", num_calls_, ""});
    num_parameters_ = 0;
    stray_.clear();
    state_ = State::kBody;
    return true;
  }

  bool body_step(std::vector<ReplyEvent>* events, bool at_end) {
    static constexpr std::string_view kMarkers[] = {kParameter, kFunctionEnd, kClose};
    const MarkerMatch found = find_marker(buffer_, kMarkers);
    if (!found) {
      if (!at_end) return false;
      stray_ += take(buffer_.size());
      end_call(events);
      return false;
    }
    if (found.marker == kParameter) {
      const size_t name_end = buffer_.find('>', found.position);
      if (name_end == std::string::npos) {
        if (!at_end) return false;
        stray_ += take(buffer_.size());
        end_call(events);
        return false;
      }
      stray_ += take(found.position);
      const std::string head = take(name_end + 1 - found.position);
      parameter_ = head.substr(kParameter.size(), head.size() - kParameter.size() - 1);
      state_ = State::kValue;
      return true;
    }
    stray_ += take(found.position);
    take(found.marker.size());
    end_call(events);
    return true;
  }

  bool value_step(std::vector<ReplyEvent>* events, bool at_end) {
    static constexpr std::string_view kMarkers[] = {kParameterEnd, kParameter, kFunctionEnd,
                                                    kClose};
    const MarkerMatch found = find_marker(buffer_, kMarkers);
    if (!found && !at_end) return false;
    std::string value = take(found ? found.position : buffer_.size());
    if (!found) {
      // Cut in the middle of a closing tag: the tag is not part of the value.
      value.resize(value.size() - held_suffix(value, kMarkers));
    } else if (found.marker == kParameterEnd) {
      take(kParameterEnd.size());
    }
    if (value.starts_with('\n')) value.erase(0, 1);
    if (value.ends_with('\n')) value.pop_back();
    std::string piece = num_parameters_++ > 0 ? ", " : "";
    piece += dump_json_python(Json(parameter_)) + ": " +
             convert_argument_text(value, parameter_schema(tools_, function_, parameter_));
    events->push_back({Kind::kToolCallArguments, std::move(piece), num_calls_, ""});
    state_ = State::kBody;
    return true;
  }

  void end_call(std::vector<ReplyEvent>* events) {
    events->push_back({Kind::kToolCallArguments, "}", num_calls_, ""});
    events->push_back({Kind::kToolCallEnd, "", num_calls_, ""});
    ++num_calls_;
    in_content_ = false;
    state_ = State::kText;
    // Text between parameters means nothing, but the model wrote it.
    if (!is_blank(stray_)) content(stray_, events);
    in_content_ = false;
  }

  Json tools_;
  State state_ = State::kText;
  std::string buffer_;
  std::string raw_;    // the opening tags, should this turn out to be no call
  std::string blank_;  // white space that waits
  std::string stray_;
  std::string function_;
  std::string parameter_;
  bool in_content_ = false;
  int num_calls_ = 0;
  int num_parameters_ = 0;
};

}  // namespace

std::unique_ptr<ToolStage> make_qwen3_coder_stage(Json tools) {
  return std::make_unique<Qwen3CoderStage>(std::move(tools));
}

}  // namespace nibble
