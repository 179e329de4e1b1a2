// recipe.yaml to a Recipe, and a Recipe to decisions.
#include "quant/recipe.h"

#include <algorithm>
#include <array>
#include <optional>

#include "base/format.h"
#include "base/text.h"
#include "base/yaml.h"
#include "quant/name_matcher.h"
#include "quant/observer.h"

namespace nibble {
namespace {

// Keys that say what to quantize; any modifier may carry them (an AWQModifier in the old spelling).
constexpr std::array<std::string_view, 8> kQuantizationKeys = {
    "config_groups",   "targets",         "ignore",   "scheme",
    "kv_cache_scheme", "weight_observer", "observer", "bypass_divisibility_checks"};
constexpr std::array<std::string_view, 7> kAwqKeys = {
    "mappings",        "duo_scaling",        "n_grid",
    "offload_device",  "sequential_targets", "requires_calibration_data",
    "max_chunk_memory"};
constexpr std::array<std::string_view, 6> kGptqKeys = {
    "block_size",         "dampening_frac",   "actorder",
    "sequential_targets", "offload_hessians", "requires_calibration_data"};
constexpr std::array<std::string_view, 12> kWeightKeys = {
    "num_bits", "type",     "symmetric",   "group_size", "strategy", "block_structure",
    "dynamic",  "actorder", "scale_dtype", "zp_dtype",   "observer", "observer_kwargs"};

class RecipeReader {
 public:
  explicit RecipeReader(std::string_view what) : what_(what) {}

  // Keys that only say where or in which pieces llm-compressor computes (offload_device,
  // block_size, sequential_targets...) change no result here and are passed over.
  Result<Recipe> read(const Json& root) {
    if (!root.is_object()) return bad("the recipe", root, "a mapping of stages");
    for (const auto& [stage, modifiers] : root.items()) {
      if (!modifiers.is_object()) return bad(stage, modifiers, "a mapping of modifiers");
      for (const auto& [name, value] : modifiers.items()) {
        // stage -> group_modifiers -> modifier, or stage -> modifier.
        if (name.ends_with("_modifiers") && value.is_object()) {
          for (const auto& [modifier, arguments] : value.items())
            NB_TRY_STATUS(read_modifier(modifier, arguments));
        } else {
          NB_TRY_STATUS(read_modifier(name, value));
        }
      }
    }
    if (recipe_.groups.empty())
      return make_error(ErrorCode::kInvalidArgument,
                        "{}: no modifier says what to quantize; give targets with a scheme or "
                        "config_groups",
                        what_);
    return std::move(recipe_);
  }

 private:
  Error bad(std::string_view field, const Json& found, std::string_view expected) const {
    std::string shown = dump_json(found);
    if (shown.size() > 60) shown = shown.substr(0, 57) + "...";
    return make_error(ErrorCode::kInvalidArgument, "{}: {} is {}, expected {}", what_, field, shown,
                      expected);
  }
  Error unknown_key(std::string_view where, const std::string& key,
                    const std::vector<std::string_view>& known) const {
    const std::string nearest = nearest_name(key, std::span<const std::string_view>(known));
    return make_error(ErrorCode::kInvalidArgument, "{}: {}: unknown key \"{}\"{}", what_, where,
                      key,
                      nearest.empty() ? format("; known are {}", join(known, ", "))
                                      : format(", did you mean \"{}\"?", nearest));
  }

  Status read_modifier(const std::string& name, const Json& arguments) {
    std::vector<std::string_view> known(kQuantizationKeys.begin(), kQuantizationKeys.end());
    if (name == "AWQModifier") {
      known.insert(known.end(), kAwqKeys.begin(), kAwqKeys.end());
      recipe_.awq.emplace();
    } else if (name == "GPTQModifier") {
      known.insert(known.end(), kGptqKeys.begin(), kGptqKeys.end());
      recipe_.gptq.emplace();
    } else if (name != "QuantizationModifier") {
      return unknown_key("modifiers", name,
                         {"AWQModifier", "QuantizationModifier", "GPTQModifier"});
    }
    if (arguments.is_null()) return {};
    if (!arguments.is_object()) return bad(name, arguments, "a mapping");
    for (const auto& [key, value] : arguments.items())
      if (std::ranges::find(known, std::string_view(key)) == known.end())
        return unknown_key(name, key, known);
    if (name == "AWQModifier") NB_TRY_STATUS(read_awq(arguments));
    if (name == "GPTQModifier") NB_TRY_STATUS(read_gptq(arguments));
    return read_quantization(name, arguments);
  }

