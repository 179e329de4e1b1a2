// One io thread, a state machine per connection:
//
//   head -> body -> working (a handler answers) -> head ...      any fault -> closing -> gone
//
// Reads and writes are non-blocking calls after a readiness wait, into buffers shared by all
// connections, so an idle connection costs a few hundred bytes. While a handler works the socket
// stays watched: bytes are kept for later (up to a cap), an end of file means the client has gone.
// The parser of Beast sees a head only after head_defect() found it unambiguous.
#include "net/http_server.h"

#include <algorithm>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_set>

#include "base/format.h"
#include "base/log.h"
#include "base/text.h"
#include "net/http_head.h"
#include "net/port_holder.h"
#include "net/worker_pool.h"

namespace nibble {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;
using tcp = asio::ip::tcp;
using Clock = std::chrono::steady_clock;
using Parser = http::request_parser<http::string_body>;

constexpr size_t kScratchBytes = 64 << 10;
constexpr size_t kMaxAheadBytes = 64 << 10;    // kept of a request behind the one at work
constexpr size_t kMaxLingerBytes = 1 << 20;    // discarded after an early error answer
constexpr size_t kMaxChunkHeaderBytes = 8192;  // a chunk's size line, or the trailers
constexpr auto kLingerTime = std::chrono::seconds(1);
constexpr int kSendBufferBytes = 256 << 10;  // keeps a slow reader's bytes out of the kernel, too

class Connection;

// What connections share; lives on the io thread but for the atomics.
struct Hub {
  HttpServerOptions options;
  HttpServer::Handler handler;
  asio::io_context io{1};
  std::unordered_set<std::shared_ptr<Connection>> connections;
  std::vector<char> scratch = std::vector<char>(kScratchBytes);
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

// One request at work: the reply a handler holds, and the link back to its connection. Handlers
// call it from worker threads; the connection calls sent() and leave() from the io thread.
class Exchange final : public HttpReply, public std::enable_shared_from_this<Exchange> {
 public:
  Exchange(Hub& hub, std::shared_ptr<Connection> connection, bool is_head, bool is_http10,
           bool close)
      : hub_(hub),
        connection_(std::move(connection)),
        is_head_(is_head),
        is_http10_(is_http10),
        close_(close) {}

  void send(HttpResponse response) override {
    if (begun_.exchange(true)) return;
    const bool bodiless = response.status == 204 || response.status == 304;
    std::string bytes = response_head(
        response, {.has_length = !bodiless, .length = response.body.size(), .close = close_});
    if (!is_head_ && !bodiless) bytes += response.body;
    ended_ = true;
    post(std::move(bytes), true);
  }

  void begin_stream(HttpResponse head) override {
    if (begun_.exchange(true)) return;
    streaming_ = true;
    if (is_http10_) close_ = true;
    post(response_head(head, {.chunked = !is_http10_, .has_length = false, .close = close_}),
         false);
  }

  bool write(std::string piece) override {
    if (!streaming_ || ended_ || client_gone()) return false;
    if (piece.empty() || is_head_) return true;
    {
      std::unique_lock lock(mutex_);
      room_.wait(lock, [this] { return gone_ || num_queued_ < hub_.options.max_stream_bytes; });
      if (gone_) return false;
    }
    if (!is_http10_) piece = format("{:x}\r\n", piece.size()) + piece + "\r\n";
    post(std::move(piece), false);
    return true;
  }

  void end_stream() override {
    if (!streaming_ || ended_.exchange(true)) return;
    post(is_http10_ || is_head_ ? "" : "0\r\n\r\n", true);
  }

  bool client_gone() const override { return gone_; }

  void on_client_gone(std::function<void()> callback) override {
    std::lock_guard lock(mutex_);
    if (gone_ && callback) {
      callback();
    } else {
      on_gone_ = std::move(callback);
    }
  }

  // Worker: the handler has returned.
  void handler_returned();
  // Io thread: that many bytes have left for the kernel.
  void sent(size_t num_bytes) {
    std::lock_guard lock(mutex_);
    num_queued_ -= std::min(num_queued_, num_bytes);
    if (num_queued_ < hub_.options.max_stream_bytes) room_.notify_all();
  }
  // Io thread: the client is not there any more (or, harmlessly, has its whole answer).
  void leave(bool complete) {
    std::lock_guard lock(mutex_);
    gone_ = true;
    room_.notify_all();
    if (on_gone_ && !complete) on_gone_();
    on_gone_ = nullptr;
  }
  bool close_after() const { return close_; }

