// Regular expressions with linear time and bounded memory, for patterns people write. Doorkeeper of
// RE2.
#pragma once

#include <memory>
#include <string_view>

#include "base/result.h"

namespace nibble {

class Pattern {
 public:
  static Result<Pattern> compile(std::string_view expression);
  // Python's re.match: from the start of `text`, not necessarily to its end.
  bool matches_start(std::string_view text) const;

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

}  // namespace nibble
