// Between generation and the dialects: what a reply grows by, and the interface of an answer that
// is written from it, whole or as a stream. A dialect implements Answer and meets no engine.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "engine/request.h"
#include "server/api_error.h"
#include "text/reply_parser.h"

namespace nibble {

// The next piece of one choice.
struct ChoicePiece {
  int choice = 0;
  std::vector<TokenEvent> tokens;  // as the engine gave them; one, or up to --stream-interval
  std::vector<ReplyEvent> events;  // what their text became; may be none, and may come later
  FinishReason finish = FinishReason::kNone;  // other than kNone: the choice's last piece
  Json stop_reason;                           // stop string, stop token id, or null
};

struct TokenUsage {
  int num_prompt_tokens = 0;  // of all prompts of the request
  int num_completion_tokens = 0;
  int num_cached_tokens = 0;  // of the prompt tokens, not computed anew
};

enum class ReasoningField { kBoth, kReasoning, kReasoningContent };

// What is the same in every piece of one answer.
struct AnswerHead {
  std::string id;       // "chatcmpl-..."
  int64_t created = 0;  // Unix seconds
  std::string model;
  std::string fingerprint;  // "" for none
  std::string role = "assistant";
  ReasoningField reasoning_field = ReasoningField::kBoth;
  bool prompt_tokens_details = false;  // usage tells the cached tokens
};

// One answer in one dialect, fed by pieces. With `out` the calls append the bytes to send now;
// without it the answer is collected and whole() gives it. Errors of kError pieces do not get here.
class Answer {
 public:
  virtual ~Answer() = default;
  virtual void begin(const TokenUsage& usage, std::string* out) = 0;
  virtual void take(const ChoicePiece& piece, const TokenUsage& usage, std::string* out) = 0;
  virtual void end(const TokenUsage& usage, std::string* out) = 0;
  // An error after streaming began: the dialect's error event and its ending.
  virtual void fail(const ApiError& error, std::string* out) = 0;
  virtual Json whole(const TokenUsage& usage) = 0;
  // The body of an error answer.
  virtual Json error(const ApiError& error) const { return error_body(error); }
};

// stop, length, tool_calls, repetition, abort: OpenAI's words.
std::string finish_name(FinishReason reason, bool has_calls);
Json usage_json(const TokenUsage& usage, bool with_details);

// `num_digits` random hexadecimal digits.
std::string random_hex(int num_digits);

}  // namespace nibble
