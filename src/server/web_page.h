// The pages at / and /status, embedded at build time from server/web/. They load nothing from
// anywhere: style and script are inline, and the policy names them by their hash.
#pragma once

#include <string_view>

#include "net/http_server.h"

namespace nibble {

extern const std::string_view kChatPage;
extern const std::string_view kStatusPage;

// A page with its Content-Security-Policy: only its own style and script, only this server.
HttpResponse page_response(std::string_view page);

}  // namespace nibble
