// A Jinja2-compatible engine for chat templates, with the environment Hugging Face sets:
// trim_blocks, lstrip_blocks, no autoescape, Python-style tojson, raise_exception, strftime_now,
// loop controls. Templates and messages are foreign input: depth, steps, output size and time are
// capped.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "base/json.h"
#include "base/result.h"

namespace nibble {

struct TemplateLimits {
  int max_depth = 200;            // of syntax and of macro calls
  size_t max_steps = 20'000'000;  // evaluated nodes
  size_t max_output_bytes = size_t{64} << 20;
  int max_milliseconds = 5000;
};

class ChatTemplate {
 public:
  // Syntax errors name `what`, line and column.
  static Result<ChatTemplate> parse(std::string_view text, std::string_view what,
                                    TemplateLimits limits = {});
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;
  ~ChatTemplate();

  // Renders with the members of `variables` (an object: messages, tools, add_generation_prompt,
  // enable_thinking...) as globals. A raise_exception of the template is kInvalidArgument with the
  // template's own message; so are type errors, with line. Threads may render at once.
  Result<std::string> render(const Json& variables) const;

 private:
  struct State;
  explicit ChatTemplate(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace nibble