 private:
  void post(std::string bytes, bool last);

  Hub& hub_;
  const std::shared_ptr<Connection> connection_;
  const bool is_head_;
  const bool is_http10_;
  std::atomic<bool> close_;
  std::atomic<bool> begun_{false};
  std::atomic<bool> streaming_{false};
  std::atomic<bool> ended_{false};
  std::atomic<bool> gone_{false};
  std::mutex mutex_;
  std::condition_variable room_;
  size_t num_queued_ = 0;
  std::function<void()> on_gone_;
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(Hub& hub, tcp::socket socket)
      : hub_(hub), socket_(std::move(socket)), timer_(hub.io) {}

  void start() {
    error_code ignored;
    socket_.non_blocking(true, ignored);
    socket_.set_option(tcp::no_delay(true), ignored);
    socket_.set_option(asio::socket_base::send_buffer_size(kSendBufferBytes), ignored);
    const auto endpoint = socket_.remote_endpoint(ignored);
    remote_address_ = endpoint.address().to_string();
    set_deadline(hub_.options.header_timeout);
    watch_input();
  }

  // For a connection over the limit: an answer if the kernel takes it at once, then the end.
  void refuse() {
    state_ = State::kClosing;
    fail(503, "Too many connections; try again later.");
  }

  bool idle() const { return state_ == State::kHead && in_.empty(); }

  // Appends bytes of `exchange`'s answer; `last` completes it.
  void append(const std::shared_ptr<Exchange>& exchange, const std::string& bytes, bool last) {
    if (exchange != exchange_) return;  // the client has gone meanwhile
    out_ += bytes;
    answer_complete_ = last;
    flush();
  }

  // A handler returned in the middle of its stream.
  void cut(const std::shared_ptr<Exchange>& exchange) {
    if (exchange == exchange_) close();
  }

  void close() {
    if (state_ == State::kGone) return;
    state_ = State::kGone;
    drop_exchange(false);
    error_code ignored;
    timer_.cancel();
    socket_.close(ignored);
    hub_.connections.erase(shared_from_this());  // callbacks still hold this object
  }

 private:
  enum class State { kHead, kBody, kWorking, kClosing, kGone };

  // ---- reading

  void watch_input() {
    if (watching_input_ || state_ == State::kGone) return;
    if (state_ == State::kWorking && in_.size() >= kMaxAheadBytes) return;
    watching_input_ = true;
    socket_.async_wait(tcp::socket::wait_read, [self = shared_from_this()](error_code error) {
      self->watching_input_ = false;
      if (error || self->state_ == State::kGone) return;
      self->on_readable();
    });
  }

  void on_readable() {
    const size_t cap = state_ == State::kWorking ? kMaxAheadBytes - in_.size() : kScratchBytes;
    error_code error;
    const size_t num_read = socket_.read_some(asio::buffer(hub_.scratch.data(), cap), error);
    if (error == asio::error::would_block || error == asio::error::try_again) return watch_input();
    if (error) return close();  // end of file or reset: with or without a request at work
    if (state_ == State::kClosing) {
      num_lingered_ += num_read;
      if (num_lingered_ > kMaxLingerBytes) return close();
      return watch_input();
    }
    if (state_ == State::kHead && in_.empty()) set_deadline(hub_.options.header_timeout);
    in_.append(hub_.scratch.data(), num_read);
    num_body_read_ += num_read;
    process();
    watch_input();
  }

  // Takes complete requests out of in_ until one is at work or bytes are missing.
  void process() {
    if (state_ == State::kHead && !take_head()) return;
    if (state_ == State::kBody && !take_body()) return;
  }

