// Chunk by chunk: the parent's logits of a chunk are kept while the other model computes the same
// one.
#include "eval/fidelity.h"

#include <algorithm>
#include <cmath>

#include "base/format.h"

namespace nibble {
namespace {

// log softmax in double, in place over a scratch row.
void log_softmax(const float* logits, size_t n, std::vector<double>* out) {
  out->assign(logits, logits + n);
  const double largest = *std::max_element(out->begin(), out->end());
  double total = 0;
  for (const double x : *out) total += std::exp(x - largest);
  const double offset = largest + std::log(total);
  for (double& x : *out) x -= offset;
}

double quantile(std::vector<double>& sorted, double q) {
  if (sorted.empty()) return 0;
  return sorted[static_cast<size_t>(q * static_cast<double>(sorted.size() - 1))];
}

}  // namespace

Result<FidelityReport> compare_models(Scorer& parent, Scorer& quantized,
                                      const std::vector<std::vector<int32_t>>& samples,
                                      const std::function<void(size_t done)>& progress) {
  if (parent.spec().vocab_size != quantized.spec().vocab_size)
    return make_error(ErrorCode::kInvalidArgument,
                      "vocabularies differ: {} and {} entries; these are not parent and child",
                      parent.spec().vocab_size, quantized.spec().vocab_size);
  const auto vocab = static_cast<size_t>(parent.spec().vocab_size);
  FidelityReport report;
  std::vector<double> divergences;
  std::vector<double> p;
  std::vector<double> q;
  int64_t num_agreeing = 0;
  int64_t num_predicted = 0;
  for (size_t s = 0; s < samples.size(); ++s) {
    const std::vector<int32_t>& ids = samples[s];
    std::vector<float> parent_logits;
    NB_TRY_STATUS(parent.score(ids, [&](int32_t, const Tensor& logits) {
      const float* values = logits.as<const float>();
      parent_logits.insert(parent_logits.end(), values, values + logits.num_elements());
    }));
    NB_TRY_STATUS(quantized.score(ids, [&](int32_t first, const Tensor& logits) {
      for (int64_t i = 0; i < logits.shape[0]; ++i) {
        const auto position = static_cast<size_t>(first + i);
        log_softmax(parent_logits.data() + position * vocab, vocab, &p);
        log_softmax(logits.as<const float>() + static_cast<size_t>(i) * vocab, vocab, &q);
        double kl = 0;
        for (size_t t = 0; t < vocab; ++t) kl += std::exp(p[t]) * (p[t] - q[t]);
        divergences.push_back(std::max(0.0, kl));
        num_agreeing += std::max_element(p.begin(), p.end()) - p.begin() ==
                        std::max_element(q.begin(), q.end()) - q.begin();
        if (position + 1 >= ids.size()) continue;
        const auto next = static_cast<size_t>(ids[position + 1]);
        report.parent_loss -= p[next];
        report.quantized_loss -= q[next];
        ++num_predicted;
      }
    }));
    if (progress) progress(s + 1);
  }
  if (divergences.empty()) return report;
  report.num_tokens = static_cast<int64_t>(divergences.size());
  for (const double kl : divergences) report.mean_kl += kl;
  report.mean_kl /= static_cast<double>(divergences.size());
  std::ranges::sort(divergences);
  report.median_kl = quantile(divergences, 0.5);
  report.p99_kl = quantile(divergences, 0.99);
  report.top1_agreement =
      static_cast<double>(num_agreeing) / static_cast<double>(divergences.size());
  report.parent_loss /= static_cast<double>(std::max<int64_t>(1, num_predicted));
  report.quantized_loss /= static_cast<double>(std::max<int64_t>(1, num_predicted));
  return report;
}

}  // namespace nibble
