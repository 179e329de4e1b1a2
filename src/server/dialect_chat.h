// POST /v1/chat/completions, the answers: a whole chat.completion or its chunks, fields and order
// as vLLM writes them.
#pragma once

#include <memory>

#include "server/answer.h"
#include "server/chat_request.h"
#include "server/generation.h"
#include "text/tokenizer.h"

namespace nibble {

// `request`, `prompt` and `tokenizer` must outlive the answer. `echo` is the text in front of the
// reply ("" for none).
std::unique_ptr<Answer> make_chat_answer(const AnswerHead& head, const ChatRequest& request,
                                         const Prompt& prompt, const Tokenizer& tokenizer,
                                         std::string echo);

// {"token", "logprob", "bytes"} of one token; the text of its own decoding, or "token_id:N".
Json token_logprob(int32_t id, float logprob, const Tokenizer& tokenizer, bool as_id);
// [null, {"ID": {"logprob", "rank", "decoded_token"}}, ...]: one entry per prompt token.
Json prompt_logprobs_json(const TokenEvent& first, std::span<const int32_t> prompt,
                          const Tokenizer& tokenizer);

}  // namespace nibble
