// Candidates in llm-compressor's order, scales in its precision.
#include "quant/awq.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace nibble {

std::vector<AwqCandidate> awq_candidates(const AwqSettings& settings) {
  const int n = settings.num_candidates;
  std::vector<AwqCandidate> candidates;
  const auto grid = [](int i, int steps) { return steps > 1 ? double(i) / (steps - 1) : 0.0; };
  switch (settings.duo_scaling) {
    case DuoScaling::kOn:
      candidates.push_back({0, false});
      for (int i = 0; i + 1 < n; ++i) candidates.push_back({grid(i, n - 1), true});
      break;
    case DuoScaling::kOff:
      for (int i = 0; i < n; ++i) candidates.push_back({grid(i, n), false});
      break;
    case DuoScaling::kBoth:
      for (int i = 0; i < n / 2; ++i)
        for (const bool duo : {false, true}) candidates.push_back({grid(i, n / 2), duo});
      break;
  }
  return candidates;
}

void WeightStatistic::add(const Tensor& weight, const QuantFormat& format, QuantOps& ops) {
  ops.add_group_shares(weight, format, sum_);
  num_rows_ += weight.shape[0];
}

std::vector<double> WeightStatistic::mean() const {
  std::vector<double> mean = sum_;
  for (double& value : mean) value /= static_cast<double>(num_rows_);
  return mean;
}

std::vector<double> awq_scales(const AwqCandidate& candidate, std::span<const float> x_mean,
                               std::span<const double> w_mean, bool spare_dead_channels) {
  double average = 0;
  for (const float x : x_mean) average += static_cast<double>(x);
  average /= static_cast<double>(x_mean.size());
  const auto dead = [&](size_t i) {
    return spare_dead_channels && static_cast<double>(x_mean[i]) < 1e-3 * average;
  };
  std::vector<double> scales(x_mean.size());
  double low = std::numeric_limits<double>::infinity();
  double high = 0;
  for (size_t i = 0; i < scales.size(); ++i) {
    const double power =
        static_cast<double>(std::pow(x_mean[i], static_cast<float>(candidate.ratio)));
    scales[i] = candidate.duo ? power / (std::pow(w_mean[i], 1 - candidate.ratio) + 1e-4) : power;
    if (scales[i] < 1e-4) scales[i] = 1e-4;
    if (dead(i)) continue;
    low = std::min(low, scales[i]);
    high = std::max(high, scales[i]);
  }
  const double norm = std::sqrt(high * low);
  for (size_t i = 0; i < scales.size(); ++i) {
    scales[i] /= norm;
    if (dead(i) || !std::isfinite(scales[i])) scales[i] = 1;
    if (!candidate.duo) scales[i] = static_cast<double>(static_cast<float>(scales[i]));
  }
  return scales;
}

}  // namespace nibble
