// What stands between the HTTP server and the API: the pages, readiness, CORS, keys and per-client
// limits, the access log. It answers while the model loads and while the server drains.
// Thread-safe.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "net/http_options.h"
#include "server/access_log.h"
#include "server/guard.h"

namespace nibble {

struct FrontOptions {
  HttpFlags http;
  GuardOptions guard;
  std::vector<std::string> allowed_origins;
  std::string access_log;
  int drain_grace_s = 30;
  bool page = true;

  template <class V>
  void visit(V& v) {
    http.visit(v);
    guard.visit(v);
    v.option("allowed-origins", &allowed_origins,
             "web origins that may call from a browser, \"*\" for all");
    v.option("access-log", &access_log, "file for a JSON line per request, - for stdout");
    v.option("drain-grace", &drain_grace_s,
             "seconds requests at work may take after SIGTERM before they are cut");
    v.option("page", &page, "serve the chat page at / and the status page at /status");
  }
};

class Front {
 public:
  // kInvalidArgument and kIo as of Guard and AccessLog, or a negative grace.
  static Result<std::unique_ptr<Front>> create(FrontOptions options,
                                               std::vector<std::string> api_keys);

  // An HttpServer's handler.
  void handle(HttpRequest& request, HttpReply& reply);
  // Limits and TLS files, and the event that streams cut by a drain end with.
  Status apply(HttpServerOptions* http) const;

  // The model is there: requests go to `api` from now on; `status` fills /status.json. Both are
  // called from many threads.
  void set_ready(HttpServer::Handler api, std::function<Json()> status);
  // /ready says 503 from now on.
  void set_draining() { draining_ = true; }
  bool has_keys() const { return guard_->has_keys(); }
  int drain_grace_s() const { return options_.drain_grace_s; }
  // After SIGHUP.
  void reopen_log() { log_->reopen(); }

 private:
  using Headers = std::map<std::string, std::string>;
  void route(HttpRequest& request, HttpReply& reply, Headers* cors);
  void send_status(HttpReply& reply) const;
  bool origin_allowed(const std::string& origin) const;

  FrontOptions options_;
  std::unique_ptr<Guard> guard_;
  std::unique_ptr<AccessLog> log_;
  HttpServer::Handler api_;       // set once, before ready_
  std::function<Json()> status_;  // likewise
  std::atomic<bool> ready_{false};
  std::atomic<bool> draining_{false};
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace nibble