  static const Json& at(const Json& object, const char* key) {
    static const Json kNull;
    const auto it = object.find(key);
    return it == object.end() ? kNull : *it;
  }

  Result<std::vector<std::string>> strings(const std::string& field, const Json& value) const {
    std::vector<std::string> list;
    if (value.is_null()) return list;
    if (value.is_string()) return std::vector<std::string>{value.get<std::string>()};
    if (!value.is_array()) return bad(field, value, "a list of names or patterns");
    for (const Json& item : value) {
      if (!item.is_string()) return bad(field, item, "a name or pattern");
      list.push_back(item.get<std::string>());
    }
    return list;
  }

  Status read_awq(const Json& arguments) {
    AwqSettings& settings = *recipe_.awq;
    if (const Json& mappings = at(arguments, "mappings"); !mappings.is_null()) {
      if (!mappings.is_array() || mappings.empty())
        return bad("AWQModifier.mappings", mappings, "null or a list of mappings");
      for (const Json& mapping : mappings) NB_TRY_STATUS(read_mapping(mapping));
    }
    if (const Json& duo = at(arguments, "duo_scaling"); duo == "both") {
      settings.duo_scaling = DuoScaling::kBoth;
    } else if (duo.is_boolean()) {
      settings.duo_scaling = duo.get<bool>() ? DuoScaling::kOn : DuoScaling::kOff;
    } else if (!duo.is_null()) {
      return bad("AWQModifier.duo_scaling", duo, "true, false or \"both\"");
    }
    if (const Json& n_grid = at(arguments, "n_grid"); !n_grid.is_null()) {
      if (!n_grid.is_number_integer() || n_grid < 2 || n_grid > 1000)
        return bad("AWQModifier.n_grid", n_grid, "an integer from 2 to 1000");
      settings.num_candidates = n_grid.get<int>();
    }
    return {};
  }

  Status read_mapping(const Json& mapping) {
    const std::string field = "AWQModifier.mappings";
    if (!mapping.is_object()) return bad(field, mapping, "smooth_layer with balance_layers");
    static const std::vector<std::string_view> kKeys = {"smooth_layer", "balance_layers",
                                                        "activation_hook_target"};
    for (const auto& [key, ignored] : mapping.items())
      if (std::ranges::find(kKeys, std::string_view(key)) == kKeys.end())
        return unknown_key(field, key, kKeys);
    MappingRule rule;
    const Json& smooth = at(mapping, "smooth_layer");
    if (!smooth.is_string()) return bad(field + ".smooth_layer", smooth, "a name or pattern");
    rule.smooth = smooth.get<std::string>();
    NB_TRY(rule.balance, strings(field + ".balance_layers", at(mapping, "balance_layers")));
    if (rule.balance.empty())
      return bad(field + ".balance_layers", at(mapping, "balance_layers"), "names or patterns");
    if (const Json& target = at(mapping, "activation_hook_target"); !target.is_null())
      return bad(field + ".activation_hook_target", target, "null");
    recipe_.awq->mappings.push_back(std::move(rule));
    return {};
  }

  Status read_gptq(const Json& arguments) {
    GptqSettings& settings = *recipe_.gptq;
    if (const Json& dampening = at(arguments, "dampening_frac"); !dampening.is_null()) {
      if (!dampening.is_number() || dampening <= 0.0 || dampening > 1.0)
        return bad("GPTQModifier.dampening_frac", dampening, "a number above 0, at most 1");
      settings.dampening = dampening.get<float>();
    }
    if (const Json& size = at(arguments, "block_size"); !size.is_null())
      if (!size.is_number_integer() || size < 1)
        return bad("GPTQModifier.block_size", size, "an integer above 0");
    if (arguments.contains("actorder")) {
      const Json& order = at(arguments, "actorder");
      if (!order.is_null() && order != "static" && order != "weight")
        return bad("GPTQModifier.actorder", order, "static, weight or null");
      settings.act_order = !order.is_null();
    }
    return {};
  }

