// What the HTTP server checks in a request head and writes in a response head, as plain text. Used
// by http_server.cc before and after its parser; separate so that it can be tested alone.
#pragma once

#include <map>
#include <string>
#include <string_view>

namespace nibble {

struct HttpResponse;

// Looks at a complete head (up to and including the empty line) for bytes that two HTTP parsers may
// read differently: bare CR or LF, NUL, folded lines, blanks around field names. Returns what is
// wrong, or "".
std::string head_defect(std::string_view head);

// Splits a request target into path and query; absolute form loses its scheme and authority. False
// when there is no path in it.
bool split_target(std::string_view target, std::string* path, std::string* query);

struct ResponseFraming {
  bool chunked = false;
  bool has_length = true;  // false: the close ends the body (HTTP/1.0 streams), or no body at all
  size_t length = 0;
  bool close = false;
};

// Status line and fields with the empty line. CR, LF and NUL in values are dropped.
std::string response_head(const HttpResponse& response, const ResponseFraming& framing);

std::string_view reason_phrase(int status);

}  // namespace nibble
