// One entry of a recipe's target, ignore or mapping list against module names.
#pragma once

#include <optional>
#include <string>

#include "base/pattern.h"
#include "base/result.h"

namespace nibble {

// "re:PATTERN" (from the start of the name), a full name, or the class name Linear.
class NameMatcher {
 public:
  // `field` of the recipe, for the error.
  static Result<NameMatcher> make(const std::string& text, std::string_view field) {
    NameMatcher matcher;
    matcher.text_ = text;
    if (text.starts_with("re:")) {
      Result<Pattern> pattern = Pattern::compile(std::string_view(text).substr(3));
      if (!pattern)
        return make_error(pattern.error().code, "recipe: {}: {}", field, pattern.error().message);
      matcher.pattern_ = std::move(*pattern);
    }
    return matcher;
  }
  const std::string& text() const { return text_; }
  bool matches(const std::string& name) const {
    return pattern_ ? pattern_->matches_start_of(name) : text_ == name || text_ == "Linear";
  }
  // Exact names decide before patterns, patterns before class names.
  int precedence() const { return pattern_ ? 1 : text_ == "Linear" ? 2 : 0; }

 private:
  std::string text_;
  std::optional<Pattern> pattern_;
};

}  // namespace nibble
