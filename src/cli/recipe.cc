// nibble recipe explain RECIPE MODEL: which modules a recipe quantizes, which it keeps, and why.
#include <cstdio>

#include "base/format.h"
#include "base/yaml.h"
#include "checkpoint/model_dir.h"
#include "cli/command.h"
#include "model/architectures.h"
#include "quant/recipe.h"

namespace nibble::cli {
namespace {

struct RecipeFlags {
  std::string action;
  std::string recipe;
  std::string model;
  bool json = false;

  template <class V>
  void visit(V& v) {
    v.positional("ACTION", &action, "explain");
    v.positional("RECIPE", &recipe, "recipe.yaml");
    v.positional("MODEL", &model, "checkpoint directory");
    v.option("json", &json, "print JSON");
  }
};

Result<Explanation> explain(const RecipeFlags& flags) {
  if (flags.action != "explain")
    return make_error(ErrorCode::kInvalidArgument,
                      "nibble recipe: unknown action \"{}\"; the action is explain", flags.action);
  NB_TRY(const std::string text, read_file(flags.recipe, size_t{1} << 20));
  NB_TRY(const Recipe recipe, parse_recipe(text, flags.recipe));
  NB_TRY(const ModelDir dir, ModelDir::open(flags.model));
  NB_TRY(const ModelSpec spec, parse_model_config(dir.config()));
  return explain_recipe(recipe, spec);
}

}  // namespace

int recipe(Arguments arguments) {
  RecipeFlags flags;
  OptionSet set("nibble recipe", "explain what a recipe would do to a model");
  if (const Parsed parsed = parse(set, flags, arguments); !parsed.ok) return parsed.exit;
  const Result<Explanation> explanation = explain(flags);
  if (!explanation) return fail(explanation.error());
  if (flags.json) {
    Json modules = Json::array();
    for (const ModuleDecision& decision : explanation->modules)
      modules.push_back({{"name", decision.module.name},
                         {"quantized", decision.group >= 0},
                         {"rule", decision.rule}});
    std::puts(
        dump_json({{"modules", std::move(modules)}, {"warnings", explanation->warnings}}).c_str());
    return 0;
  }
  for (const ModuleDecision& decision : explanation->modules)
    std::printf("%-9s %s  (%s)\n", decision.group >= 0 ? "quantize" : "keep",
                decision.module.name.c_str(), decision.rule.c_str());
  for (const std::string& warning : explanation->warnings)
    std::fprintf(stderr, "warning: %s\n", warning.c_str());
  return 0;
}

}  // namespace nibble::cli
