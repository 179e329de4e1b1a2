// How far a quantized model is from its parent: teacher-forced over the same token ids.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "engine/scorer.h"

namespace nibble {

struct FidelityReport {
  int64_t num_tokens = 0;  // positions compared
  double mean_kl = 0;      // KL(parent || quantized) per position, nats
  double median_kl = 0;
  double p99_kl = 0;
  double top1_agreement = 0;  // positions where both rank the same token first
  double parent_loss = 0;     // mean negative log likelihood of the next token
  double quantized_loss = 0;
};

// Scores every sample with both models. kInvalidArgument when their vocabularies differ.
Result<FidelityReport> compare_models(Scorer& parent, Scorer& quantized,
                                      const std::vector<std::vector<int32_t>>& samples,
                                      const std::function<void(size_t done)>& progress = {});

}  // namespace nibble
