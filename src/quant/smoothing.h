// Smoothing: a scale s per channel moves magnitude from a layer's weights into what feeds them,
// (x / s)(W s)' = x W', without changing what the model computes. A plan is small (one vector per
// mapping), so the weights themselves are rescaled while they stream from disk to disk.
// Source: Lin et al., "AWQ", arXiv:2306.00978.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "device/quant_ops.h"
#include "model/config.h"
#include "quant/awq.h"
#include "tensor/tensor.h"

namespace nibble {

// The module whose output is compared when scales are tried.
enum class SmoothingParent { kMixer, kMlp, kLinear };

// One smooth layer and the Linears that read its output, by module name.
struct SmoothingMapping {
  std::string smooth;                // "model.layers.3.input_layernorm"
  bool smooth_is_norm = true;        // else a Linear whose last rows are divided
  std::vector<std::string> balance;  // "model.layers.3.self_attn.q_proj", ...
  SmoothingParent parent = SmoothingParent::kMixer;
  // Channels of the smooth layer: one scale for every column i, i + num_scales, ... of the balance
  // layers, which read several heads under one norm. 0: as many as they have columns.
  int64_t num_scales = 0;
};

// The mappings of one decoder layer in the order in which they are searched. v_proj -> o_proj only
// in models without linear attention, and only where the shapes agree.
std::vector<SmoothingMapping> smoothing_mappings(const ModelSpec& spec, int layer);

// Linear attention's gated norm, whose gain all heads share, with the out_proj that reads it;
// llm-compressor leaves it out. Nothing for other layers.
std::vector<SmoothingMapping> gated_norm_mappings(const ModelSpec& spec, int layer);

// A scale for every column, from one for every channel: scales[column % scales.size()].
std::vector<double> repeated(const std::vector<double>& scales, size_t num_columns);

// By layer: `rules` applied to the names of norms and Linears, or smoothing_mappings() without
// rules. Errors: a rule that matches nothing, whose smooth layer feeds nothing it names in a layer,
// or whose pair is not one that (x / s)(W s)' = x W' holds for.
Result<std::vector<std::vector<SmoothingMapping>>> resolve_mappings(
    const ModelSpec& spec, const std::vector<MappingRule>& rules);

// How a zero-centred norm (applied as 1 + w) is stored after it was divided by s.
enum class NormRounding {
  kOnce,      // w' = round((1 + w) / s - 1); norms that no mapping touches stay as they are
  kUpstream,  // 1 + w, the quotient and the final difference are each rounded, in every norm
};

// What happens to one tensor, in order.
struct TensorEdit {
  enum class Kind { kMultiplyColumns, kDivideRows, kDivideNorm };
  Kind kind = Kind::kMultiplyColumns;
  std::shared_ptr<const std::vector<double>> scales;  // [columns], or of the last rows
};

class SmoothingPlan {
 public:
  SmoothingPlan() = default;
  explicit SmoothingPlan(NormRounding rounding, float norm_weight_offset)
      : rounding_(rounding), norm_weight_offset_(norm_weight_offset) {}

  void add(const SmoothingMapping& mapping, std::vector<double> scales);
  bool touches(const std::string& tensor_name) const;
  // What is added to this norm's stored weight before it multiplies.
  float norm_offset(const std::string& tensor_name) const;
  // Rescales `weight` in place; dtype F32, BF16 or F16, rounded to it after each edit. In host
  // memory; or where `ops` compute, the weight of a Linear.
  void apply(const std::string& tensor_name, const Tensor& weight) const;
  void apply(const std::string& tensor_name, const Tensor& weight, QuantOps& ops) const;

 private:
  std::span<const TensorEdit> edits(const std::string& tensor_name) const;

  NormRounding rounding_ = NormRounding::kOnce;
  float norm_weight_offset_ = 0;
  std::map<std::string, std::vector<TensorEdit>> edits_;  // by tensor name
};

}  // namespace nibble
