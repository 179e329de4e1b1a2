// POSIX sockets; the bodies are framed by length, by chunks or by the close.
#include "net/http_client.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>

#include "base/format.h"
#include "base/text.h"

namespace nibble {
namespace {

constexpr size_t kMaxHeadBytes = 64 << 10;
constexpr size_t kMaxBodyBytes = size_t{256} << 20;

bool parse_head(std::string_view head, HttpAnswer* answer) {
  if (!head.starts_with("HTTP/1.") || head.size() < 12) return false;
  const auto [end, error] = std::from_chars(head.data() + 9, head.data() + 12, answer->status);
  if (error != std::errc() || end != head.data() + 12) return false;
  size_t begin = head.find("\r\n") + 2;
  while (begin < head.size()) {
    const size_t line_end = std::min(head.find("\r\n", begin), head.size());
    const std::string_view line = head.substr(begin, line_end - begin);
    begin = line_end + 2;
    const size_t colon = line.find(':');
    if (colon == std::string_view::npos) continue;
    const size_t value = line.find_first_not_of(' ', colon + 1);
    answer->headers[ascii_lower(line.substr(0, colon))] =
        value == std::string_view::npos ? "" : line.substr(value);
  }
  return true;
}

}  // namespace

Result<std::string> bearer_header(std::string_view key) {
  if (key.find_first_of("\r\n") != std::string_view::npos)
    return make_error(ErrorCode::kInvalidArgument, "the API key holds a line break");
  return key.empty() ? std::string() : format("Authorization: Bearer {}\r\n", key);
}

Result<HttpUrl> parse_http_url(std::string_view url) {
  const Error bad =
      make_error(ErrorCode::kInvalidArgument, "\"{}\" is not http://HOST[:PORT][/PATH]", url);
  if (!url.starts_with("http://")) return bad;
  std::string_view rest = url.substr(7);
  HttpUrl out;
  const size_t slash = std::min(rest.find('/'), rest.size());
  out.path = rest.substr(slash);
  while (out.path.ends_with('/')) out.path.pop_back();
  rest = rest.substr(0, slash);
  const size_t colon = rest.rfind(':');
  out.host = rest.substr(0, colon);
  if (colon != std::string_view::npos) {
    const std::string_view port = rest.substr(colon + 1);
    const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), out.port);
    if (error != std::errc() || end != port.data() + port.size()) return bad;
  }
  if (out.host.empty() || out.port < 1 || out.port > 65535) return bad;
  return out;
}

void HttpClient::close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
  in_.clear();
}

Status HttpClient::connect() {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int code = ::getaddrinfo(host_.c_str(), std::to_string(port_).c_str(), &hints, &found);
      code != 0)
    return make_error(ErrorCode::kIo, "{}: {}", host_, ::gai_strerror(code));
  std::string reason = "no address";
  for (const addrinfo* entry = found; entry && fd_ < 0; entry = entry->ai_next) {
    fd_ = ::socket(entry->ai_family, entry->ai_socktype | SOCK_CLOEXEC, entry->ai_protocol);
    if (fd_ >= 0 && ::connect(fd_, entry->ai_addr, entry->ai_addrlen) != 0) {
      reason = std::strerror(errno);
      close();
    }
  }
  ::freeaddrinfo(found);
  if (fd_ < 0) return make_error(ErrorCode::kIo, "cannot reach {}:{}: {}", host_, port_, reason);
  const int on = 1;
  ::setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return {};
}

Status HttpClient::send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t num = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (num <= 0)
      return make_error(ErrorCode::kIo, "{}:{}: sending: {}", host_, port_, std::strerror(errno));
    bytes.remove_prefix(static_cast<size_t>(num));
  }
  return {};
}

Result<bool> HttpClient::receive() {
  pollfd ready{fd_, POLLIN, 0};
  if (::poll(&ready, 1, static_cast<int>(timeout_.count())) <= 0)
    return make_error(ErrorCode::kIo, "{}:{}: nothing came for {} ms", host_, port_,
                      timeout_.count());
  char bytes[16384];
  const ssize_t num = ::recv(fd_, bytes, sizeof bytes, 0);
  if (num < 0)
    return make_error(ErrorCode::kIo, "{}:{}: receiving: {}", host_, port_, std::strerror(errno));
  in_.append(bytes, static_cast<size_t>(num));
  return num > 0;
}

Result<HttpAnswer> HttpClient::request(std::string_view method, std::string_view path,
                                       std::string_view headers, std::string_view body,
                                       const std::function<bool(std::string_view)>& on_data) {
  const Error early = make_error(ErrorCode::kIo, "{}:{}: the answer ended too early", host_, port_);
  std::string bytes = format("{} {} HTTP/1.1\r\nHost: {}:{}\r\nContent-Length: {}\r\n{}\r\n",
                             method, path, host_, port_, body.size(), headers);
  bytes += body;
  // A kept connection may have been closed by the server meanwhile: then once more on a new one.
  for (bool kept = fd_ >= 0;; kept = false) {
    if (fd_ < 0) NB_TRY_STATUS(connect());
    Status sent = send(bytes);
    Result<bool> got = sent.has_value() ? receive() : Result<bool>(sent.error());
    if (got && *got) break;
    close();
    if (!kept) return got ? early : got.error();
  }
  size_t end;
  while ((end = in_.find("\r\n\r\n")) == std::string::npos) {
    NB_TRY(const bool more, receive());
    if (!more || in_.size() > kMaxHeadBytes) return close(), early;
  }
  HttpAnswer answer;
  if (!parse_head(std::string_view(in_).substr(0, end + 2), &answer))
    return close(), make_error(ErrorCode::kIo, "{}:{}: the answer is no HTTP", host_, port_);
  in_.erase(0, end + 4);

  size_t num_body = 0;
  bool hung_up = false;
  const auto take = [&](std::string_view piece) {
    num_body += piece.size();
    if (!on_data || answer.status != 200) {
      answer.body += piece;
    } else if (!on_data(piece)) {
      hung_up = true;
    }
    return !hung_up && num_body <= kMaxBodyBytes;
  };
  const auto length = answer.headers.find("content-length");
  if (answer.headers["transfer-encoding"] == "chunked") {
    for (size_t size = 1; size != 0;) {
      size_t line;
      while ((line = in_.find("\r\n")) == std::string::npos) {
        NB_TRY(const bool more, receive());
        if (!more) return close(), early;
      }
      if (std::from_chars(in_.data(), in_.data() + line, size, 16).ec != std::errc())
        return close(), make_error(ErrorCode::kIo, "{}:{}: a bad chunk", host_, port_);
      while (in_.size() < line + 2 + size + 2) {
        NB_TRY(const bool more, receive());
        if (!more) return close(), early;
      }
      if (size > 0 && !take(std::string_view(in_).substr(line + 2, size))) break;
      in_.erase(0, line + 2 + size + 2);
    }
  } else if (length != answer.headers.end()) {
    size_t left = 0;
    std::from_chars(length->second.data(), length->second.data() + length->second.size(), left);
    while (left > 0) {
      if (in_.empty()) {
        NB_TRY(const bool more, receive());
        if (!more) return close(), early;
      }
      const size_t part = std::min(left, in_.size());
      const bool go_on = take(std::string_view(in_).substr(0, part));
      in_.erase(0, part);
      left -= part;
      if (!go_on) break;
    }
  }
  if (hung_up || num_body > kMaxBodyBytes || answer.headers["connection"] == "close") close();
  return answer;
}

}  // namespace nibble
