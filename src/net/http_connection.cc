// Reading, answering and timing of one connection.
#include "net/http_connection.h"

#include <algorithm>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>

#include "base/format.h"
#include "base/log.h"
#include "base/text.h"
#include "net/http_head.h"

namespace nibble {
namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;

namespace {

constexpr size_t kScratchBytes = 64 << 10;
constexpr size_t kMaxAheadBytes = 64 << 10;    // kept of a request behind the one at work
constexpr size_t kMaxLingerBytes = 1 << 20;    // discarded after an early error answer
constexpr size_t kMaxChunkHeaderBytes = 8192;  // a chunk's size line, or the trailers
constexpr auto kLingerTime = std::chrono::seconds(1);
constexpr int kSendBufferBytes = 256 << 10;  // keeps a slow reader's bytes out of the kernel, too

}  // namespace

Connection::Connection(Hub& hub, Socket socket, std::string remote_address)
    : hub_(hub),
      socket_(std::move(socket)),
      timer_(hub.io),
      remote_address_(std::move(remote_address)) {}

void Connection::start() {
  error_code ignored;
  socket_.non_blocking(true, ignored);
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
  socket_.set_option(asio::socket_base::send_buffer_size(kSendBufferBytes), ignored);
  if (hub_.tls) tls_ = std::make_unique<TlsSession>(hub_.tls, socket_.native_handle());
  set_deadline(hub_.options.header_timeout);
  watch_input();
}

void Connection::refuse() {
  state_ = State::kClosing;
  fail(503, "Too many connections; try again later.");
}

void Connection::append(const std::shared_ptr<Exchange>& exchange, const std::string& bytes,
                        bool last) {
  if (exchange != exchange_) return;  // the client has gone meanwhile
  out_ += bytes;
  answer_complete_ = last;
  flush();
}

void Connection::cut(const std::shared_ptr<Exchange>& exchange) {
  if (exchange == exchange_) close();
}

void Connection::close() {
  if (state_ == State::kGone) return;
  state_ = State::kGone;
  drop_exchange(false);
  error_code ignored;
  timer_.cancel();
  socket_.close(ignored);
  hub_.connections.erase(shared_from_this());  // callbacks still hold this object
}

// ---- reading

void Connection::watch_input() {
  if (watching_input_ || state_ == State::kGone) return;
  if (state_ == State::kWorking && in_.size() >= kMaxAheadBytes) return;
  watching_input_ = true;
  if (tls_ && tls_->has_pending())  // decrypted already: the socket will not become readable
    return asio::post(hub_.io, [self = shared_from_this()] {
      self->watching_input_ = false;
      if (self->state_ != State::kGone) self->on_readable();
    });
  const auto readiness = tls_read_wants_write_ ? Socket::wait_write : Socket::wait_read;
  socket_.async_wait(readiness, [self = shared_from_this()](error_code error) {
    self->watching_input_ = false;
    if (error || self->state_ == State::kGone) return;
    self->on_readable();
  });
}

void Connection::on_readable() {
  const size_t cap = state_ == State::kWorking ? kMaxAheadBytes - in_.size() : kScratchBytes;
  error_code error;
  const size_t num_read = read_some(cap, error);
  if (tls_write_wants_read_) {
    tls_write_wants_read_ = false;
    flush();
    if (state_ == State::kGone) return;
  }
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

void Connection::process() {
  if (state_ == State::kHead && !take_head()) return;
  if (state_ == State::kBody && !take_body()) return;
}

bool Connection::take_head() {
  while (in_.starts_with("\r\n")) in_.erase(0, 2);  // left over by sloppy clients
  const size_t end = in_.find("\r\n\r\n");
  const size_t head_bytes = end == std::string::npos ? in_.size() : end + 4;
  if (head_bytes > hub_.options.max_header_bytes)
    return fail(431,
                format("The request head is longer than {} bytes.", hub_.options.max_header_bytes));
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

bool Connection::check_head() {
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

bool Connection::take_body() {
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

void Connection::dispatch() {
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
  const bool instant = hub_.options.is_instant && hub_.options.is_instant(*request);
  const bool quick = hub_.quick_workers && hub_.options.is_quick && hub_.options.is_quick(*request);
  if (hub_.draining && !quick && !instant) {
    fail(503, "The server is shutting down.");
    return;
  }
  state_ = State::kWorking;
  clear_deadline();
  answer_complete_ = false;
  // An HTTP/1.0 client is not told about keep-alive: its answer ends with a close.
  exchange_ = std::make_shared<Exchange>(
      hub_, shared_from_this(), tls_ ? -1 : static_cast<int>(socket_.native_handle()),
      request->method == "HEAD", is_http10, !keep_alive || is_http10);
  hub_.count_in_flight(+1);
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
  if (instant) return job();
  if (!(quick ? *hub_.quick_workers : *hub_.workers).submit(std::move(job))) {
    drop_exchange(true);
    fail(503, "The server is busy; try again later.");
  }
}

// ---- answering

bool Connection::fail(int status, std::string_view message) {
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

bool Connection::fail_too_large() {
  return fail(413,
              format("The request body is larger than {} bytes.", hub_.options.max_body_bytes));
}

void Connection::flush() {
  if (watching_output_ || state_ == State::kGone) return;
  while (num_written_ < out_.size()) {
    error_code error;
    const size_t num = write_some(error);
    if (error == asio::error::would_block || error == asio::error::try_again) return watch_output();
    if (error) return close();
    num_written_ += num;
    if (exchange_) exchange_->sent(num, num_written_ == out_.size());
    if (state_ == State::kWorking) clear_deadline();
  }
  out_.clear();
  num_written_ = 0;
  if (out_.capacity() > kScratchBytes) out_.shrink_to_fit();
  if (state_ == State::kClosing) return linger();
  if (state_ == State::kWorking && answer_complete_) finish_answer();
}

void Connection::watch_output() {
  if (tls_write_wants_read_) return set_deadline(hub_.options.write_timeout);
  // What is written already goes, so that a long stream does not keep its whole past.
  out_.erase(0, num_written_);
  num_written_ = 0;
  watching_output_ = true;
  set_deadline(hub_.options.write_timeout);
  socket_.async_wait(Socket::wait_write, [self = shared_from_this()](error_code error) {
    self->watching_output_ = false;
    if (!error) self->flush();
  });
}

void Connection::finish_answer() {
  const bool close_after = exchange_->close_after() || hub_.draining;
  drop_exchange(true);
  answer_complete_ = false;
  has_answered_ = true;
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

void Connection::linger() {
  error_code error;
  if (tls_) tls_->shutdown();
  socket_.shutdown(Socket::shutdown_send, error);
  if (error) return close();
  set_deadline(std::chrono::duration_cast<std::chrono::milliseconds>(kLingerTime));
  watch_input();
}

void Connection::drop_exchange(bool complete) {
  if (!exchange_) return;
  exchange_->leave(complete);
  exchange_.reset();
  hub_.count_in_flight(-1);
}

// ---- time

void Connection::set_deadline(std::chrono::milliseconds from_now) {
  deadline_ = Clock::now() + from_now;
  if (timer_armed_ && timer_.expiry() <= deadline_) return;  // looks again when it fires
  arm_timer();
}

void Connection::arm_timer() {
  timer_armed_ = true;
  timer_.expires_at(deadline_);
  timer_.async_wait([self = shared_from_this()](error_code error) {
    if (error || self->state_ == State::kGone) return;  // cancelled or armed anew
    self->timer_armed_ = false;
    if (Clock::now() >= self->deadline_) return self->on_deadline();
    if (self->deadline_ != Clock::time_point::max()) self->arm_timer();
  });
}

void Connection::on_deadline() {
  const bool waiting_for_rest = (state_ == State::kHead && !in_.empty()) || state_ == State::kBody;
  if (!waiting_for_rest || watching_output_) return close();
  fail(408, "The request did not arrive in time.");
}

// ---- the socket

size_t Connection::read_some(size_t cap, error_code& error) {
  if (!tls_) return socket_.read_some(asio::buffer(hub_.scratch.data(), cap), error);
  TlsSession::Want want;
  const size_t num = tls_->read(hub_.scratch.data(), cap, &want);
  tls_read_wants_write_ = want == TlsSession::Want::kWrite;
  if (want == TlsSession::Want::kEnd) error = asio::error::eof;
  if (want == TlsSession::Want::kRead || tls_read_wants_write_) error = asio::error::would_block;
  return num;
}

size_t Connection::write_some(error_code& error) {
  const char* bytes = out_.data() + num_written_;
  const size_t size = out_.size() - num_written_;
  if (!tls_) return socket_.write_some(asio::buffer(bytes, size), error);
  TlsSession::Want want;
  const size_t num = tls_->write(bytes, size, &want);
  tls_write_wants_read_ = want == TlsSession::Want::kRead;
  if (want == TlsSession::Want::kEnd) error = asio::error::connection_reset;
  if (want == TlsSession::Want::kWrite || tls_write_wants_read_) error = asio::error::would_block;
  return num;
}

void Connection::abandon() {
  if (state_ == State::kWorking && exchange_ && !exchange_->begun()) {
    drop_exchange(false);
    fail(503, "The server is shutting down.");
  } else if (state_ == State::kWorking && exchange_ && !answer_complete_) {
    out_ += exchange_->farewell(hub_.options.farewell_event);
    drop_exchange(false);
    state_ = State::kClosing;
    flush();
  }
  if (state_ != State::kClosing) close();  // else it lingers: the last words must arrive
}

}  // namespace nibble
