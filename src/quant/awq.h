// The arithmetic of the AWQ search: statistics, candidates and the scales each stands for. Nothing
// here runs a model. Source: Lin et al., "AWQ", arXiv:2306.00978, section 3.2; the order of
// candidates and the normalisation are llm-compressor's.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "device/quant_ops.h"
#include "tensor/quant_format.h"
#include "tensor/tensor.h"

namespace nibble {

enum class DuoScaling { kOff, kOn, kBoth };

// A mapping as a recipe spells it: names or "re:" patterns.
struct MappingRule {
  std::string smooth;
  std::vector<std::string> balance;
};

struct AwqSettings {
  int num_candidates = 20;  // n_grid
  DuoScaling duo_scaling = DuoScaling::kOn;
  std::vector<MappingRule> mappings;  // empty: those of the architecture
};

struct AwqCandidate {
  double ratio = 0;
  bool duo = false;  // weigh activations against weights; else by activations alone
};

// In the order of the search; the first is the identity (ratio 0 without duo scaling).
std::vector<AwqCandidate> awq_candidates(const AwqSettings& settings);

// Mean over rows of |w| / max |w| of its group, for each column; several weights that read the same
// input are one long weight. Each operation is rounded to the weight's dtype.
class WeightStatistic {
 public:
  explicit WeightStatistic(int64_t columns) : sum_(static_cast<size_t>(columns)) {}
  void add(const Tensor& weight, const QuantFormat& format, QuantOps& ops);
  std::vector<double> mean() const;  // [columns]

 private:
  std::vector<double> sum_;
  int64_t num_rows_ = 0;
};

// x_mean [columns]: mean |x|; w_mean [columns]. Scales are normalised by sqrt(max * min); what is
// not finite becomes 1. Values are those of f32 when duo is off. With `spare_dead_channels`, those
// with next to no input (x_mean under 1e-3 of its average) get 1 and have no part in the
// normalisation: one of them alone would move all others by orders of magnitude.
std::vector<double> awq_scales(const AwqCandidate& candidate, std::span<const float> x_mean,
                               std::span<const double> w_mean, bool spare_dead_channels);

}  // namespace nibble