  bool take_head() {
    while (in_.starts_with("\r\n")) in_.erase(0, 2);  // left over by sloppy clients
    const size_t end = in_.find("\r\n\r\n");
    const size_t head_bytes = end == std::string::npos ? in_.size() : end + 4;
    if (head_bytes > hub_.options.max_header_bytes)
      return fail(
          431, format("The request head is longer than {} bytes.", hub_.options.max_header_bytes));
    if (end == std::string::npos) {
      // A head of bare line feeds would otherwise only be noticed at the timeout.
      if (in_.find("\n\n") != std::string::npos)
        return fail(400, "Bad request: a line that does not end in CR LF.");
      return false;
    }
    const std::string head = in_.substr(0, head_bytes);
    in_.erase(0, head_bytes);
    if (std::string defect = head_defect(head); !defect.empty())
      return fail(400, "Bad request: " + defect + ".");
    if (static_cast<size_t>(std::ranges::count(head, '\n')) > hub_.options.max_header_count + 2)
      return fail(431, format("More than {} header fields.", hub_.options.max_header_count));

    parser_.emplace();
    parser_->header_limit(static_cast<uint32_t>(hub_.options.max_header_bytes + 1));
    parser_->body_limit(hub_.options.max_body_bytes);
    parser_->eager(false);
    error_code error;
    parser_->put(asio::buffer(head), error);
    if (error == http::error::need_more) error = {};
    if (error == http::error::body_limit) return fail_too_large();
    if (error == http::error::bad_version) return fail(505, "Only HTTP/1.1 is spoken here.");
    if (error) return fail(400, "Bad request: " + error.message() + ".");
    return check_head();
  }

  bool check_head() {
    const auto& message = parser_->get();
    const unsigned version = message.version();
    if (version != 10 && version != 11) return fail(505, "Only HTTP/1.1 is spoken here.");
    const auto num_lengths = message.count(http::field::content_length);
    const auto num_codings = message.count(http::field::transfer_encoding);
    if (num_lengths > 1) return fail(400, "Bad request: more than one Content-Length.");
    if (num_lengths > 0 && num_codings > 0)
      return fail(400, "Bad request: both Content-Length and Transfer-Encoding.");
    if (num_lengths == 1) {
      const auto length = message[http::field::content_length];
      if (length.empty() || length.find_first_not_of("0123456789") != length.npos)
        return fail(400, "Bad request: Content-Length is not a number.");
    }
    if (num_codings > 0 &&
        (num_codings > 1 || version == 10 ||
         ascii_lower({message[http::field::transfer_encoding].data(),
                      message[http::field::transfer_encoding].size()}) != "chunked"))
      return fail(400, "Bad request: Transfer-Encoding is not exactly \"chunked\".");
    const auto num_hosts = message.count(http::field::host);
    if (num_hosts > 1 || (version == 11 && num_hosts == 0))
      return fail(400, "Bad request: there must be one Host field.");
    if (const auto length = parser_->content_length();
        length && *length > hub_.options.max_body_bytes)
      return fail_too_large();
    if (message.count(http::field::expect) > 0) {
      const auto expect = message[http::field::expect];
      if (ascii_lower({expect.data(), expect.size()}) != "100-continue")
        return fail(417, "Only \"Expect: 100-continue\" is understood.");
      if (in_.empty() && !parser_->is_done()) {
        out_ += "HTTP/1.1 100 Continue\r\n\r\n";
        flush();
        if (state_ == State::kGone) return false;
      }
    }
    parser_->eager(true);
    state_ = State::kBody;
    body_start_ = Clock::now();
    num_body_read_ = in_.size();
    return true;
  }

  bool take_body() {
    while (!parser_->is_done()) {
      if (in_.empty()) break;
      error_code error;
      const size_t taken = parser_->put(asio::buffer(in_), error);
      in_.erase(0, taken);
      if (error == http::error::need_more) {
        if (in_.size() > kMaxChunkHeaderBytes)
          return fail(400, "Bad request: a chunk header or trailer is too long.");
        break;
      }
      if (error == http::error::body_limit) return fail_too_large();
      if (error) return fail(400, "Bad request: " + error.message() + ".");
      if (taken == 0 && !parser_->is_done()) break;
    }
    if (!parser_->is_done()) {
      const auto earned = std::chrono::milliseconds(num_body_read_ / 64);  // 64 KiB a second
      set_deadline(std::max(
          std::chrono::milliseconds(0),
          hub_.options.body_timeout + earned -
              std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - body_start_)));
      return false;
    }
    dispatch();
    return true;
  }

