// What a client asks of the engine, in token ids, and what comes back, one event per token.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace nibble {

// Meanings, ranges and order of application as in vLLM (docs/reference/sampling.md).
struct SamplingParams {
  float temperature = 1.0f;  // < 1e-5: greedy
  int top_k = 0;             // 0 or -1: off
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::optional<int64_t> seed;
  int min_tokens = 0;
  int num_logprobs = -1;  // -1: none; k: the chosen token and the k most likely
};

enum class FinishReason { kNone, kStop, kLength, kAbort, kError };

struct Request {
  std::string id;
  std::vector<int32_t> prompt;
  SamplingParams sampling;
  int max_tokens = 16;
  std::vector<int32_t> stop_token_ids;  // eos ids included; generation ends with one of them
  bool ignore_eos = false;
};

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;
};

struct TokenEvent {
  int32_t token = -1;  // -1: no token (abort, error)
  FinishReason finish = FinishReason::kNone;
  std::optional<int32_t> stop_token;  // the id that ended generation, when finish is kStop
  float logprob = 0;                  // of `token`, when asked for
  std::vector<TokenLogprob> top_logprobs;
  std::string error;  // when finish is kError
};

}  // namespace nibble
