// Runs in bf16, judged by the noise of Hugging Face transformers' own bf16 runs
// (tools/make_bf16_noise.py).
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <string>

#include "support/golden_file.h"
#include "support/model_harness.h"
#include "support/paths.h"

namespace nibble::test {

inline double kl_divergence(std::span<const float> p, std::span<const float> q) {
  const auto log_sum = [](std::span<const float> logits) {
    const double largest = *std::ranges::max_element(logits);
    double sum = 0;
    for (const float x : logits) sum += std::exp(x - largest);
    return largest + std::log(sum);
  };
  const double p_sum = log_sum(p);
  const double q_sum = log_sum(q);
  double kl = 0;
  for (size_t i = 0; i < p.size(); ++i)
    kl += std::exp(p[i] - p_sum) * ((p[i] - p_sum) - (q[i] - q_sum));
  return kl;
}

struct Bf16Noise {
  double ours = 0;          // the largest KL(float32 goldens || bf16 run) of a position
  double transformers = 0;  // the same of transformers' run
};

// Over all prompts of a tiny model.
inline Bf16Noise bf16_noise(const std::string& fixture, Backend backend) {
  const fs::path folder = golden("fixtures/" + fixture);
  const GoldenFile goldens(folder / "goldens.safetensors");
  ModelHarness model(folder, backend, DType::kBF16);
  const auto vocab = static_cast<size_t>(model.spec().vocab_size);
  Bf16Noise noise;
  const Json theirs = load_json(golden("fixtures/bf16_noise.json"))[fixture];
  for (const auto& [prompt, kl] : theirs.items()) {
    noise.transformers = std::max(noise.transformers, kl.get<double>());
    model.reset(0);
    const std::vector<float> logits = model.run({{0, goldens.ints(prompt + ".input_ids")}});
    const std::vector<float> exact = goldens.floats(prompt + ".logits");
    for (size_t at = 0; at < exact.size(); at += vocab)
      noise.ours = std::max(noise.ours, kl_divergence(std::span(exact).subspan(at, vocab),
                                                      std::span(logits).subspan(at, vocab)));
  }
  return noise;
}

}  // namespace nibble::test
