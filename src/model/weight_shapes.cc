// Matching of module names, and tensors without memory.
#include "model/weight_shapes.h"

#include <algorithm>

#include "base/format.h"
#include "base/pattern.h"

namespace nibble {
namespace {

// One entry of a target or ignore list.
struct Entry {
  std::string text;
  std::optional<Pattern> pattern;  // of "re:PATTERN"

  static Result<Entry> make(const std::string& text) {
    Entry entry;
    entry.text = text;
    if (text.starts_with("re:")) {
      NB_TRY(Pattern pattern, Pattern::compile(std::string_view(text).substr(3)));
      entry.pattern = std::move(pattern);
    }
    return entry;
  }
  bool matches(std::string_view name) const {
    return pattern ? pattern->matches_start_of(name) : text == name || text == "Linear";
  }
};

Result<std::vector<Entry>> make_entries(const std::vector<std::string>& texts) {
  std::vector<Entry> entries;
  for (const std::string& text : texts) {
    NB_TRY(Entry entry, Entry::make(text));
    entries.push_back(std::move(entry));
  }
  return entries;
}

bool any_matches(const std::vector<Entry>& entries, std::string_view name) {
  return std::ranges::any_of(entries, [&](const Entry& entry) { return entry.matches(name); });
}

}  // namespace

struct WeightShapes::Rules {
  struct Group {
    std::vector<Entry> targets;
    QuantFormat format;
  };
  std::vector<Group> groups;
  std::vector<Entry> ignore;
};

WeightShapes::WeightShapes() : rules_(std::make_unique<Rules>()) {}
WeightShapes::WeightShapes(WeightShapes&&) noexcept = default;
WeightShapes::~WeightShapes() = default;

Result<WeightShapes> WeightShapes::make(const ModelSpec& spec,
                                        const std::optional<QuantizationConfig>& quantization) {
  WeightShapes shapes;
  shapes.dtype_ = spec.dtype;
  if (!quantization) return shapes;
  NB_TRY(shapes.rules_->ignore, make_entries(quantization->ignore));
  for (const QuantizationGroup& group : quantization->groups) {
    NB_TRY(std::vector<Entry> targets, make_entries(group.targets));
    shapes.rules_->groups.push_back({std::move(targets), group.format});
  }
  return shapes;
}

// Experts are counted one by one, as packed checkpoints store them.
bool WeightShapes::has(std::string_view) const {
  return false;
}

Result<Tensor> WeightShapes::tensor(std::string_view, const Shape& expected) const {
  return Tensor{nullptr, dtype_, expected};
}

Result<LinearWeight> WeightShapes::linear(std::string_view name, int64_t out_features,
                                          int64_t in_features) const {
  LinearWeight weight;
  weight.out_features = out_features;
  weight.in_features = in_features;
  // The router of a mixture is no Linear to Hugging Face, so nothing quantizes it.
  const bool is_linear = !name.ends_with(".mlp.gate");
  if (is_linear && !any_matches(rules_->ignore, name)) {
    for (const Rules::Group& group : rules_->groups) {
      if (!any_matches(group.targets, name)) continue;
      const QuantFormat& format = group.format;
      if (format.group_size > 0 && in_features % format.group_size != 0)
        return make_error(ErrorCode::kUnsupported,
                          "{}: {} input columns on this GPU are no multiple of the quantization "
                          "group of {}; use a smaller --tensor-parallel-size",
                          name, in_features, format.group_size);
      const Shape groups{out_features, format.num_groups(in_features)};
      weight.format = format;
      weight.packed = {
          nullptr, DType::kI32, {out_features, packed_width(in_features, format.num_bits)}};
      weight.scale = {nullptr, dtype_, groups};
      if (!format.symmetric) weight.zero_point = {nullptr, DType::kI8, groups};
      return weight;
    }
  }
  weight.dense = {nullptr, dtype_, {out_features, in_features}};
  return weight;
}

}  // namespace nibble
