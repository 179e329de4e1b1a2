// Logits to a token id: penalties, temperature, min-p, top-k, top-p, and a draw, with vLLM's
// formulas and order. One row at a time; not thread-safe (holds scratch of vocabulary size).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/request.h"

namespace nibble {

// The single steps, in place over one row of logits. A dropped token becomes -infinity.

// For every distinct token in `tokens`: x > 0 ? x / penalty : x * penalty.
void apply_repetition_penalty(std::span<float> logits, std::span<const int32_t> tokens,
                              float penalty);
// x -= frequency * count + presence * [count > 0], counts over the generated tokens.
void apply_output_penalties(std::span<float> logits, std::span<const int32_t> generated,
                            float presence, float frequency);
void apply_temperature(std::span<float> logits, float temperature);
// Drops tokens with probability below min_p times the largest.
void apply_min_p(std::span<float> logits, float min_p);
// Keeps every token that is at least the k-th largest (ties all stay).
void apply_top_k(std::span<float> logits, int top_k, std::vector<float>* scratch);
// Keeps the smallest set of most likely tokens whose probability reaches top_p; at least one.
void apply_top_p(std::span<float> logits, float top_p, std::vector<int32_t>* scratch);

// The lowest index among the largest values.
int32_t argmax(std::span<const float> logits);
// log softmax of one entry.
float log_probability(std::span<const float> logits, int32_t token);

class Sampler {
 public:
  explicit Sampler(int64_t vocab_size);

  struct Input {
    std::span<float> logits;  // overwritten
    const SamplingParams* params;
    std::span<const int32_t> prompt;
    std::span<const int32_t> generated;
    std::span<const int32_t> stop_token_ids;  // masked while fewer than min_tokens were generated
    uint64_t seed;  // of the request; the draw also depends on the position only
  };
  // Fills token, logprob and top_logprobs of the event.
  TokenEvent sample(const Input& input);

 private:
  void fill_logprobs(std::span<const float> logits, int num_logprobs, TokenEvent* event);
  std::vector<float> raw_;  // logits before processing, when logprobs are wanted
  std::vector<float> float_scratch_;
  std::vector<int32_t> id_scratch_;
};

}  // namespace nibble