  void dispatch() {
    auto message = parser_->release();
    auto request = std::make_shared<HttpRequest>();
    request->method = std::string(message.method_string());
    request->remote_address = remote_address_;
    for (const auto& field : message) {
      std::string& value =
          request->headers[ascii_lower({field.name_string().data(), field.name_string().size()})];
      if (!value.empty()) value += ", ";
      value += std::string_view(field.value().data(), field.value().size());
    }
    const bool keep_alive = message.keep_alive() && !hub_.draining;
    const bool is_http10 = message.version() == 10;
    const std::string_view target(message.target().data(), message.target().size());
    if (!split_target(target, &request->path, &request->query)) {
      fail(400, "Bad request: the request target is no path.");
      return;
    }
    request->body = std::move(message.body());
    parser_.reset();
    if (hub_.draining) {
      fail(503, "The server is shutting down.");
      return;
    }
    state_ = State::kWorking;
    clear_deadline();
    answer_complete_ = false;
    // An HTTP/1.0 client is not told about keep-alive: its answer ends with a close.
    exchange_ = std::make_shared<Exchange>(hub_, shared_from_this(), request->method == "HEAD",
                                           is_http10, !keep_alive || is_http10);
    hub_.count_in_flight(+1);
    const bool quick =
        hub_.quick_workers && hub_.options.is_quick && hub_.options.is_quick(*request);
    auto job = [exchange = exchange_, request, &hub = hub_] {
      if (!exchange->client_gone()) {
        try {
          hub.handler(*request, *exchange);
        } catch (const std::exception& error) {
          log_error("handler failed path={} what={}", request->path, error.what());
        }
      }
      exchange->handler_returned();
    };
    if (!(quick ? *hub_.quick_workers : *hub_.workers).submit(std::move(job))) {
      drop_exchange(true);
      fail(503, "The server is busy; try again later.");
    }
  }

  // ---- answering

  // Answers with an error of the server's own and closes after it. Always false.
  bool fail(int status, std::string_view message) {
    HttpResponse response;
    if (hub_.options.error_response) {
      response = hub_.options.error_response(status, message);
    } else {
      response.content_type = "text/plain; charset=utf-8";
      response.body = std::string(message) + "\n";
    }
    response.status = status;
    if (status == 503 || status == 429) response.headers.emplace("Retry-After", "1");
    parser_.reset();
    in_.clear();
    state_ = State::kClosing;
    out_ += response_head(response, {.length = response.body.size(), .close = true});
    out_ += response.body;
    flush();
    return false;
  }
  bool fail_too_large() {
    return fail(413,
                format("The request body is larger than {} bytes.", hub_.options.max_body_bytes));
  }

  void flush() {
    if (watching_output_ || state_ == State::kGone) return;
    while (num_written_ < out_.size()) {
      error_code error;
      const size_t num = socket_.write_some(
          asio::buffer(out_.data() + num_written_, out_.size() - num_written_), error);
      if (error == asio::error::would_block || error == asio::error::try_again)
        return watch_output();
      if (error) return close();
      num_written_ += num;
      if (exchange_) exchange_->sent(num);
      if (state_ == State::kWorking) clear_deadline();
    }
    out_.clear();
    num_written_ = 0;
    if (out_.capacity() > kScratchBytes) out_.shrink_to_fit();
    if (state_ == State::kClosing) return linger();
    if (state_ == State::kWorking && answer_complete_) finish_answer();
  }

  void watch_output() {
    // What is written already goes, so that a long stream does not keep its whole past.
    out_.erase(0, num_written_);
    num_written_ = 0;
    watching_output_ = true;
    set_deadline(hub_.options.write_timeout);
    socket_.async_wait(tcp::socket::wait_write, [self = shared_from_this()](error_code error) {
      self->watching_output_ = false;
      if (!error) self->flush();
    });
  }

  void finish_answer() {
    const bool close_after = exchange_->close_after() || hub_.draining;
    drop_exchange(true);
    answer_complete_ = false;
    if (close_after) {
      state_ = State::kClosing;
      return linger();
    }
    state_ = State::kHead;
    if (in_.empty()) {
      set_deadline(hub_.options.idle_timeout);
      if (in_.capacity() > 4096) in_.shrink_to_fit();
      watch_input();
      return;
    }
    // The next request has arrived already; by way of the queue, so that a long pipeline of short
    // requests does not recurse.
    set_deadline(hub_.options.header_timeout);
    asio::post(hub_.io, [self = shared_from_this()] {
      if (self->state_ != State::kHead) return;
      self->process();
      self->watch_input();
    });
  }

