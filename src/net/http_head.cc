// Strict reading and writing of HTTP heads.
#include "net/http_head.h"

#include <algorithm>
#include <ctime>

#include "base/format.h"
#include "net/http_server.h"

namespace nibble {
namespace {

std::string clean_value(std::string_view value) {
  std::string out;
  for (const char c : value)
    if (c != '\r' && c != '\n' && c != '\0') out += c;
  return out;
}

std::string http_date() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  char text[64];
  const size_t size = std::strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", &parts);
  return {text, size};
}

}  // namespace

std::string head_defect(std::string_view head) {
  if (head.find('\0') != std::string_view::npos) return "a NUL byte in the head";
  bool first = true;
  while (!head.empty()) {
    const size_t end = head.find('\n');
    if (end == std::string_view::npos || end == 0 || head[end - 1] != '\r')
      return "a line that does not end in CR LF";
    const std::string_view line = head.substr(0, end - 1);
    head.remove_prefix(end + 1);
    if (line.find('\r') != std::string_view::npos) return "a bare CR in the head";
    if (first) {
      first = false;
      continue;
    }
    if (line.empty()) break;
    if (line.front() == ' ' || line.front() == '\t') return "a folded header line";
    const size_t colon = line.find(':');
    if (colon == std::string_view::npos || colon == 0) return "a header line without a name";
    if (line.substr(0, colon).find_first_of(" \t") != std::string_view::npos)
      return "a blank in a header name";
  }
  return "";
}

bool split_target(std::string_view target, std::string* path, std::string* query) {
  if (const size_t scheme = target.find("://");
      !target.starts_with('/') && scheme != std::string_view::npos) {
    target.remove_prefix(scheme + 3);
    const size_t slash = target.find_first_of("/?");
    target.remove_prefix(std::min(slash, target.size()));
    if (target.empty() || target.front() == '?') {
      path->assign(1, '/');
      query->assign(target.empty() ? target : target.substr(1));
      return true;
    }
  }
  if (target.empty() || (target.front() != '/' && target != "*")) return false;
  const size_t mark = std::min(target.find('?'), target.size());
  path->assign(target.substr(0, mark));
  query->assign(target.substr(std::min(mark + 1, target.size())));
  return true;
}

std::string response_head(const HttpResponse& response, const ResponseFraming& framing) {
  std::string head = format("HTTP/1.1 {} {}\r\nDate: {}\r\n", response.status,
                            reason_phrase(response.status), http_date());
  if (!response.content_type.empty())
    head += "Content-Type: " + clean_value(response.content_type) + "\r\n";
  for (const auto& [name, value] : response.headers)
    head += clean_value(name) + ": " + clean_value(value) + "\r\n";
  if (framing.chunked) {
    head += "Transfer-Encoding: chunked\r\n";
  } else if (framing.has_length) {
    head += format("Content-Length: {}\r\n", framing.length);
  }
  head += framing.close ? "Connection: close\r\n\r\n" : "Connection: keep-alive\r\n\r\n";
  return head;
}

std::string_view reason_phrase(int status) {
  switch (status) {
    case 100: return "Continue";
    case 200: return "OK";
    case 204: return "No Content";
    case 304: return "Not Modified";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 408: return "Request Timeout";
    case 413: return "Payload Too Large";
    case 415: return "Unsupported Media Type";
    case 417: return "Expectation Failed";
    case 422: return "Unprocessable Entity";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 499: return "Client Closed Request";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 503: return "Service Unavailable";
    case 505: return "HTTP Version Not Supported";
    default: return "Unknown";
  }
}

}  // namespace nibble
