// Recipes: which modules are quantized, how, and by which algorithm. Reads llm-compressor's
// recipe.yaml; facts in docs/reference/quantization-format.md.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <optional>

#include "base/pattern.h"
#include "base/result.h"
#include "checkpoint/compressed_tensors.h"
#include "model/weights.h"
#include "quant/awq.h"
#include "quant/gptq.h"

namespace nibble {

struct Recipe {
  // Neither: round to nearest. Both: smooth first, then round with compensation.
  std::optional<AwqSettings> awq;
  std::optional<GptqSettings> gptq;
  // Either algorithm, or an observer that weighs by activations.
  bool needs_calibration() const;
  std::string algorithm() const;  // "rtn", "awq", "gptq", "awq+gptq"
  std::vector<QuantizationGroup> groups;
  std::vector<std::string> ignore;
  std::string text;  // as read, copied beside the checkpoint
};

// `what` names the source. Unknown keys are errors with the nearest known one.
Result<Recipe> parse_recipe(std::string_view yaml, std::string_view what);

// A recipe in few words, and the text of the recipe.yaml that says the same.
struct RecipeParts {
  std::string algorithm = "awq+gptq";  // rtn, awq, gptq, awq+gptq
  std::string observer = "mse";
  int num_bits = 4;
  int group_size = 128;  // -1: a whole row
  bool symmetric = false;
  std::vector<std::string> ignore = {"re:.*lm_head",       "re:visual.*",
                                     "re:model.visual.*",  "re:.*mlp.gate$",
                                     "re:.*embed_tokens$", "re:.*shared_expert_gate$",
                                     "re:.*linear_attn.*", "re:.*mtp.*"};
};
std::string recipe_text(const RecipeParts& parts);

// What happens to one module, and which rule of the recipe said so.
struct ModuleDecision {
  LinearModule module;
  int group = -1;    // index into Recipe::groups; -1: kept in floating point
  std::string rule;  // "target Linear", "ignore re:.*linear_attn.*", "tied to the embedding"
};

struct Explanation {
  std::vector<ModuleDecision> modules;  // in definition order
  std::vector<std::string> warnings;    // ignore entries that matched nothing
};

// Applies the recipe to the Linears of a model. Errors: a target that matches nothing, a group size
// that does not divide a module's columns (all such modules are named).
Result<Explanation> explain_recipe(const Recipe& recipe, const ModelSpec& spec);

}  // namespace nibble
