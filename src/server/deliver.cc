// One loop for both forms. A client that goes cancels the generation; an engine error becomes the
// dialect's error.
#include "server/deliver.h"

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

}  // namespace

bool deliver(Generation& generation, Answer& answer, bool stream, const std::string& id,
             HttpReply& reply) {
  reply.on_client_gone([&generation] { generation.cancel(); });
  std::string out;
  bool open = true;
  if (stream) {
    reply.begin_stream({.status = 200,
                        .content_type = kSseContentType,
                        .headers = {{"Cache-Control", "no-cache"}}});
    answer.begin(generation.usage(), &out);
    if (!out.empty()) open = reply.write(std::move(out));
  }
  ChoicePiece piece;
  std::string error;
  FinishReason reason = FinishReason::kNone;
  while (open && error.empty() && generation.next(&piece)) {
    if (piece.finish != FinishReason::kNone) reason = piece.finish;
    if (piece.finish == FinishReason::kError) {
      error = piece.tokens.back().error.empty() ? "the engine failed" : piece.tokens.back().error;
      break;
    }
    out.clear();
    answer.take(piece, generation.usage(), stream ? &out : nullptr);
    if (!out.empty()) open = reply.write(std::move(out));
  }
  if (!open || !error.empty()) generation.cancel();
  out.clear();
  const ApiError failure{500, "InternalServerError", error, nullptr};
  if (stream && open) {
    if (error.empty())
      answer.end(generation.usage(), &out);
    else
      answer.fail(failure, &out);
    open = reply.write(std::move(out));
  }
  reply.on_client_gone({});
  open = open && !reply.client_gone();
  log_finished(generation, id, open ? reason_word(reason) : "client gone", reply);
  if (stream) {
    if (open) reply.end_stream();  // else the connection is cut, so that the client can tell
  } else if (error.empty()) {
    reply.send(json_reply(answer.whole(generation.usage())));
  } else {
    reply.send(json_reply(answer.error(failure), failure.status));
  }
  return open && error.empty();
}

}  // namespace nibble
