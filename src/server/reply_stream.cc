// The text that a stop string could still begin in is held back; the parser sees the rest.
#include "server/reply_stream.h"

#include <algorithm>

namespace nibble {

ReplyStream::ReplyStream(const Tokenizer& tokenizer, std::unique_ptr<ReplyParser> parser,
                         ReplyStreamOptions options)
    : detokenizer_(tokenizer, options.skip_special_tokens),
      parser_(std::move(parser)),
      options_(std::move(options)) {
  for (const std::string& stop : options_.stop) max_held_ = std::max(max_held_, stop.size() - 1);
}

std::vector<ReplyEvent> ReplyStream::push(const TokenEvent& event) {
  std::vector<ReplyEvent> out;
  if (event.token >= 0) ++num_tokens_;
  finish_ = event.finish;
  std::string text;
  if (event.token >= 0 && !event.stop_token) text = detokenizer_.push(event.token);
  if (event.stop_token &&
      std::ranges::find(end_token_ids_, *event.stop_token) == end_token_ids_.end())
    stop_reason_ = *event.stop_token;
  if (done()) text += detokenizer_.flush();
  release(text, done(), &out);
  return out;
}

void ReplyStream::release(std::string_view text, bool last, std::vector<ReplyEvent>* out) {
  const auto pass = [&](std::vector<ReplyEvent> events) {
    out->insert(out->end(), std::make_move_iterator(events.begin()),
                std::make_move_iterator(events.end()));
  };
  held_ += text;
  if (num_tokens_ >= options_.min_tokens) {
    size_t first = std::string::npos;
    const std::string* found = nullptr;
    for (const std::string& stop : options_.stop)
      if (const size_t at = held_.find(stop); at < first) {
        first = at;
        found = &stop;
      }
    if (found) {
      stop_reason_ = *found;
      finish_ = FinishReason::kStop;
      held_.resize(first + (options_.include_stop ? found->size() : 0));
      last = true;
    }
  }
  size_t ready = held_.size();
  if (!last) {
    ready -= std::min(ready, max_held_);
    while (ready > 0 && (static_cast<unsigned char>(held_[ready]) & 0xC0) == 0x80) --ready;
  }
  pass(parser_->push(std::string_view(held_).substr(0, ready)));
  held_.erase(0, ready);
  if (last) pass(parser_->finish());
}

}  // namespace nibble
