// A request passes: log, CORS, open routes, key, readiness, client's limit, API.
#include "server/front.h"

#include <algorithm>
#include <fstream>

#include "base/format.h"
#include "base/version.h"
#include "net/sse.h"
#include "server/api_error.h"
#include "server/web_page.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

// Passes everything on, adds headers, and keeps what the log wants to know.
class WatchedReply final : public HttpReply {
 public:
  explicit WatchedReply(HttpReply& inner) : inner_(inner) {}

  void send(HttpResponse response) override {
    entry.status = response.status;
    entry.bytes = response.body.size();
    add_headers(&response);
    inner_.send(std::move(response));
  }
  void begin_stream(HttpResponse head) override {
    entry.status = head.status;
    add_headers(&head);
    inner_.begin_stream(std::move(head));
  }
  bool write(std::string piece) override {
    const size_t size = piece.size();
    const bool open = inner_.write(std::move(piece));
    if (open) entry.bytes += size;
    return open;
  }
  bool has_room() const override { return inner_.has_room(); }
  void end_stream() override { inner_.end_stream(); }
  bool client_gone() const override { return inner_.client_gone(); }
  void on_client_gone(std::function<void()> callback) override {
    inner_.on_client_gone(std::move(callback));
  }
  void note(std::string_view name, std::string value) override {
    entry.notes[std::string(name)] = std::move(value);
  }

  AccessLog::Entry entry;
  std::map<std::string, std::string> headers;  // of every answer

 private:
  void add_headers(HttpResponse* response) const {
    response->headers.insert(headers.begin(), headers.end());
    if (response->status == 429 || response->status == 503)
      response->headers.emplace("Retry-After", "1");
  }
  HttpReply& inner_;
};

HttpResponse json_response(int status, const Json& body) {
  return {.status = status, .body = dump_json(body)};
}

HttpResponse unavailable(std::string_view message) {
  HttpResponse response =
      error_reply({503, "ServiceUnavailableError", std::string(message), nullptr});
  response.headers["Retry-After"] = "1";
  return response;
}

std::string header(const HttpRequest& request, const char* name) {
  const auto it = request.headers.find(name);
  return it == request.headers.end() ? "" : it->second;
}

size_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  size_t total = 0, resident = 0;
  statm >> total >> resident;
  return resident * 4096;
}

bool is_read(const HttpRequest& request) {
  return request.method == "GET" || request.method == "HEAD";
}

}  // namespace

Result<std::unique_ptr<Front>> Front::create(FrontOptions options,
                                             std::vector<std::string> api_keys) {
  if (options.drain_grace_s < 0)
    return make_error(ErrorCode::kInvalidArgument, "--drain-grace {}: must be 0 or more",
                      options.drain_grace_s);
  // vLLM takes a JSON list.
  std::vector<std::string> origins;
  for (const std::string& given : options.allowed_origins) {
    if (!given.starts_with('[')) {
      origins.push_back(given);
      continue;
    }
    const Result<Json> list = parse_json(given, "--allowed-origins");
    const auto is_text = [](const Json& origin) { return origin.is_string(); };
    if (!list || !std::ranges::all_of(*list, is_text))
      return make_error(ErrorCode::kInvalidArgument,
                        "--allowed-origins {}: not a JSON list of strings", given);
    for (const Json& origin : *list) origins.push_back(origin.get<std::string>());
  }
  options.allowed_origins = std::move(origins);
  auto front = std::make_unique<Front>();
  NB_TRY(front->guard_, Guard::create(options.guard, std::move(api_keys)));
  NB_TRY(front->log_, AccessLog::open(options.access_log));
  front->options_ = std::move(options);
  return front;
}

Status Front::apply(HttpServerOptions* http) const {
  http->farewell_event =
      sse_event(dump_json(
          error_body({503, "ServiceUnavailableError", "The server is shutting down.", nullptr}))) +
      sse_event("[DONE]");
  return options_.http.apply(http);
}

void Front::set_ready(HttpServer::Handler api, std::function<Json()> status) {
  api_ = std::move(api);
  status_ = std::move(status);
  ready_ = true;
}

void Front::handle(HttpRequest& request, HttpReply& reply) {
  const auto start = Clock::now();
  WatchedReply watched(reply);
  request.client = request.remote_address;
  route(request, watched, &watched.headers);
  if (!log_->enabled()) return;
  AccessLog::Entry& entry = watched.entry;
  if (entry.status == 0 && reply.client_gone()) entry.status = 499;
  entry.client = request.client;
  entry.method = request.method;
  entry.route = request.path;
  entry.ms = std::chrono::duration<double, std::milli>(Clock::now() - start).count();
  log_->write(entry);
}

void Front::route(HttpRequest& request, HttpReply& reply, Headers* cors) {
  const std::string origin = header(request, "origin");
  if (!origin.empty() && origin_allowed(origin)) {
    Headers& headers = *cors;
    headers["Access-Control-Allow-Origin"] = origin;
    headers["Vary"] = "Origin";
    if (request.method == "OPTIONS") {
      headers["Access-Control-Allow-Methods"] = "GET, POST, OPTIONS";
      headers["Access-Control-Allow-Headers"] =
          "Authorization, Content-Type, X-Api-Key, X-Request-Id, Anthropic-Version";
      headers["Access-Control-Max-Age"] = "600";
      return reply.send({.status = 204, .content_type = ""});
    }
  }
  if (is_read(request) && options_.page) {
    if (request.path == "/") return reply.send(page_response(kChatPage));
    if (request.path == "/status") return reply.send(page_response(kStatusPage));
  }
  if (request.path == "/ready" && is_read(request)) {
    if (draining_) return reply.send(unavailable("The server is shutting down."));
    if (!ready_) return reply.send(unavailable("The model is loading."));
    return reply.send({.status = 200, .body = ""});
  }
  if (!Guard::is_open(request.path)) {
    const auto known = guard_->identify(request);
    if (!known) {
      HttpResponse refusal = json_response(401, {{"error", "Unauthorized"}});
      refusal.headers["WWW-Authenticate"] = "Bearer";
      return reply.send(std::move(refusal));
    }
    request.client = *known;
  }
  if (request.path == "/status.json" && is_read(request)) return send_status(reply);
  if (!ready_) return reply.send(unavailable("The model is loading."));
  if (is_read(request)) return api_(request, reply);
  const auto pass = guard_->enter(request.client);
  if (!pass) {
    HttpResponse refusal = error_reply(
        {429, "RateLimitError",
         format("You have {} requests at work, which is the most one client may have here; wait "
                "for one to finish.",
                options_.guard.max_requests_per_client),
         nullptr});
    refusal.headers["Retry-After"] = "1";
    return reply.send(std::move(refusal));
  }
  api_(request, reply);
}

void Front::send_status(HttpReply& reply) const {
  Json status = ready_ ? status_() : Json::object();
  status["state"] = draining_ ? "draining" : ready_ ? "ready" : "loading";
  status["version"] = kVersion;
  status["resident_bytes"] = resident_bytes();
  status["uptime_s"] =
      std::chrono::duration_cast<std::chrono::seconds>(Clock::now() - start_).count();
  reply.send(json_response(200, status));
}

bool Front::origin_allowed(const std::string& origin) const {
  return std::ranges::any_of(options_.allowed_origins, [&](const std::string& allowed) {
    return allowed == "*" || allowed == origin;
  });
}

}  // namespace nibble
