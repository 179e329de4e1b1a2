// What the OpenAI dialects share.
#include "server/answer.h"

#include <mutex>
#include <random>

namespace nibble {

std::string finish_name(FinishReason reason, bool has_calls) {
  if (reason == FinishReason::kAbort || reason == FinishReason::kTimeout) return "abort";
  if (reason == FinishReason::kRepetition) return "repetition";
  if (has_calls) return "tool_calls";
  return reason == FinishReason::kLength ? "length" : "stop";
}

Json usage_json(const TokenUsage& usage, bool with_details) {
  const bool details = with_details && usage.num_cached_tokens > 0;
  return {{"prompt_tokens", usage.num_prompt_tokens},
          {"total_tokens", usage.num_prompt_tokens + usage.num_completion_tokens},
          {"completion_tokens", usage.num_completion_tokens},
          {"prompt_tokens_details",
           details ? Json{{"cached_tokens", usage.num_cached_tokens}} : Json()}};
}

std::string random_hex(int num_digits) {
  static std::mutex mutex;
  static std::mt19937_64 random{std::random_device{}()};
  std::lock_guard lock(mutex);
  std::string out;
  for (int i = 0; i < num_digits; ++i) out += "0123456789abcdef"[random() % 16];
  return out;
}

}  // namespace nibble