  // Closing with unread input would reset the connection and may destroy the answer on its way:
  // say goodbye, then read and drop for a moment.
  void linger() {
    error_code error;
    socket_.shutdown(tcp::socket::shutdown_send, error);
    if (error) return close();
    set_deadline(std::chrono::duration_cast<std::chrono::milliseconds>(kLingerTime));
    watch_input();
  }

  void drop_exchange(bool complete) {
    if (!exchange_) return;
    exchange_->leave(complete);
    exchange_.reset();
    hub_.count_in_flight(-1);
  }

  // ---- time

  void set_deadline(std::chrono::milliseconds from_now) {
    deadline_ = Clock::now() + from_now;
    if (timer_armed_ && timer_.expiry() <= deadline_) return;  // looks again when it fires
    arm_timer();
  }
  void clear_deadline() { deadline_ = Clock::time_point::max(); }

  void arm_timer() {
    timer_armed_ = true;
    timer_.expires_at(deadline_);
    timer_.async_wait([self = shared_from_this()](error_code error) {
      if (error || self->state_ == State::kGone) return;  // cancelled or armed anew
      self->timer_armed_ = false;
      if (Clock::now() >= self->deadline_) return self->on_deadline();
      if (self->deadline_ != Clock::time_point::max()) self->arm_timer();
    });
  }

  void on_deadline() {
    const bool waiting_for_rest =
        (state_ == State::kHead && !in_.empty()) || state_ == State::kBody;
    if (!waiting_for_rest || watching_output_) return close();
    fail(408, "The request did not arrive in time.");
  }

  Hub& hub_;
  tcp::socket socket_;
  asio::steady_timer timer_;
  std::string remote_address_;
  State state_ = State::kHead;
  std::string in_;   // read, not yet parsed
  std::string out_;  // to be written; its first num_written_ bytes are
  size_t num_written_ = 0;
  bool watching_input_ = false;
  bool watching_output_ = false;
  bool timer_armed_ = false;
  bool answer_complete_ = false;
  Clock::time_point deadline_ = Clock::time_point::max();
  Clock::time_point body_start_;
  size_t num_body_read_ = 0;
  size_t num_lingered_ = 0;
  std::optional<Parser> parser_;
  std::shared_ptr<Exchange> exchange_;
};

void Exchange::post(std::string bytes, bool last) {
  {
    std::lock_guard lock(mutex_);
    if (gone_) return;
    num_queued_ += bytes.size();
  }
  asio::post(hub_.io, [self = shared_from_this(), bytes = std::move(bytes), last] {
    self->connection_->append(self, bytes, last);
  });
}

void Exchange::handler_returned() {
  on_client_gone(nullptr);
  if (ended_) return;
  if (!begun_) {
    HttpResponse response;
    response.status = 500;
    if (hub_.options.error_response) {
      response = hub_.options.error_response(500, "Internal server error.");
    } else {
      response.content_type = "text/plain; charset=utf-8";
      response.body = "Internal server error.\n";
    }
    return send(std::move(response));
  }
  asio::post(hub_.io, [self = shared_from_this()] { self->connection_->cut(self); });
}

}  // namespace

struct HttpServer::State {
  Hub hub;
  tcp::acceptor acceptor{hub.io};
  asio::steady_timer accept_pause{hub.io};
  std::thread io_thread;
  int port = 0;
  std::mutex stop_mutex;
  bool stopped = false;

  Status bind() {
    const HttpServerOptions& options = hub.options;
    error_code error;
    tcp::endpoint endpoint;
    if (const auto address = asio::ip::make_address(options.host, error); !error) {
      endpoint = {address, static_cast<uint16_t>(options.port)};
    } else {
      tcp::resolver resolver(hub.io);
      const auto found = resolver.resolve(options.host, std::to_string(options.port),
                                          tcp::resolver::passive, error);
      if (error || found.empty())
        return make_error(ErrorCode::kIo, "host {}: {}; give an address of this machine",
                          options.host, error.message());
      endpoint = found.begin()->endpoint();
      for (const auto& entry : found)  // "localhost" means 127.0.0.1 to most clients
        if (entry.endpoint().address().is_v4()) {
          endpoint = entry.endpoint();
          break;
        }
    }
    acceptor.open(endpoint.protocol(), error);
    if (!error) acceptor.set_option(asio::socket_base::reuse_address(true), error);
    if (!error) acceptor.bind(endpoint, error);
    if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
    if (error == asio::error::address_in_use) {
      const std::string holder = port_holder(options.port);
      return make_error(ErrorCode::kIo, "port {} on {} is in use{}; stop it or choose another port",
                        options.port, options.host, holder.empty() ? "" : " by " + holder);
    }
    if (error)
      return make_error(ErrorCode::kIo, "cannot listen on {}:{}: {}", options.host, options.port,
                        error.message());
    acceptor.non_blocking(true, error);
    port = acceptor.local_endpoint(error).port();
    return {};
  }

