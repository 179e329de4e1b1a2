// One loop for both forms. A client that goes cancels the generation; an engine error becomes the
// dialect's error.
#include "server/deliver.h"

#include <utility>

#include "base/format.h"
#include "base/log.h"
#include "net/sse.h"

namespace nibble {
namespace {

const char* reason_word(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone: break;
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kAbort: return "abort";
    case FinishReason::kError: return "error";
    case FinishReason::kRepetition: return "repetition";
    case FinishReason::kTimeout: return "timeout";
  }
  return "none";
}

void log_finished(const Generation& generation, const std::string& id, std::string_view reason,
                  HttpReply& reply) {
  const TokenUsage& usage = generation.usage();
  const int num = usage.num_completion_tokens;
  const double ttft_ms = generation.first_token_seconds() * 1e3;
  const double tpot_ms = num > 1 ? generation.decode_seconds() * 1e3 / (num - 1) : 0.0;
  reply.note("id", id);
  reply.note("reason", std::string(reason));
  reply.note("prompt_tokens", std::to_string(usage.num_prompt_tokens));
  reply.note("cached", std::to_string(usage.num_cached_tokens));
  reply.note("tokens", std::to_string(num));
  reply.note("ttft_ms", format("{:.1f}", ttft_ms));
  reply.note("tpot_ms", format("{:.2f}", tpot_ms));
  log_info(
      "request id={} reason={} prompt_tokens={} cached_tokens={} tokens={} ttft_ms={:.1f} "
      "tpot_ms={:.2f}",
      id, reason, usage.num_prompt_tokens, usage.num_cached_tokens, num, ttft_ms, tpot_ms);
}

class Delivery final : public DeliveryThread::Task {
 public:
  Delivery(Generation& generation, Answer& answer, bool stream, HttpReply& reply)
      : generation_(generation), answer_(answer), stream_(stream), reply_(reply) {}

  void begin() {
    if (!stream_) return;
    reply_.begin_stream({.status = 200,
                         .content_type = kSseContentType,
                         .headers = {{"Cache-Control", "no-cache"}}});
    answer_.begin(generation_.usage(), &out_);
    write();
  }

  bool work() override {
    while (!over_) {
      if (stream_ && !reply_.has_room()) return true;
      const Generation::Poll poll = generation_.poll(&piece_);
      if (poll == Generation::Poll::kNothing) return false;
      if (poll == Generation::Poll::kEnd)
        over_ = true;
      else
        take_piece();
    }
    return true;
  }

  // One piece, however long it takes.
  void wait_and_work() {
    if (generation_.next(&piece_))
      take_piece();
    else
      over_ = true;
  }

  // The engine has no more for this answer, or the answer wants no more.
  bool over() const { return over_; }
  bool open() const { return open_; }
  const std::string& error() const { return error_; }
  FinishReason reason() const { return reason_; }

  // What comes after the last piece.
  void end() {
    if (!open_ || !error_.empty()) generation_.cancel();
    if (!stream_ || !open_) return;
    if (error_.empty())
      answer_.end(generation_.usage(), &out_);
    else
      answer_.fail(failure(), &out_);
    write();
  }
  // After on_client_gone() was taken back.
  void close() {
    open_ = open_ && !reply_.client_gone();
    if (stream_) {
      if (open_) reply_.end_stream();  // else the connection is cut, so that the client can tell
    } else if (error_.empty()) {
      reply_.send(json_reply(answer_.whole(generation_.usage())));
    } else {
      reply_.send(json_reply(answer_.error(failure()), failure().status));
    }
  }

 private:
  ApiError failure() const { return {500, "InternalServerError", error_, nullptr}; }

  void take_piece() {
    if (piece_.finish != FinishReason::kNone) reason_ = piece_.finish;
    if (piece_.finish == FinishReason::kError) {
      error_ =
          piece_.tokens.back().error.empty() ? "the engine failed" : piece_.tokens.back().error;
      over_ = true;
      return;
    }
    answer_.take(piece_, generation_.usage(), stream_ ? &out_ : nullptr);
    write();
  }
  void write() {
    if (!out_.empty()) open_ = reply_.write(std::exchange(out_, {}));
    over_ = over_ || !open_;
  }

  Generation& generation_;
  Answer& answer_;
  const bool stream_;
  HttpReply& reply_;
  std::string out_;
  ChoicePiece piece_;
  std::string error_;
  FinishReason reason_ = FinishReason::kNone;
  bool open_ = true;
  bool over_ = false;
};

}  // namespace

bool deliver(Generation& generation, Answer& answer, bool stream, const std::string& id,
             HttpReply& reply, DeliveryThread& thread) {
  reply.on_client_gone([&generation] { generation.cancel(); });
  Delivery delivery(generation, answer, stream, reply);
  delivery.begin();
  const bool wakes = generation.on_event([&] { thread.wake(delivery); });
  {
    // Neither the engine nor the connection may call on what is about to go, however it goes.
    struct Callbacks {
      Generation& generation;
      HttpReply& reply;
      ~Callbacks() {
        generation.on_event(nullptr);
        reply.on_client_gone({});
      }
    } const callbacks{generation, reply};
    while (!delivery.over()) {
      if (wakes) thread.run(delivery);
      if (!delivery.over()) delivery.wait_and_work();
    }
    delivery.end();
  }
  delivery.close();
  log_finished(generation, id, delivery.open() ? reason_word(delivery.reason()) : "client gone",
               reply);
  return delivery.open() && delivery.error().empty();
}

}  // namespace nibble
