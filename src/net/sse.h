// Server-sent events: the framing of streamed replies.
#pragma once

#include <string>
#include <string_view>

namespace nibble {

// "data: ...\n\n"; data of several lines becomes several data fields, which clients join again.
std::string sse_event(std::string_view data);
// The same with an "event: NAME" line in front (the Anthropic dialect).
std::string sse_event(std::string_view name, std::string_view data);

inline constexpr const char* kSseContentType = "text/event-stream; charset=utf-8";

}  // namespace nibble
