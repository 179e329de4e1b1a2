// The shapes of OpenAI chat answers: whole completions and stream chunks, fields as vLLM writes
// them.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "engine/request.h"
#include "server/chat_request.h"
#include "text/reply_parser.h"
#include "text/tokenizer.h"

namespace nibble {

enum class ReasoningField { kBoth, kReasoning, kReasoningContent };

// What is the same in every piece of one answer.
struct AnswerHead {
  std::string id;       // "chatcmpl-..."
  int64_t created = 0;  // Unix seconds
  std::string model;
  ReasoningField reasoning_field = ReasoningField::kBoth;
};

struct TokenUsage {
  int num_prompt_tokens = 0;
  int num_completion_tokens = 0;
};

// Collects one choice's events into its message.
class MessageBuilder {
 public:
  void take(const ReplyEvent& event);
  bool has_calls() const { return !calls_.empty(); }
  // Without `parallel` only the first call is kept.
  Json message(ReasoningField field, bool include_reasoning, bool parallel) const;

 private:
  std::string reasoning_;
  std::string content_;
  bool has_reasoning_ = false;
  Json calls_ = Json::array();
};

// The delta of one event; null when the client is to see nothing of it.
Json stream_delta(const ReplyEvent& event, ReasoningField field, bool include_reasoning,
                  bool parallel);

// One entry of `logprobs.content`.
Json logprob_entry(const TokenEvent& event, const Tokenizer& tokenizer, int num_top);

// stop, length, tool_calls or abort.
std::string finish_name(FinishReason reason, bool has_calls);

Json usage_json(const TokenUsage& usage);
Json completion(const AnswerHead& head, Json choices, const TokenUsage& usage);
// A chunk with one choice; `logprobs` may be null.
Json chunk(const AnswerHead& head, int index, Json delta, const Json& logprobs,
           const Json& finish_reason);
// The chunk after the last choice's: no choices, usage only.
Json usage_chunk(const AnswerHead& head, const TokenUsage& usage);

// `num_digits` random hexadecimal digits.
std::string random_hex(int num_digits);

}  // namespace nibble