  Status read_quantization(const std::string& name, const Json& arguments) {
    NB_TRY(std::vector<std::string> ignore, strings(name + ".ignore", at(arguments, "ignore")));
    recipe_.ignore.insert(recipe_.ignore.end(), ignore.begin(), ignore.end());
    if (!at(arguments, "kv_cache_scheme").is_null())
      return bad(name + ".kv_cache_scheme", at(arguments, "kv_cache_scheme"), "null");
    NB_TRY(const std::vector<std::string> targets,
           strings(name + ".targets", at(arguments, "targets")));
    const Json& groups = at(arguments, "config_groups");
    const Json& scheme = at(arguments, "scheme");
    if (!groups.is_null() && !scheme.is_null())
      return make_error(ErrorCode::kInvalidArgument,
                        "{}: {}: scheme and config_groups contradict each other; keep one", what_,
                        name);
    if (const Json& bypass = at(arguments, "bypass_divisibility_checks"); bypass == true)
      return bad(name + ".bypass_divisibility_checks", bypass,
                 "false: groups have to divide the columns");
    if (!groups.is_null() || !scheme.is_null()) {
      if (!quantizing_modifier_.empty())
        return make_error(ErrorCode::kInvalidArgument,
                          "{}: {} and {} both say what to quantize; give it to one of them", what_,
                          quantizing_modifier_, name);
      quantizing_modifier_ = name;
    }
    std::optional<std::string> observer;
    for (const char* key : {"observer", "weight_observer"})
      if (!at(arguments, key).is_null()) {
        if (!at(arguments, key).is_string())
          return bad(name + "." + key, at(arguments, key), "the name of an observer");
        observer = at(arguments, key).get<std::string>();
      }

    if (!scheme.is_null()) {
      QuantizationGroup group;
      group.targets = targets.empty() ? std::vector<std::string>{"Linear"} : targets;
      if (scheme == "W4A16") {
        group.format = {.num_bits = 4, .group_size = 128, .symmetric = true};
      } else if (scheme == "W4A16_ASYM") {
        group.format = {.num_bits = 4, .group_size = 128, .symmetric = false};
      } else if (scheme == "W8A16") {
        group.format = {.num_bits = 8, .group_size = -1, .symmetric = true};
      } else {
        return bad(name + ".scheme", scheme, "W4A16, W4A16_ASYM or W8A16");
      }
      return add_group(std::move(group), observer);
    }
    if (groups.is_null()) return {};
    if (!groups.is_object()) return bad(name + ".config_groups", groups, "a mapping of groups");
    for (const auto& [group_name, value] : groups.items())
      NB_TRY_STATUS(read_group(name + ".config_groups." + group_name, value, targets, observer));
    return {};
  }

