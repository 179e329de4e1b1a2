// Stands in for constraint.cc and sampling_presets.cc until they are written: refuses every rule.
#include "server/constraint.h"
#include "server/sampling_presets.h"

namespace nibble {
namespace {

Error pending() {
  return {ErrorCode::kUnsupported, "structured output is not supported yet"};
}

}  // namespace

Result<StructuredOutput> parse_structured_output(const Json& body) {
  const auto shape = body.find("response_format");
  if (shape != body.end() && shape->is_object() && shape->value("type", Json()) != "text")
    return pending();
  const auto rule = body.find("structured_outputs");
  if (rule != body.end() && !rule->is_null()) return pending();
  return StructuredOutput{};
}

Result<StructuredOutput> require_tools(const Json&, const std::string&, const std::string&, bool) {
  return pending();
}

Result<std::shared_ptr<TokenConstraint>> make_constraint(const StructuredOutput&,
                                                         const ServedModel&,
                                                         const ConstraintOptions&) {
  return pending();
}

Result<SamplingDefaults> sampling_defaults(const ModelDir& model, const SamplingDefaultsOptions&) {
  return SamplingDefaults{.config = model.generation_config(), .max_tokens_cap = 0};
}
std::span<const std::string_view> known_sampling_presets() {
  return {};
}
Result<Json> with_sampling_preset(const Json& config, std::string_view) {
  return config;
}

}  // namespace nibble
