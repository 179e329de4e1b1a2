// The border of the template engine: its exceptions become Errors here.
#include "text/chat_template.h"

#include "base/format.h"
#include "text/jinja/evaluator.h"

namespace nibble {

struct ChatTemplate::State {
  std::string what;
  TemplateLimits limits;
  jinja::NodePtr root;
};

ChatTemplate::ChatTemplate(std::unique_ptr<State> state) : state_(std::move(state)) {}
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;
ChatTemplate::~ChatTemplate() = default;

Result<ChatTemplate> ChatTemplate::parse(std::string_view text, std::string_view what,
                                         TemplateLimits limits) {
  auto state = std::make_unique<State>();
  state->what = what;
  state->limits = limits;
  try {
    state->root = jinja::parse(text, limits.max_depth);
  } catch (const jinja::TemplateError& error) {
    return make_error(ErrorCode::kInvalidArgument, "{}: line {}: {}", what, error.line,
                      error.what());
  }
  return ChatTemplate(std::move(state));
}

Result<std::string> ChatTemplate::render(const Json& variables) const {
  try {
    std::map<std::string, jinja::Value, std::less<>> names;
    for (const auto& [name, value] : variables.items()) names[name] = jinja::from_json(value);
    jinja::Evaluator evaluator(state_->limits, std::move(names));
    return evaluator.render(*state_->root);
  } catch (const jinja::TemplateError& error) {
    if (error.raised) return Error{ErrorCode::kInvalidArgument, error.what()};
    return make_error(ErrorCode::kInvalidArgument, "{}: line {}: {}", state_->what, error.line,
                      error.what());
  }
}

}  // namespace nibble