  Status read_group(const std::string& field, const Json& value,
                    const std::vector<std::string>& modifier_targets,
                    const std::optional<std::string>& observer) {
    if (!value.is_object()) return bad(field, value, "a mapping");
    static const std::vector<std::string_view> kKeys = {"targets", "weights", "input_activations",
                                                        "output_activations", "format"};
    for (const auto& [key, ignored] : value.items())
      if (std::ranges::find(kKeys, std::string_view(key)) == kKeys.end())
        return unknown_key(field, key, kKeys);
    for (const char* key : {"input_activations", "output_activations"})
      if (!at(value, key).is_null())
        return bad(field + "." + key, at(value, key), "null (weights only)");
    if (const Json& stored = at(value, "format"); !stored.is_null() && stored != "pack-quantized")
      return bad(field + ".format", stored, "null or pack-quantized");
    QuantizationGroup group;
    NB_TRY(group.targets, strings(field + ".targets", at(value, "targets")));
    if (group.targets.empty()) group.targets = modifier_targets;
    if (group.targets.empty()) group.targets = {"Linear"};
    const Json& weights = at(value, "weights");
    if (!weights.is_object()) return bad(field + ".weights", weights, "a mapping");
    const std::vector<std::string_view> known(kWeightKeys.begin(), kWeightKeys.end());
    for (const auto& [key, ignored] : weights.items())
      if (std::ranges::find(known, std::string_view(key)) == known.end())
        return unknown_key(field + ".weights", key, known);
    const auto weight_field = [&](const char* key) { return field + ".weights." + key; };

    const Json& bits = at(weights, "num_bits");
    if (bits != 4 && bits != 8) return bad(weight_field("num_bits"), bits, "4 or 8");
    group.format.num_bits = bits.get<int>();
    if (const Json& type = at(weights, "type"); !type.is_null() && type != "int")
      return bad(weight_field("type"), type, "int");
    const Json& symmetric = at(weights, "symmetric");
    if (!symmetric.is_null() && !symmetric.is_boolean())
      return bad(weight_field("symmetric"), symmetric, "true or false");
    group.format.symmetric = symmetric.is_null() || symmetric.get<bool>();
    for (const char* key : {"dynamic", "actorder", "block_structure", "scale_dtype"})
      if (const Json& set = at(weights, key); !set.is_null() && set != false)
        return bad(weight_field(key), set, "null");
    const Json& strategy = at(weights, "strategy");
    const Json& size = at(weights, "group_size");
    if (strategy == "channel" || (strategy.is_null() && size == -1)) {
      if (!size.is_null() && size != -1)
        return bad(weight_field("group_size"), size,
                   "null or -1, because strategy is channel: one scale a row");
      group.format.group_size = -1;
    } else if (strategy.is_null() || strategy == "group") {
      if (size != 32 && size != 64 && size != 128)
        return bad(weight_field("group_size"), size, "32, 64 or 128");
      group.format.group_size = size.get<int>();
    } else {
      return bad(weight_field("strategy"), strategy, "group or channel");
    }
    if (const Json& extra = at(weights, "observer_kwargs"); !extra.is_null() && !extra.empty())
      return bad(weight_field("observer_kwargs"), extra,
                 "null: observers run with llm-compressor's defaults");
    std::optional<std::string> chosen = observer;
    if (const Json& own = at(weights, "observer"); !own.is_null()) {
      if (!own.is_string()) return bad(weight_field("observer"), own, "the name of an observer");
      chosen = own.get<std::string>();
    }
    return add_group(std::move(group), chosen);
  }

  Status add_group(QuantizationGroup group, const std::optional<std::string>& observer) {
    group.observer = observer.value_or("memoryless_minmax");
    if (const auto made = make_observer(group.observer); !made)
      return make_error(made.error().code, "{}: {}", what_, made.error().message);
    for (const std::string& target : group.targets)
      for (const QuantizationGroup& other : recipe_.groups)
        if (std::ranges::find(other.targets, target) != other.targets.end())
          return make_error(ErrorCode::kInvalidArgument,
                            "{}: two config_groups target \"{}\"; a module can follow one of them",
                            what_, target);
    recipe_.groups.push_back(std::move(group));
    return {};
  }

