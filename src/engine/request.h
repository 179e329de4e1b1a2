// What a client asks of the engine, in token ids, and what comes back, one event per token.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
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
  // -1: none; k: of each prompt token but the first, likewise; such a request reads no prefix
  // cache.
  int num_prompt_logprobs = -1;
  std::vector<std::vector<int32_t>> bad_words;  // token sequences that must not be completed
  std::vector<int32_t> allowed_token_ids;       // empty: all
  // After this many generated tokens without it, end_of_thinking_id is forced; -1: no limit.
  int thinking_token_budget = -1;
  int32_t end_of_thinking_id = -1;
};

// Ends a request whose newest tokens repeat one pattern: `min_count` times, of min_size to max_size
// tokens. max_size 0: off.
struct RepetitionDetection {
  int max_pattern_size = 0;
  int min_pattern_size = 1;
  int min_count = 2;
};

enum class FinishReason { kNone, kStop, kLength, kAbort, kError, kRepetition, kTimeout };
inline constexpr size_t kNumFinishReasons = 7;

// Which tokens may come next, by a rule the engine does not know (a grammar). One request's own;
// called by the engine thread only, fill() before and accept() after each sampled token.
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;
  // Bit t of allowed[t / 32] is set iff token t may come next. False when every token may (say,
  // while the model still reasons): `allowed` is then not written.
  virtual bool fill(std::span<uint32_t> allowed) = 0;
  virtual void accept(int32_t token) = 0;
};

struct Request {
  std::string id;
  std::vector<int32_t> prompt;
  SamplingParams sampling;
  int max_tokens = 16;
  std::vector<int32_t> stop_token_ids;  // eos ids included; generation ends with one of them
  bool ignore_eos = false;
  RepetitionDetection repetition;
  std::shared_ptr<TokenConstraint> constraint;  // null: none
  int priority = 0;                             // lower runs first under the priority policy
  std::string client;      // who asks, for fairness and limits; "" for nobody in particular
  std::string cache_salt;  // cached prefixes are shared only under equal salts
  std::optional<std::chrono::steady_clock::time_point> deadline;  // then it ends with kTimeout
};

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;
};

// One request in numbers, for latency histograms; complete in its last event. A request that ends
// before it ran or before its first token has 0 for what it did not reach.
struct RequestReport {
  int num_prompt_tokens = 0;
  int num_generated_tokens = 0;
  int num_cached_tokens = 0;    // prompt tokens taken from a cache, host and disk included
  int num_computed_tokens = 0;  // prompt tokens computed before the first token
  int num_preemptions = 0;
  double queue_seconds = 0;                // submit -> first scheduled
  double prefill_seconds = 0;              // first scheduled -> first token
  double decode_seconds = 0;               // first token -> last token
  double time_to_first_token_seconds = 0;  // submit -> first token
  double e2e_seconds = 0;                  // submit -> end
  double inference_seconds() const { return prefill_seconds + decode_seconds; }
};

struct TokenEvent {
  int32_t token = -1;  // -1: no token (abort, error)
  FinishReason finish = FinishReason::kNone;
  std::optional<int32_t> stop_token;  // the id that ended generation, when finish is kStop
  float logprob = 0;                  // of `token`, when asked for
  int rank = 0;                       // of `token`: 1 + tokens strictly more likely, when asked for
  std::vector<TokenLogprob> top_logprobs;
  int num_cached_tokens = 0;  // prompt tokens not computed; in the first event
  // In the first event, when asked for: entry i is of prompt token i + 1.
  std::vector<std::vector<TokenLogprob>> prompt_logprobs;
  std::string error;  // when finish is kError
  // When the engine made it: differences between events of a request are inter-token latencies.
  std::chrono::steady_clock::time_point time;
  RequestReport report;  // in the event with a finish reason
};

}  // namespace nibble
