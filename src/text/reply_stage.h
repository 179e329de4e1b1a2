// Pieces shared by the incremental reply parsers: marker search that can wait for more text.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/reply_parser.h"

namespace nibble {

// The earliest of `markers` in `text` from `from` on; the longest at equal positions.
struct MarkerMatch {
  size_t position = std::string_view::npos;
  std::string_view marker;
  explicit operator bool() const { return position != std::string_view::npos; }
};
MarkerMatch find_marker(std::string_view text, std::span<const std::string_view> markers,
                        size_t from = 0);

// Length of the longest suffix of `text` that is a proper prefix of a marker: what must be held
// back until more text decides.
size_t held_suffix(std::string_view text, std::span<const std::string_view> markers);

bool is_blank(std::string_view text);  // white space only, or empty

// Finds tool calls in content. `push` consumes what it can; `finish` what is left.
class ToolStage {
 public:
  virtual ~ToolStage() = default;
  virtual void push(std::string_view text, std::vector<ReplyEvent>* events) = 0;
  virtual void finish(std::vector<ReplyEvent>* events) = 0;
};
std::unique_ptr<ToolStage> make_qwen3_coder_stage(Json tools);
std::unique_ptr<ToolStage> make_hermes_stage(Json tools);

}  // namespace nibble
