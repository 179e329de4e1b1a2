// Logits to a token id: penalties, temperature, min-p, top-k, top-p, and a draw, with vLLM's
// formulas and order. One row at a time; not thread-safe (holds scratch of vocabulary size).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/request.h"

namespace nibble {

// The single steps, in place over one row of logits. A dropped token becomes -infinity.

// Which tokens of the vocabulary were met; all clear between calls. Grows to the vocabulary once.
using TokenMarks = std::vector<uint64_t>;

// For every distinct token of both lists: x > 0 ? x / penalty : x * penalty.
void apply_repetition_penalty(std::span<float> logits, std::span<const int32_t> prompt,
                              std::span<const int32_t> generated, float penalty, TokenMarks* marks);
// x -= frequency * count + presence * [count > 0], counts over the generated tokens.
void apply_output_penalties(std::span<float> logits, std::span<const int32_t> generated,
                            float presence, float frequency, TokenMarks* marks);
void apply_temperature(std::span<float> logits, float temperature);
// Drops tokens with probability below min_p times the largest.
void apply_min_p(std::span<float> logits, float min_p);
// Keeps every token that is at least the k-th largest (ties all stay).
void apply_top_k(std::span<float> logits, int top_k, std::vector<float>* scratch);
// Keeps the smallest set of most likely tokens whose probability reaches top_p; at least one. Of
// equal tokens the lowest ids stay.
void apply_top_p(std::span<float> logits, float top_p, std::vector<int32_t>* scratch);
// The ids of the `count` largest, largest first, the lowest id first among equals; dropped tokens
// are never chosen, so there may be fewer.
void select_largest(std::span<const float> logits, size_t count, std::vector<int32_t>* ids);

// The lowest index among the largest values.
int32_t argmax(std::span<const float> logits);
// log softmax of one entry.
float log_probability(std::span<const float> logits, int32_t token);

// What logprob fields report: log softmax or the bare value, before steps 3 to 8 of
// docs/reference/sampling.md or after them. The grammar's mask always shows.
enum class LogprobsMode { kRawLogprobs, kProcessedLogprobs, kRawLogits, kProcessedLogits };
// raw_logprobs, processed_logprobs, raw_logits, processed_logits.
Result<LogprobsMode> parse_logprobs_mode(const std::string& name);

// Whether sample() would return the largest logit and touch nothing else, whatever the logits: then
// the device may choose. `penalty` is the loop guard's.
bool is_plain_greedy(const SamplingParams& params, bool constrained, float penalty);

class Sampler {
 public:
  // Allocates here only; sample() does for requests that want logprobs (their lists).
  explicit Sampler(int64_t vocab_size, LogprobsMode mode = LogprobsMode::kRawLogprobs);

  struct Input {
    std::span<float> logits;  // overwritten
    const SamplingParams* params;
    std::span<const int32_t> prompt;
    std::span<const int32_t> generated;
    std::span<const int32_t> stop_token_ids;  // masked while fewer than min_tokens were generated
    uint64_t seed;  // of the request; the draw also depends on the position only
    // fill() is called here, accept() is the caller's, once the token is final.
    TokenConstraint* constraint = nullptr;
    float repetition_penalty = 0;  // in place of the request's when not 0 (LoopGuard)
  };
  // Fills token, and logprob, rank and top_logprobs when asked for. Always a token: where
  // allowed_token_ids, bad_words or min_tokens would leave none, that rule is passed over.
  TokenEvent sample(const Input& input);

 private:
  void mask_rules(const Input& input);
  void fill_logprobs(std::span<const float> values, int num_logprobs, TokenEvent* event);

  LogprobsMode mode_;
  std::vector<float> kept_;  // what logprobs are taken from, when wanted
  std::vector<float> float_scratch_;
  std::vector<int32_t> id_scratch_;
  std::vector<uint32_t> allowed_;  // bit per token
  std::vector<uint32_t> trial_;
  TokenMarks marks_;
};

}  // namespace nibble
