// RE2 behind base/pattern.h.
#include "base/pattern.h"

#include <re2/re2.h>

#include "base/format.h"

namespace nibble {
namespace {
constexpr size_t kMaxPatternBytes = 4096;
}  // namespace

struct Pattern::State {
  re2::RE2 regex;
};

Result<Pattern> Pattern::compile(std::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes)
    return make_error(ErrorCode::kInvalidArgument, "pattern of {} bytes, the limit is {}",
                      pattern.size(), kMaxPatternBytes);
  re2::RE2::Options options;
  options.set_log_errors(false);
  auto state = std::unique_ptr<State>(
      new State{re2::RE2(re2::StringPiece(pattern.data(), pattern.size()), options)});
  if (!state->regex.ok())
    return make_error(ErrorCode::kInvalidArgument, "\"{}\" is not a valid pattern: {}", pattern,
                      state->regex.error());
  return Pattern(std::move(state));
}

Pattern::Pattern(std::unique_ptr<State> state) : state_(std::move(state)) {}
Pattern::Pattern(Pattern&&) noexcept = default;
Pattern& Pattern::operator=(Pattern&&) noexcept = default;
Pattern::~Pattern() = default;

bool Pattern::matches_start_of(std::string_view text) const {
  const re2::StringPiece piece(text.data(), text.size());
  return state_->regex.Match(piece, 0, piece.size(), re2::RE2::ANCHOR_START, nullptr, 0);
}

}  // namespace nibble
