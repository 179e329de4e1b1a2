// RE2 behind base/pattern.h.
#include "base/pattern.h"

#include <re2/re2.h>

#include "base/format.h"

namespace nibble {

struct Pattern::State {
  explicit State(std::string_view expression)
      : regex(re2::StringPiece(expression.data(), expression.size()), RE2::Quiet) {}
  RE2 regex;
};

Result<Pattern> Pattern::compile(std::string_view expression) {
  Pattern pattern;
  auto state = std::make_shared<State>(expression);
  if (!state->regex.ok())
    return make_error(ErrorCode::kInvalidArgument, "\"{}\" is not a valid pattern: {}", expression,
                      state->regex.error());
  pattern.state_ = std::move(state);
  return pattern;
}

bool Pattern::matches_start(std::string_view text) const {
  const re2::StringPiece piece(text.data(), text.size());
  return state_->regex.Match(piece, 0, text.size(), RE2::ANCHOR_START, nullptr, 0);
}

}  // namespace nibble
