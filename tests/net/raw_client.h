// A TCP client that sends exactly the bytes it is told to, for tests of hostile and slow peers.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <string>
#include <string_view>

namespace nibble::test {

class RawClient {
 public:
  explicit RawClient(int port, int receive_buffer_bytes = 0) {
    fd_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (receive_buffer_bytes > 0)
      ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer_bytes, sizeof receive_buffer_bytes);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  }
  ~RawClient() { close(); }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  bool connected() const { return connected_; }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

  // False when the server has closed.
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t num = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (num <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(num));
    }
    return true;
  }

  // One read of what is there within the timeout; false at the end of the connection or the
  // timeout.
  bool receive_some(std::chrono::milliseconds timeout = std::chrono::seconds(5)) {
    pollfd ready{fd_, POLLIN, 0};
    if (::poll(&ready, 1, static_cast<int>(timeout.count())) <= 0) {
      timed_out_ = true;
      return false;
    }
    char bytes[16384];
    const ssize_t num = ::recv(fd_, bytes, sizeof bytes, 0);
    if (num <= 0) {
      closed_ = true;
      return false;
    }
    received_.append(bytes, static_cast<size_t>(num));
    return true;
  }

  // Reads what is there, keeps nothing, does not wait.
  void discard() {
    char bytes[65536];
    while (::recv(fd_, bytes, sizeof bytes, MSG_DONTWAIT) > 0) {
    }
  }

  // All bytes until the server closes (or 5 s pass without any).
  std::string receive_all() {
    while (receive_some()) {
    }
    return std::move(received_);
  }

  // Until `mark` has arrived; returns everything up to and including it, "" when it never came.
  std::string receive_until(std::string_view mark) {
    size_t at;
    while ((at = received_.find(mark)) == std::string::npos)
      if (!receive_some()) return "";
    std::string out = received_.substr(0, at + mark.size());
    received_.erase(0, out.size());
    return out;
  }

  // One response with a Content-Length (or none): head and body.
  std::string receive_response() {
    std::string head = receive_until("\r\n\r\n");
    const size_t field = head.find("Content-Length: ");
    if (field == std::string::npos) return head;
    const size_t length = std::stoul(head.substr(field + 16));
    while (received_.size() < length)
      if (!receive_some()) break;
    head += received_.substr(0, length);
    received_.erase(0, length);
    return head;
  }

  bool closed_by_server() const { return closed_; }
  bool timed_out() const { return timed_out_; }

 private:
  int fd_ = -1;
  bool connected_ = false;
  bool closed_ = false;
  bool timed_out_ = false;
  std::string received_;
};

// The status code of a response, 0 when there is none.
inline int status_of(std::string_view response) {
  if (!response.starts_with("HTTP/1.1 ") || response.size() < 12) return 0;
  return std::stoi(std::string(response.substr(9, 3)));
}

inline std::string body_of(const std::string& response) {
  const size_t at = response.find("\r\n\r\n");
  return at == std::string::npos ? "" : response.substr(at + 4);
}

// The body of a chunked response, "" when the framing is broken or the last chunk is missing.
inline std::string unchunk(std::string_view body) {
  std::string out;
  while (true) {
    const size_t line = body.find("\r\n");
    if (line == std::string_view::npos) return "";
    const size_t size = std::stoul(std::string(body.substr(0, line)), nullptr, 16);
    body.remove_prefix(line + 2);
    if (body.size() < size + 2) return "";
    if (size == 0) return out;
    out += body.substr(0, size);
    body.remove_prefix(size + 2);
  }
}

inline std::string post_request(std::string_view path, std::string_view body,
                                std::string_view extra_headers = "") {
  std::string out = "POST ";
  out += path;
  out += " HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n";
  out += extra_headers;
  out += "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n";
  out += body;
  return out;
}

inline std::string get_request(std::string_view path, std::string_view extra_headers = "") {
  std::string out = "GET ";
  out += path;
  out += " HTTP/1.1\r\nHost: test\r\n";
  out += extra_headers;
  out += "\r\n";
  return out;
}

}  // namespace nibble::test