  std::string_view what_;
  std::string quantizing_modifier_;  // the one with a scheme or config_groups
  Recipe recipe_;
};

}  // namespace

std::string Recipe::algorithm() const {
  if (awq && gptq) return "awq+gptq";
  return awq ? "awq" : gptq ? "gptq" : "rtn";
}

bool Recipe::needs_calibration() const {
  return awq || gptq || std::ranges::any_of(groups, [](const QuantizationGroup& group) {
           return make_observer(group.observer).value().needs_importance();
         });
}

Result<Recipe> parse_recipe(std::string_view yaml, std::string_view what) {
  NB_TRY(const Json root, parse_yaml(yaml, what));
  NB_TRY(Recipe recipe, RecipeReader(what).read(root));
  recipe.text = yaml;
  return recipe;
}

std::string recipe_text(const RecipeParts& parts) {
  std::string text = "default_stage:\n  default_modifiers:\n";
  const bool gptq = parts.algorithm.ends_with("gptq");
  if (parts.algorithm.starts_with("awq")) text += "    AWQModifier:\n      duo_scaling: true\n";
  text += gptq ? "    GPTQModifier:\n" : "    QuantizationModifier:\n";
  text += format(
      "      config_groups:\n        group_0:\n          targets: [Linear]\n"
      "          weights: {{num_bits: {}, type: int, symmetric: {}, group_size: {}, strategy: {}, "
      "observer: {}}}\n",
      parts.num_bits, parts.symmetric, parts.group_size,
      parts.group_size == -1 ? "channel" : "group", parts.observer);
  text += parts.ignore.empty() ? "      ignore: []\n" : "      ignore:\n";
  for (const std::string& entry : parts.ignore) text += "      - " + dump_json(entry) + "\n";
  return text;
}

Result<Explanation> explain_recipe(const Recipe& recipe, const ModelSpec& spec) {
  struct Target {
    NameMatcher matcher;
    int group;
    bool used = false;
  };
  struct Ignore {
    NameMatcher matcher;
    bool used = false;
  };
  std::vector<Target> targets;
  for (size_t g = 0; g < recipe.groups.size(); ++g)
    for (const std::string& text : recipe.groups[g].targets) {
      NB_TRY(NameMatcher matcher, NameMatcher::make(text, "target"));
      targets.push_back({std::move(matcher), static_cast<int>(g)});
    }
  std::ranges::stable_sort(targets, [](const Target& a, const Target& b) {
    return std::pair(a.matcher.precedence(), a.matcher.text()) <
           std::pair(b.matcher.precedence(), b.matcher.text());
  });
  std::vector<Ignore> ignores;
  for (const std::string& text : recipe.ignore) {
    NB_TRY(NameMatcher matcher, NameMatcher::make(text, "ignore"));
    ignores.push_back({std::move(matcher)});
  }

  Explanation explanation;
  std::string indivisible;
  for (const LinearModule& module : linear_modules(spec)) {
    ModuleDecision decision{module, -1, "no target matches"};
    Target* chosen = nullptr;
    for (Target& target : targets)
      if (target.matcher.matches(module.name)) {
        target.used = true;
        if (chosen == nullptr) chosen = &target;
      }
    const Ignore* ignored = nullptr;
    for (Ignore& ignore : ignores)
      if (ignore.matcher.matches(module.name)) {
        ignore.used = true;
        if (ignored == nullptr) ignored = &ignore;
      }
    if (ignored != nullptr) {
      decision.rule = "ignore " + ignored->matcher.text();
    } else if (module.name == "lm_head" && spec.tie_word_embeddings) {
      decision.rule = "tied to the embedding";
    } else if (chosen != nullptr) {
      decision.group = chosen->group;
      decision.rule = "target " + chosen->matcher.text();
      const int size = recipe.groups[static_cast<size_t>(chosen->group)].format.group_size;
      if (size > 0 && module.in_features % size != 0)
        indivisible += format("{}{} has {} columns", indivisible.empty() ? "" : ", ", module.name,
                              module.in_features);
    }
    explanation.modules.push_back(std::move(decision));
  }
  if (!indivisible.empty())
    return make_error(ErrorCode::kInvalidArgument,
                      "the group size does not divide the columns of: {}; use a smaller group_size "
                      "or ignore these modules",
                      indivisible);
  for (const Target& target : targets)
    if (!target.used)
      return make_error(ErrorCode::kInvalidArgument,
                        "recipe: target \"{}\" matches no module of {}; see nibble inspect for the "
                        "names",
                        target.matcher.text(), spec.architecture);
  if (std::ranges::none_of(explanation.modules,
                           [](const ModuleDecision& module) { return module.group >= 0; }))
    return make_error(
        ErrorCode::kInvalidArgument,
        "recipe: nothing is left to quantize: every module that a target matches is "
        "ignored or tied ({})",
        explanation.modules.empty() ? "the model has no Linear" : explanation.modules.front().rule);
  for (const Ignore& ignore : ignores)
    if (!ignore.used)
      explanation.warnings.push_back(
          format("ignore \"{}\" matches no module of this model", ignore.matcher.text()));
  return explanation;
}

}  // namespace nibble
