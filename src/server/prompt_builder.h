// From a chat request to the prompt's text: messages put into the form templates expect.
#pragma once

#include "server/chat_request.h"
#include "server/served_model.h"

namespace nibble {

// kInvalidArgument: the messages' defect, or the template's own message.
Result<std::string> build_prompt(const ServedModel& model, const ChatRequest& request);

}  // namespace nibble
