// Patterns over names, with the meaning of Python's re.match: anchored at the start of the text,
// not at its end. Doorkeeper of RE2, so that a hostile pattern costs linear time.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"

namespace nibble {

class Pattern {
 public:
  // kInvalidArgument names the pattern and what is wrong with it. Lookaround and back-references
  // are refused.
  static Result<Pattern> compile(std::string_view pattern);
  Pattern(Pattern&&) noexcept;
  Pattern& operator=(Pattern&&) noexcept;
  ~Pattern();

  bool matches_start_of(std::string_view text) const;

 private:
  struct State;
  explicit Pattern(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace nibble
