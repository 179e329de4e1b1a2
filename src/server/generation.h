// A checked request at work: its prompts in token ids, n choices each, submitted to the engine, and
// their pieces in the order they come. The one place where the server meets the engine's queue.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "server/answer.h"
#include "server/generation_request.h"
#include "server/metrics.h"
#include "server/reply_stream.h"
#include "server/served_model.h"

namespace nibble {

struct Prompt {
  std::vector<int32_t> ids;
  std::string text;  // its end decides whether the reply starts inside reasoning
};

struct GenerationSetup {
  std::string id;      // of the answer
  std::string client;  // who asks; the scheduler is fair between clients
  std::string reasoning_parser;
  std::string tool_parser;
  Json tools = Json::array();
  int stream_interval = 1;  // tokens in a piece after the first
  // Makes the rule one choice must follow; null: none.
  std::function<Result<std::shared_ptr<TokenConstraint>>(const Prompt&)> constraint;
};

class Generation {
 public:
  // Checks lengths and token ids, then submits every choice: all of them or none. Prompts are cut
  // only by truncate_prompt_tokens.
  static std::optional<ApiError> start(ServedModel& model, ServerMetrics& metrics,
                                       const GenerationRequest& request,
                                       std::vector<Prompt> prompts, GenerationSetup setup,
                                       std::unique_ptr<Generation>* out);
  ~Generation();

  enum class Poll { kPiece, kNothing, kEnd };

  // The next piece of the choices in turn; blocks. False when all have ended.
  bool next(ChoicePiece* piece);
  // The next piece of any choice, if the engine has made one; needs on_event().
  Poll poll(ChoicePiece* piece);
  // As RequestHandle::on_event(), for all choices.
  bool on_event(const std::function<void()>& wake);
  // Ends every choice at the engine's next step. Thread-safe.
  void cancel();

  const TokenUsage& usage() const { return usage_; }
  const std::vector<Prompt>& prompts() const { return prompts_; }
  // From submission to the first token of any choice, and from it to now; in seconds.
  double first_token_seconds() const;
  double decode_seconds() const;

 private:
  using Clock = std::chrono::steady_clock;
  struct Choice;

  Generation(ServerMetrics& metrics, std::vector<Prompt> prompts, int stream_interval);
  // Adds an event to the choice's piece; true when the piece is complete, and then in `piece`.
  bool add(Choice& choice, TokenEvent event, ChoicePiece* piece);
  void account(Choice& choice, const TokenEvent& event);
  void finish(Choice& choice, FinishReason reason);

  ServerMetrics& metrics_;
  std::vector<Prompt> prompts_;
  int stream_interval_;
  std::vector<std::unique_ptr<Choice>> choices_;
  size_t turn_ = 0;
  TokenUsage usage_;
  Clock::time_point start_ = Clock::now();
  std::optional<Clock::time_point> first_token_;
};

}  // namespace nibble
