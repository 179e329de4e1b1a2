// Tokens of one choice -> text -> stop strings -> reply events, however the tokens arrive.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "engine/request.h"
#include "text/detokenizer.h"
#include "text/reply_parser.h"

namespace nibble {

struct ReplyStreamOptions {
  std::vector<std::string> stop;  // text is cut before the first match
  bool include_stop = false;      // ... or after it
  int min_tokens = 0;             // stop strings count only from here
  bool skip_special_tokens = true;
};

class ReplyStream {
 public:
  // `tokenizer` must outlive this object.
  ReplyStream(const Tokenizer& tokenizer, std::unique_ptr<ReplyParser> parser,
              ReplyStreamOptions options);

  // Takes the engine's next event. After done() there must be no more.
  std::vector<ReplyEvent> push(const TokenEvent& event);

  bool done() const { return finish_ != FinishReason::kNone; }
  FinishReason finish() const { return finish_; }
  // The stop string or (other than end of sequence) stop token id that ended the text, or null.
  const Json& stop_reason() const { return stop_reason_; }
  void set_end_tokens(std::vector<int32_t> ids) { end_token_ids_ = std::move(ids); }
  int num_tokens() const { return num_tokens_; }

 private:
  // Appends the reply events of text that no stop string can take back.
  void release(std::string_view text, bool last, std::vector<ReplyEvent>* out);

  Detokenizer detokenizer_;
  std::unique_ptr<ReplyParser> parser_;
  ReplyStreamOptions options_;
  size_t max_held_ = 0;  // bytes of text a stop string may still begin in
  std::string held_;
  std::vector<int32_t> end_token_ids_;
  FinishReason finish_ = FinishReason::kNone;
  Json stop_reason_;
  int num_tokens_ = 0;
};

}  // namespace nibble
