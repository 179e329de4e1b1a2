// Mappings by layer kind; edits applied value by value.
#include "quant/smoothing.h"

#include <algorithm>

#include "base/format.h"
#include "base/text.h"
#include "model/weights.h"
#include "quant/group_quant.h"
#include "quant/name_matcher.h"

namespace nibble {
namespace {

// Calls edit(index, value) -> value for every element, rounding to the tensor's dtype.
template <class Edit>
void edit_values(const Tensor& tensor, int64_t begin, Edit edit) {
  const auto each = [&](auto* values) {
    using T = std::remove_pointer_t<decltype(values)>;
    const int64_t end = tensor.num_elements();
    for (int64_t i = begin; i < end; ++i)
      values[i] =
          T(static_cast<float>(edit(i, static_cast<double>(static_cast<float>(values[i])))));
  };
  switch (tensor.dtype) {
    case DType::kBF16: return each(tensor.as<BFloat16>());
    case DType::kF16: return each(tensor.as<Float16>());
    default: return each(tensor.as<float>());
  }
}

bool is_zero_centred_norm(const std::string& tensor_name) {
  // Qwen3.5's gated norm inside linear attention multiplies by its weight as stored.
  return tensor_name.ends_with("norm.weight") && !tensor_name.ends_with("linear_attn.norm.weight");
}

// Only pairs where one feeds the other and nothing else reads it may be smoothed; sets the parent.
Status check_pair(const ModelSpec& spec, int layer, SmoothingMapping& mapping) {
  std::vector<std::string> expected;
  for (const SmoothingMapping& known : smoothing_mappings(spec, layer))
    if (known.smooth == mapping.smooth) {
      expected = known.balance;
      mapping.parent = known.parent;
    }
  std::ranges::sort(expected);
  std::vector<std::string> found = mapping.balance;
  std::ranges::sort(found);
  if (found == expected) return {};
  return make_error(
      ErrorCode::kInvalidArgument,
      "recipe: mapping {} -> [{}] would change what the model computes; the modules that "
      "read {} are [{}]",
      mapping.smooth, join(mapping.balance, ", "), mapping.smooth, join(expected, ", "));
}

}  // namespace

std::vector<SmoothingMapping> smoothing_mappings(const ModelSpec& spec, int layer) {
  const std::string prefix = format("{}layers.{}.", spec.weight_prefix, layer);
  const LayerSpec& kind = spec.layers[static_cast<size_t>(layer)];
  std::vector<SmoothingMapping> mappings;
  if (kind.mixer == MixerKind::kFullAttention) {
    const std::string attention = prefix + "self_attn.";
    mappings.push_back({prefix + "input_layernorm",
                        true,
                        {attention + "q_proj", attention + "k_proj", attention + "v_proj"},
                        SmoothingParent::kMixer});
    if (!spec.hybrid() && spec.attention.num_kv_heads == spec.attention.num_heads)
      mappings.push_back(
          {attention + "v_proj", false, {attention + "o_proj"}, SmoothingParent::kLinear});
  } else {
    const std::string mixer = prefix + "linear_attn.";
    mappings.push_back(
        {prefix + "input_layernorm",
         true,
         {mixer + "in_proj_qkv", mixer + "in_proj_z", mixer + "in_proj_b", mixer + "in_proj_a"},
         SmoothingParent::kMixer});
  }
  const std::string mlp = prefix + "mlp.";
  if (kind.ffn == FfnKind::kMoe) {
    // The router and the shared expert's gate read the norm too; upstream leaves out the router,
    // which changes the routing.
    SmoothingMapping norm{
        prefix + "post_attention_layernorm", true, {mlp + "gate"}, SmoothingParent::kMlp};
    std::vector<std::string> experts;
    for (int e = 0; e < spec.moe.num_experts; ++e)
      experts.push_back(format("{}experts.{}.", mlp, e));
    experts.push_back(mlp + "shared_expert.");
    for (const std::string& expert : experts) {
      norm.balance.push_back(expert + "gate_proj");
      norm.balance.push_back(expert + "up_proj");
    }
    norm.balance.push_back(mlp + "shared_expert_gate");
    mappings.push_back(std::move(norm));
    for (const std::string& expert : experts)
      mappings.push_back(
          {expert + "up_proj", false, {expert + "down_proj"}, SmoothingParent::kLinear});
  }
  if (kind.ffn == FfnKind::kDense) {
    mappings.push_back({prefix + "post_attention_layernorm",
                        true,
                        {mlp + "gate_proj", mlp + "up_proj"},
                        SmoothingParent::kMlp});
    mappings.push_back({mlp + "up_proj", false, {mlp + "down_proj"}, SmoothingParent::kLinear});
  }
  return mappings;
}

std::vector<SmoothingMapping> gated_norm_mappings(const ModelSpec& spec, int layer) {
  if (spec.layers[static_cast<size_t>(layer)].mixer != MixerKind::kGatedDeltaNet) return {};
  const std::string mixer = format("{}layers.{}.linear_attn.", spec.weight_prefix, layer);
  SmoothingMapping mapping{mixer + "norm", true, {mixer + "out_proj"}, SmoothingParent::kLinear};
  mapping.num_scales = spec.delta_net.head_v_dim;
  return {mapping};
}

std::vector<double> repeated(const std::vector<double>& scales, size_t num_columns) {
  std::vector<double> columns(num_columns);
  for (size_t i = 0; i < num_columns; ++i) columns[i] = scales[i % scales.size()];
  return columns;
}

Result<std::vector<std::vector<SmoothingMapping>>> resolve_mappings(
    const ModelSpec& spec, const std::vector<MappingRule>& rules) {
  std::vector<std::vector<SmoothingMapping>> by_layer(spec.layers.size());
  if (rules.empty()) {
    for (size_t layer = 0; layer < by_layer.size(); ++layer)
      by_layer[layer] = smoothing_mappings(spec, static_cast<int>(layer));
    return by_layer;
  }
  const std::vector<LinearModule> linears = linear_modules(spec);
  for (const MappingRule& rule : rules) {
    NB_TRY(NameMatcher smooth, NameMatcher::make(rule.smooth, "smooth_layer"));
    std::vector<NameMatcher> balance;
    for (const std::string& text : rule.balance) {
      NB_TRY(NameMatcher matcher, NameMatcher::make(text, "balance_layers"));
      balance.push_back(std::move(matcher));
    }
    bool used = false;
    for (size_t layer = 0; layer < by_layer.size(); ++layer) {
      const std::string prefix = format("{}layers.{}.", spec.weight_prefix, layer);
      SmoothingMapping mapping;
      std::vector<std::string> names = {prefix + "input_layernorm",
                                        prefix + "post_attention_layernorm"};
      if (spec.layers[layer].ffn == FfnKind::kMoe) names.push_back(prefix + "mlp.gate");
      for (const LinearModule& linear : linears)
        if (linear.name.starts_with(prefix)) names.push_back(linear.name);
      for (const std::string& name : names)
        if (smooth.matches(name)) mapping.smooth = name;
      if (mapping.smooth.empty()) continue;
      for (size_t i = 2; i < names.size(); ++i)
        for (const NameMatcher& matcher : balance)
          if (matcher.matches(names[i])) mapping.balance.push_back(names[i]);
      if (mapping.balance.empty()) continue;
      used = true;
      mapping.smooth_is_norm = mapping.smooth.ends_with("norm");
      NB_TRY_STATUS(check_pair(spec, static_cast<int>(layer), mapping));
      by_layer[layer].push_back(std::move(mapping));
    }
    if (!used)
      return make_error(ErrorCode::kInvalidArgument,
                        "recipe: mapping \"{}\" -> [{}] matches no layer of {}; see nibble inspect "
                        "for the names",
                        rule.smooth, join(rule.balance, ", "), spec.architecture);
  }
  return by_layer;
}

void SmoothingPlan::add(const SmoothingMapping& mapping, std::vector<double> scales) {
  const auto shared = std::make_shared<const std::vector<double>>(std::move(scales));
  for (const std::string& name : mapping.balance)
    edits_[name + ".weight"].push_back({TensorEdit::Kind::kMultiplyColumns, shared});
  edits_[mapping.smooth + ".weight"].push_back(
      {mapping.smooth_is_norm ? TensorEdit::Kind::kDivideNorm : TensorEdit::Kind::kDivideRows,
       shared});
}

bool SmoothingPlan::touches(const std::string& tensor_name) const {
  if (edits_.contains(tensor_name)) return true;
  return rounding_ == NormRounding::kUpstream && norm_offset(tensor_name) != 0;
}

float SmoothingPlan::norm_offset(const std::string& tensor_name) const {
  return is_zero_centred_norm(tensor_name) ? norm_weight_offset_ : 0;
}

std::span<const TensorEdit> SmoothingPlan::edits(const std::string& tensor_name) const {
  const auto found = edits_.find(tensor_name);
  return found == edits_.end() ? std::span<const TensorEdit>() : found->second;
}

void SmoothingPlan::apply(const std::string& tensor_name, const Tensor& weight,
                          QuantOps& ops) const {
  const auto columns = static_cast<size_t>(weight.shape[1]);
  for (const TensorEdit& edit : edits(tensor_name)) {
    if (edit.kind == TensorEdit::Kind::kMultiplyColumns) {
      ops.scale_columns(weight, repeated(*edit.scales, columns));
    } else {
      NB_CHECK(edit.kind == TensorEdit::Kind::kDivideRows, "%s is no Linear", tensor_name.c_str());
      ops.divide_last_rows(weight, *edit.scales);
    }
  }
}

void SmoothingPlan::apply(const std::string& tensor_name, const Tensor& weight) const {
  const auto offset = static_cast<double>(norm_offset(tensor_name));
  const bool upstream = offset != 0 && rounding_ == NormRounding::kUpstream;
  if (upstream) edit_values(weight, 0, [&](int64_t, double w) { return offset + w; });
  for (const TensorEdit& edit : edits(tensor_name)) {
    const std::vector<double>& s = *edit.scales;
    const auto count = static_cast<int64_t>(s.size());
    switch (edit.kind) {
      case TensorEdit::Kind::kMultiplyColumns:
        edit_values(weight, 0,
                    [&](int64_t i, double w) { return w * s[static_cast<size_t>(i % count)]; });
        break;
      case TensorEdit::Kind::kDivideRows: {
        const int64_t columns = weight.shape[1];
        const int64_t first = (weight.shape[0] - count) * columns;
        edit_values(weight, first, [&](int64_t i, double w) {
          return w / s[static_cast<size_t>((i - first) / columns)];
        });
        break;
      }
      case TensorEdit::Kind::kDivideNorm:
        edit_values(weight, 0, [&](int64_t i, double w) {
          const double gain = upstream ? w : offset + w;
          const double smoothed = gain / s[static_cast<size_t>(i)];
          return upstream ? smoothed : smoothed - offset;
        });
        break;
    }
  }
  if (upstream) edit_values(weight, 0, [&](int64_t, double v) { return v - offset; });
}

}  // namespace nibble
