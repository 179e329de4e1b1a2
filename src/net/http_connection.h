// One connection of the HTTP server, a state machine on the io thread:
//
//   head -> body -> working (a handler answers) -> head ...      any fault -> closing -> gone
//
// Reads and writes are non-blocking calls after a readiness wait, into buffers shared by all
// connections, so an idle connection costs a few hundred bytes. While a handler works the socket
// stays watched: bytes are kept for later (up to a cap), an end of file means the client has gone.
// The parser of Beast sees a head only after head_defect() found it unambiguous.
#pragma once

#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "net/http_exchange.h"

namespace nibble {

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  using Socket = boost::asio::generic::stream_protocol::socket;

  Connection(Hub& hub, Socket socket, std::string remote_address);

  void start();
  // For a connection over the limit: an answer if the kernel takes it at once, then the end.
  void refuse();
  // Between two requests. Not before the first: it may be on its way, and a close would reset it.
  bool idle() const { return state_ == State::kHead && in_.empty() && has_answered_; }
  // Appends bytes of `exchange`'s answer; `last` completes it.
  void append(const std::shared_ptr<Exchange>& exchange, const std::string& bytes, bool last);
  // A handler returned in the middle of its stream.
  void cut(const std::shared_ptr<Exchange>& exchange);
  void close();
  // The time is up: an unfinished event stream ends with the farewell event, a request without an
  // answer gets 503, the rest is cut.
  void abandon();

 private:
  using Clock = std::chrono::steady_clock;
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;
  enum class State { kHead, kBody, kWorking, kClosing, kGone };

  // ---- reading
  void watch_input();
  void on_readable();
  // Takes complete requests out of in_ until one is at work or bytes are missing.
  void process();
  bool take_head();
  bool check_head();
  bool take_body();
  void dispatch();

  // ---- answering
  // Answers with an error of the server's own and closes after it. Always false.
  bool fail(int status, std::string_view message);
  bool fail_too_large();
  void flush();
  void watch_output();
  void finish_answer();
  // Closing with unread input would reset the connection and may destroy the answer on its way:
  // say goodbye, then read and drop for a moment.
  void linger();
  void drop_exchange(bool complete);

  // ---- time
  void set_deadline(std::chrono::milliseconds from_now);
  void clear_deadline() { deadline_ = Clock::time_point::max(); }
  void arm_timer();
  void on_deadline();

  // ---- the socket, encrypted or not; would_block when it is not ready
  size_t read_some(size_t cap, boost::system::error_code& error);
  size_t write_some(boost::system::error_code& error);

  Hub& hub_;
  Socket socket_;
  std::unique_ptr<TlsSession> tls_;
  bool tls_read_wants_write_ = false;
  bool tls_write_wants_read_ = false;
  boost::asio::steady_timer timer_;
  std::string remote_address_;
  State state_ = State::kHead;
  std::string in_;   // read, not yet parsed
  std::string out_;  // to be written; its first num_written_ bytes are
  size_t num_written_ = 0;
  bool watching_input_ = false;
  bool watching_output_ = false;
  bool timer_armed_ = false;
  bool answer_complete_ = false;
  bool has_answered_ = false;
  Clock::time_point deadline_ = Clock::time_point::max();
  Clock::time_point body_start_;
  size_t num_body_read_ = 0;
  size_t num_lingered_ = 0;
  std::optional<Parser> parser_;
  std::shared_ptr<Exchange> exchange_;
};

}  // namespace nibble
