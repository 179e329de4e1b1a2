// Bodies of every generating dialect: read or refused, never a crash.
#include <cstdint>
#include <string_view>

#include "server/chat_request.h"
#include "server/dialect_anthropic.h"
#include "server/dialect_completions.h"
#include "server/dialect_responses.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const nibble::Result<nibble::Json> body =
      nibble::parse_json(text, "body", {.allow_duplicate_keys = true});
  if (!body) return 0;
  const nibble::RequestDefaults defaults;
  nibble::ChatRequest chat;
  (void)nibble::parse_chat_request(*body, defaults, &chat);
  nibble::CompletionRequest completion;
  (void)nibble::parse_completion_request(*body, defaults, 4096, &completion);
  nibble::Json translated;
  if (!nibble::chat_body_from_messages(*body, false, &translated)) {
    nibble::ChatRequest from_messages;
    (void)nibble::parse_chat_request(translated, defaults, &from_messages);
  }
  const nibble::ResponseStore store;
  nibble::ResponsesRequest responses;
  if (!nibble::read_responses_request(*body, store, &responses)) {
    nibble::ChatRequest from_responses;
    (void)nibble::parse_chat_request(responses.chat, defaults, &from_responses);
  }
  return 0;
}
