// Answers travel from worker threads to the io thread as posted pieces of bytes.
#include "net/http_exchange.h"

#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/post.hpp>

#include "base/format.h"
#include "net/http_connection.h"
#include "net/http_head.h"

namespace nibble {
namespace asio = boost::asio;

void Exchange::send(HttpResponse response) {
  if (begun_.exchange(true)) return;
  const bool bodiless = response.status == 204 || response.status == 304;
  std::string bytes = response_head(
      response, {.has_length = !bodiless, .length = response.body.size(), .close = close_});
  if (!is_head_ && !bodiless) bytes += response.body;
  ended_ = true;
  post(std::move(bytes), true);
}

void Exchange::begin_stream(HttpResponse head) {
  if (begun_.exchange(true)) return;
  streaming_ = true;
  is_event_stream_ = head.content_type.starts_with("text/event-stream");
  if (is_http10_) close_ = true;
  post(response_head(head, {.chunked = !is_http10_, .has_length = false, .close = close_}), false);
}

bool Exchange::write(std::string piece) {
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

bool Exchange::has_room() const {
  std::lock_guard lock(mutex_);
  return gone_ || num_queued_ < hub_.options.max_stream_bytes;
}

void Exchange::end_stream() {
  if (!streaming_ || ended_.exchange(true)) return;
  post(is_http10_ || is_head_ ? "" : "0\r\n\r\n", true);
}

void Exchange::on_client_gone(std::function<void()> callback) {
  std::lock_guard lock(mutex_);
  if (gone_ && callback) {
    callback();
  } else {
    on_gone_ = std::move(callback);
  }
}

void Exchange::sent(size_t num_bytes, bool all) {
  std::lock_guard lock(mutex_);
  num_queued_ -= std::min(num_queued_, num_bytes);
  drained_ = all && num_queued_ == 0;
  if (drained_) is_cut_ = false;
  if (num_queued_ < hub_.options.max_stream_bytes) room_.notify_all();
}

void Exchange::leave(bool complete) {
  std::lock_guard lock(mutex_);
  gone_ = true;
  room_.notify_all();
  if (on_gone_ && !complete) on_gone_();
  on_gone_ = nullptr;
}

std::string Exchange::farewell(const std::string& event) {
  std::lock_guard lock(mutex_);
  gone_ = true;  // from here on no piece goes to the socket beside the connection's back
  if (!is_event_stream_ || ended_ || is_head_ || event.empty() || is_cut_) return "";
  return is_http10_ ? event : format("{:x}\r\n{}\r\n0\r\n\r\n", event.size(), event);
}

void Exchange::post(std::string bytes, bool last) {
  {
    std::lock_guard lock(mutex_);
    if (gone_) return;
    if (!last && drained_) {
      const size_t num = write_directly(bytes);
      if (num == bytes.size()) return;
      is_cut_ = num > 0;
      bytes.erase(0, num);
    }
    num_queued_ += bytes.size();
    drained_ = false;
  }
  asio::post(hub_.io, [self = shared_from_this(), bytes = std::move(bytes), last] {
    self->connection_->append(self, bytes, last);
  });
}

// An error is left to the io thread, which meets it when it writes the rest.
size_t Exchange::write_directly(std::string_view bytes) {
  if (socket_ < 0) return 0;
  const ssize_t num = ::send(socket_, bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  return num > 0 ? static_cast<size_t>(num) : 0;
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

}  // namespace nibble
