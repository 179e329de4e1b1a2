// An HTTP/1.1 server: bytes and sockets, no API. One io thread accepts, reads and writes; handlers
// run on worker threads and may block. Limits are enforced while parsing, and anything two parsers
// could read differently (two lengths, folded or bare line ends, odd chunk sizes) is refused with
// 400 and a close. The doorkeeper of Boost.Beast and Asio.
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
  std::string client = {};  // who asks, once a handler has found out; "" before
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::map<std::string, std::string> headers = {};
  std::string body = {};
};

// The answer to one request; thread-safe, valid until the handler returns. Exactly one of send() or
// begin_stream()...end_stream(). A handler that returns without an answer is a 500; one that leaves
// a stream open cuts the connection, so that the client can tell.
class HttpReply {
 public:
  virtual ~HttpReply() = default;
  virtual void send(HttpResponse response) = 0;
  // Starts a chunked response (`body` is ignored); pieces follow through write().
  virtual void begin_stream(HttpResponse head) = 0;
  // False when the client has gone or has not read for the write timeout; stop producing then.
  // Blocks while more than the per-stream cap is queued.
  virtual bool write(std::string piece) = 0;
  // Whether write() would return at once, for a thread that serves many replies.
  virtual bool has_room() const { return true; }
  virtual void end_stream() = 0;
  // A client that closes its sending half counts as gone: a close cannot be told from it.
  virtual bool client_gone() const = 0;
  // Calls `callback` once, on the io thread, when the client goes before the answer is complete (at
  // once if it has gone already); never after the handler has returned. It must be quick and must
  // not call this reply. An empty function takes the callback back.
  virtual void on_client_gone(std::function<void()> callback) = 0;
  // A fact about the answer for whoever logs it (tokens, reason...); nobody by default.
  virtual void note(std::string_view name, std::string value) {
    (void)name;
    (void)value;
  }
};

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  int port = 8000;                   // 0: any free port
  std::string uds = {};              // a Unix socket's path instead of host and port
  std::string tls_certificate = {};  // PEM files; both or neither
  std::string tls_key = {};
  size_t max_header_bytes = 16 << 10;
  size_t max_header_count = 128;
  size_t max_body_bytes = size_t{32} << 20;
  std::chrono::milliseconds header_timeout{10'000};  // from the first byte, or the connect
  std::chrono::milliseconds body_timeout{30'000};    // plus a second per 64 KiB received
  std::chrono::milliseconds idle_timeout{5'000};     // keep-alive
  std::chrono::milliseconds write_timeout{30'000};   // without progress
  size_t max_stream_bytes = 256 << 10;               // queued per stream
  int max_connections = 8192;                        // more get 503 and a close
  int num_workers = 512;  // handlers at work at once; threads start on demand
  int max_queued = 2048;  // requests waiting for a worker; more get 503
  // Requests that must be answered while all workers are busy (health checks) run on two threads of
  // their own. Null: none.
  std::function<bool(const HttpRequest&)> is_quick;
  // Requests whose handler neither waits nor computes (signs of life) run on the io thread itself,
  // however many others wait for a thread. Null: none.
  std::function<bool(const HttpRequest&)> is_instant = nullptr;
  // The body of answers the server itself gives (400, 408, 413, 431, 503...). Null: plain text.
  std::function<HttpResponse(int status, std::string_view message)> error_response;
  // What an event stream that stop() cuts short says last, framed ("data: ...\n\n"). "": nothing.
  std::string farewell_event = {};
};

class HttpServer {
 public:
  using Handler = std::function<void(HttpRequest&, HttpReply&)>;

  // Binds and starts serving. A port in use is kIo and names the process that holds it when known.
  static Result<HttpServer> start(HttpServerOptions options, Handler handler);
  HttpServer(HttpServer&&) noexcept;
  ~HttpServer();  // as stop()

  int port() const;
  // New requests get 503 (quick ones are still answered); those at work may finish within `grace`;
  // then event streams get the farewell event, requests without an answer 503, and all is closed.
  void stop(std::chrono::milliseconds grace = std::chrono::milliseconds(0));
  // Any thread, while another is in stop(): the grace is over now.
  void hurry();
  // Reads the TLS files again; connections made from now on use them. On an error the old ones
  // stay.
  Status reload_tls();

 private:
  struct State;
  explicit HttpServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace nibble
