// Anthropic's Messages API over the same chat requests: its body becomes a chat body, the reply its
// content blocks.
#pragma once

#include <memory>
#include <optional>

#include "server/answer.h"
#include "server/chat_request.h"

namespace nibble {

// The body of /v1/messages (or, with `count_only`, of its count_tokens) as a body of
// /v1/chat/completions.
std::optional<ApiError> chat_body_from_messages(const Json& body, bool count_only, Json* chat);

// `message_id` begins with "msg_".
std::unique_ptr<Answer> make_messages_answer(const AnswerHead& head);

// {"type": "error", "error": {"type", "message"}}
Json messages_error_body(const ApiError& error);

}  // namespace nibble
