// A small HTTP/1.1 client for our own tools: one connection, keep-alive, answers read whole or as
// they come. Plain http to a host and port; blocking, with a timeout per wait. Not for strangers'
// servers: it follows no redirects and trusts lengths only up to a cap.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "base/result.h"

namespace nibble {

struct HttpAnswer {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;                            // empty when `on_data` took it
};

struct HttpUrl {
  std::string host;
  int port = 80;
  std::string path;  // "" or "/v1"
};
// kInvalidArgument: not "http://host[:port][/path]".
Result<HttpUrl> parse_http_url(std::string_view url);

// The header line that carries an API key, for HttpClient::request(); "" for none.
// kInvalidArgument: the key holds a line break.
Result<std::string> bearer_header(std::string_view key);

class HttpClient {
 public:
  HttpClient(std::string host, int port,
             std::chrono::milliseconds timeout = std::chrono::seconds(60))
      : host_(std::move(host)), port_(port), timeout_(timeout) {}
  ~HttpClient() { close(); }
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  // `headers`: whole lines, each with its CR LF. With `on_data`, pieces of a 200 answer's body go
  // there as they arrive; it returns false to hang up, which is no error. kIo: no connection, a
  // timeout, an answer that is no HTTP or ends too early.
  Result<HttpAnswer> request(std::string_view method, std::string_view path,
                             std::string_view headers, std::string_view body,
                             const std::function<bool(std::string_view)>& on_data = {});
  void close();

 private:
  Status connect();
  Status send(std::string_view bytes);
  // More bytes into in_; false at the end of the connection.
  Result<bool> receive();

  std::string host_;
  int port_;
  std::chrono::milliseconds timeout_;
  int fd_ = -1;
  std::string in_;
};

}  // namespace nibble
