// Listening, accepting and stopping; the rest is in http_connection.cc and http_exchange.cc.
#include "net/http_server.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <thread>

#include "base/format.h"
#include "base/log.h"
#include "net/http_connection.h"
#include "net/port_holder.h"

namespace nibble {
namespace asio = boost::asio;
using boost::system::error_code;
using tcp = asio::ip::tcp;
using local = asio::local::stream_protocol;

namespace {

constexpr auto kFarewellTime = std::chrono::milliseconds(1200);  // a connection lingers for 1 s

// A descriptor per connection, and some: the soft limit is often 1024 where the hard one is not.
void raise_descriptor_limit(int max_connections) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  const rlim_t wanted = static_cast<rlim_t>(max_connections) + 512;
  if (limit.rlim_cur >= wanted) return;
  limit.rlim_cur = std::min(limit.rlim_max, wanted);
  setrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_cur < wanted)
    log_warning("open files limited to {}: at most that many connections, not {}; raise ulimit -n",
                limit.rlim_cur, max_connections);
}

// A socket file that nobody answers on is what a killed server left behind.
bool is_stale_socket(const std::string& path) {
  struct stat info {};
  if (lstat(path.c_str(), &info) != 0 || !S_ISSOCK(info.st_mode)) return false;
  asio::io_context io;
  local::socket probe(io);
  error_code error;
  probe.connect(local::endpoint(path), error);
  return error == asio::error::connection_refused;
}

}  // namespace

struct HttpServer::State {
  Hub hub;
  tcp::acceptor acceptor{hub.io};
  local::acceptor local_acceptor{hub.io};
  asio::steady_timer accept_pause{hub.io};
  std::thread io_thread;
  int port = 0;
  std::mutex stop_mutex;
  bool stopped = false;
  bool hurried = false;  // under hub.drain_mutex

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

  Status bind_local() {
    const std::string& path = hub.options.uds;
    if (path.size() >= 108)  // sun_path
      return make_error(ErrorCode::kInvalidArgument,
                        "--uds {}: longer than the 107 bytes a socket path may have", path);
    if (is_stale_socket(path)) ::unlink(path.c_str());
    error_code error;
    local_acceptor.open(local(), error);
    if (!error) local_acceptor.bind(local::endpoint(path), error);
    if (!error) local_acceptor.listen(asio::socket_base::max_listen_connections, error);
    if (error) return make_error(ErrorCode::kIo, "cannot listen on {}: {}", path, error.message());
    local_acceptor.non_blocking(true, error);
    return {};
  }

  template <class Acceptor>
  void accept(Acceptor& acceptor) {
    using Peer = typename Acceptor::protocol_type::socket;
    acceptor.async_accept([this, &acceptor](error_code error, Peer socket) {
      if (error == asio::error::operation_aborted || !acceptor.is_open()) return;
      if (error) {  // out of descriptors, mostly: wait until some are free
        accept_pause.expires_after(std::chrono::milliseconds(50));
        accept_pause.async_wait([this, &acceptor](error_code cancelled) {
          if (!cancelled) accept(acceptor);
        });
        return;
      }
      std::string remote = "local";
      if constexpr (std::is_same_v<Peer, tcp::socket>) {
        error_code ignored;
        remote = socket.remote_endpoint(ignored).address().to_string();
      }
      auto connection =
          std::make_shared<Connection>(hub, Connection::Socket(std::move(socket)), remote);
      const auto max_connections = static_cast<size_t>(hub.options.max_connections);
      const bool full = hub.connections.size() >= max_connections;
      // Refusals linger for a second; under a flood of them even that is too much.
      if (hub.connections.size() >= max_connections + 256) return accept(acceptor);
      hub.connections.insert(connection);
      connection->start();
      if (full) connection->refuse();
      accept(acceptor);
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

  std::vector<std::shared_ptr<Connection>> connections() const {
    return {hub.connections.begin(), hub.connections.end()};
  }

  void stop(std::chrono::milliseconds grace) {
    std::lock_guard once(stop_mutex);
    if (stopped || !io_thread.joinable()) return;
    stopped = true;
    on_io_thread([this] {
      hub.draining = true;
      for (const auto& connection : connections())
        if (connection->idle()) connection->close();
    });
    {
      std::unique_lock lock(hub.drain_mutex);
      hub.drained.wait_for(lock, grace, [this] { return hub.num_in_flight == 0 || hurried; });
    }
    on_io_thread([this] {
      error_code ignored;
      acceptor.close(ignored);
      local_acceptor.close(ignored);
      accept_pause.cancel();
      for (const auto& connection : connections()) connection->abandon();
    });
    bool empty = false;
    for (const auto end = std::chrono::steady_clock::now() + kFarewellTime;
         !empty && std::chrono::steady_clock::now() < end;) {
      on_io_thread([&] { empty = hub.connections.empty(); });
      if (!empty) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    on_io_thread([this] {
      for (const auto& connection : connections()) connection->close();
    });
    hub.workers->stop();
    hub.quick_workers->stop();
    hub.io.stop();
    io_thread.join();
    if (!hub.options.uds.empty()) ::unlink(hub.options.uds.c_str());
  }
};

Result<HttpServer> HttpServer::start(HttpServerOptions options, Handler handler) {
  auto state = std::make_unique<State>();
  state->hub.options = std::move(options);
  state->hub.handler = std::move(handler);
  if (state->hub.options.port < 0 || state->hub.options.port > 65535)
    return make_error(ErrorCode::kInvalidArgument, "port {}: must be 0 to 65535",
                      state->hub.options.port);
  if (!state->hub.options.tls_certificate.empty() || !state->hub.options.tls_key.empty()) {
    NB_TRY(state->hub.tls,
           TlsContext::load(state->hub.options.tls_certificate, state->hub.options.tls_key));
  }
  raise_descriptor_limit(state->hub.options.max_connections);
  NB_TRY_STATUS(state->hub.options.uds.empty() ? state->bind() : state->bind_local());
  state->hub.workers =
      std::make_unique<WorkerPool>(state->hub.options.num_workers, state->hub.options.max_queued);
  state->hub.quick_workers = std::make_unique<WorkerPool>(2, state->hub.options.max_queued);
  if (state->hub.options.uds.empty()) {
    state->accept(state->acceptor);
  } else {
    state->accept(state->local_acceptor);
  }
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

void HttpServer::hurry() {
  std::lock_guard lock(state_->hub.drain_mutex);
  state_->hurried = true;
  state_->hub.drained.notify_all();
}

Status HttpServer::reload_tls() {
  if (!state_->hub.tls) return {};
  const HttpServerOptions& options = state_->hub.options;
  NB_TRY(std::shared_ptr<TlsContext> fresh,
         TlsContext::load(options.tls_certificate, options.tls_key));
  state_->on_io_thread([&] { state_->hub.tls = std::move(fresh); });
  return {};
}

void HttpServer::stop(std::chrono::milliseconds grace) {
  state_->stop(grace);
}

}  // namespace nibble