  void accept() {
    acceptor.async_accept([this](error_code error, tcp::socket socket) {
      if (error == asio::error::operation_aborted || !acceptor.is_open()) return;
      if (error) {  // out of descriptors, mostly: wait until some are free
        accept_pause.expires_after(std::chrono::milliseconds(50));
        accept_pause.async_wait([this](error_code stopped) {
          if (!stopped) accept();
        });
        return;
      }
      auto connection = std::make_shared<Connection>(hub, std::move(socket));
      const auto max_connections = static_cast<size_t>(hub.options.max_connections);
      const bool full = hub.connections.size() >= max_connections;
      // Refusals linger for a second; under a flood of them even that is too much.
      if (hub.connections.size() >= max_connections + 256) return accept();
      hub.connections.insert(connection);
      connection->start();
      if (full) connection->refuse();
      accept();
    });
  }

  // Runs `action` on the io thread and waits for it.
  void on_io_thread(const std::function<void()>& action) {
    std::mutex mutex;
    std::condition_variable done;
    bool finished = false;
    asio::post(hub.io, [&] {
      action();
      std::lock_guard lock(mutex);
      finished = true;
      done.notify_all();
    });
    std::unique_lock lock(mutex);
    done.wait(lock, [&] { return finished; });
  }

  void close_connections(bool idle_only) {
    const std::vector<std::shared_ptr<Connection>> all(hub.connections.begin(),
                                                       hub.connections.end());
    for (const auto& connection : all)
      if (!idle_only || connection->idle()) connection->close();
  }

  void stop(std::chrono::milliseconds grace) {
    std::lock_guard once(stop_mutex);
    if (stopped || !io_thread.joinable()) return;
    stopped = true;
    on_io_thread([this] {
      hub.draining = true;
      close_connections(true);
    });
    {
      std::unique_lock lock(hub.drain_mutex);
      hub.drained.wait_for(lock, grace, [this] { return hub.num_in_flight == 0; });
    }
    on_io_thread([this] {
      error_code ignored;
      acceptor.close(ignored);
      accept_pause.cancel();
      close_connections(false);
    });
    hub.workers->stop();
    hub.quick_workers->stop();
    hub.io.stop();
    io_thread.join();
  }
};

Result<HttpServer> HttpServer::start(HttpServerOptions options, Handler handler) {
  auto state = std::make_unique<State>();
  state->hub.options = std::move(options);
  state->hub.handler = std::move(handler);
  if (state->hub.options.port < 0 || state->hub.options.port > 65535)
    return make_error(ErrorCode::kInvalidArgument, "port {}: must be 0 to 65535",
                      state->hub.options.port);
  NB_TRY_STATUS(state->bind());
  state->hub.workers =
      std::make_unique<WorkerPool>(state->hub.options.num_workers, state->hub.options.max_queued);
  state->hub.quick_workers = std::make_unique<WorkerPool>(2, state->hub.options.max_queued);
  state->accept();
  state->io_thread = std::thread([io = &state->hub.io] {
    const auto work = asio::make_work_guard(*io);
    io->run();
  });
  return HttpServer(std::move(state));
}

HttpServer::HttpServer(std::unique_ptr<State> state) : state_(std::move(state)) {}
HttpServer::HttpServer(HttpServer&&) noexcept = default;
HttpServer::~HttpServer() {
  if (state_) state_->stop(std::chrono::milliseconds(0));
}

int HttpServer::port() const {
  return state_->port;
}

void HttpServer::stop(std::chrono::milliseconds grace) {
  state_->stop(grace);
}

}  // namespace nibble
