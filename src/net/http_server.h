// An HTTP/1.1 server: bytes and sockets, no API. One io thread accepts and reads; handlers run on a
// worker pool and may block. Limits are enforced while parsing.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"

namespace nibble {

struct HttpRequest {
  std::string method;  // "POST"
  std::string path;    // "/v1/models", without the query
  std::string query;
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;
  std::string remote_address;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::map<std::string, std::string> headers;
  std::string body;
};

// The answer to one request; thread-safe. Exactly one of send() or begin_stream()...end_stream().
class HttpReply {
 public:
  virtual ~HttpReply() = default;
  virtual void send(HttpResponse response) = 0;
  // Starts a chunked response (`body` is ignored); pieces follow through write().
  virtual void begin_stream(HttpResponse head) = 0;
  // False when the client has gone or has not read for the write timeout; stop producing then.
  // Blocks while more than the per-stream cap is queued.
  virtual bool write(std::string piece) = 0;
  virtual void end_stream() = 0;
  virtual bool client_gone() const = 0;
};

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  int port = 8000;  // 0: any free port
  size_t max_header_bytes = 16 << 10;
  size_t max_body_bytes = size_t{32} << 20;
  std::chrono::seconds header_timeout{10};
  std::chrono::seconds body_timeout{30};
  std::chrono::seconds idle_timeout{5};  // keep-alive
  std::chrono::seconds write_timeout{30};
  size_t max_stream_bytes = 256 << 10;  // queued per stream
  int max_connections = 8192;
  int num_workers = 32;  // handlers at work at once
};

class HttpServer {
 public:
  using Handler = std::function<void(const HttpRequest&, HttpReply&)>;

  // Binds and starts serving. A port in use is kIo and names the process that holds it when known.
  static Result<HttpServer> start(HttpServerOptions options, Handler handler);
  HttpServer(HttpServer&&) noexcept;
  ~HttpServer();  // as stop()

  int port() const;
  // Stops accepting, waits for handlers up to `grace`, then closes what is left.
  void stop(std::chrono::milliseconds grace = std::chrono::milliseconds(0));

 private:
  struct State;
  explicit HttpServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace nibble
