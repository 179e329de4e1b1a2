// One request at work: the reply a handler holds, and the link back to its connection. Handlers
// call it from worker threads; the connection calls sent() and leave() from the io thread. A piece
// of a stream goes to the socket from the worker itself while nothing waits in front of it: a token
// then wakes one thread of ours, not two (bench_server_overhead). Internal
// to the HTTP server, as is the hub that its connections share.
#pragma once

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_set>
#include <vector>

#include "net/http_server.h"
#include "net/tls.h"
#include "net/worker_pool.h"

namespace nibble {

class Connection;

// What connections share; lives on the io thread but for the in-flight count.
struct Hub {
  HttpServerOptions options;
  HttpServer::Handler handler;
  boost::asio::io_context io{1};
  std::unordered_set<std::shared_ptr<Connection>> connections;
  std::vector<char> scratch = std::vector<char>(size_t{64} << 10);
  std::shared_ptr<TlsContext> tls;  // null: plain
  std::unique_ptr<WorkerPool> workers;
  std::unique_ptr<WorkerPool> quick_workers;
  bool draining = false;

  std::mutex drain_mutex;
  std::condition_variable drained;
  int num_in_flight = 0;  // under drain_mutex: requests whose answer is not fully written
  void count_in_flight(int change) {
    std::lock_guard lock(drain_mutex);
    num_in_flight += change;
    if (num_in_flight == 0) drained.notify_all();
  }
};

class Exchange final : public HttpReply, public std::enable_shared_from_this<Exchange> {
 public:
  // `socket`: what pieces may be written to directly, -1 for none (TLS keeps state of its own).
  Exchange(Hub& hub, std::shared_ptr<Connection> connection, int socket, bool is_head,
           bool is_http10, bool close)
      : hub_(hub),
        connection_(std::move(connection)),
        socket_(socket),
        is_head_(is_head),
        is_http10_(is_http10),
        close_(close) {}

  void send(HttpResponse response) override;
  void begin_stream(HttpResponse head) override;
  bool write(std::string piece) override;
  bool has_room() const override;
  void end_stream() override;
  bool client_gone() const override { return gone_; }
  void on_client_gone(std::function<void()> callback) override;
  // Worker: the handler has returned.
  void handler_returned();
  // Io thread: that many bytes have left for the kernel; `all`: none of the connection's are left.
  void sent(size_t num_bytes, bool all);
  // Io thread: the client is not there any more (or, harmlessly, has its whole answer).
  void leave(bool complete);
  bool close_after() const { return close_; }
  // Io thread, right before leave(): the bytes that end an unfinished event stream with `event`, ""
  // when this is none or a piece of it is on its way.
  std::string farewell(const std::string& event);
  bool begun() const { return begun_; }

 private:
  void post(std::string bytes, bool last);
  // Under mutex_: how much of `bytes` the socket took.
  size_t write_directly(std::string_view bytes);

  Hub& hub_;
  const std::shared_ptr<Connection> connection_;
  const int socket_;  // open while gone_ is false, which leave() changes under mutex_
  const bool is_head_;
  const bool is_http10_;
  std::atomic<bool> close_;
  std::atomic<bool> begun_{false};
  std::atomic<bool> streaming_{false};
  std::atomic<bool> ended_{false};
  std::atomic<bool> gone_{false};
  std::atomic<bool> is_event_stream_{false};
  mutable std::mutex mutex_;
  std::condition_variable room_;
  size_t num_queued_ = 0;
  bool is_cut_ = false;   // a part of a piece went to the socket, the rest is queued
  bool drained_ = false;  // the connection has nothing left to write
  std::function<void()> on_gone_;
};

}  // namespace nibble
