// Backtracking regular expressions for pre-tokenizers that no scanner knows. Doorkeeper of PCRE2.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace nibble {

class Regex {
 public:
  // Unicode semantics. kInvalidArgument names the pattern and what is wrong with it.
  static Result<Regex> compile(std::string_view pattern);
  Regex(Regex&&) noexcept;
  ~Regex();

  // Appends matches and the stretches between them, in order (Split with behavior "isolated"). A
  // match that runs into the step limit ends the splitting: the rest is one piece.
  void split_isolated(std::string_view text, std::vector<std::string_view>* pieces) const;

 private:
  struct State;
  explicit Regex(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace nibble
