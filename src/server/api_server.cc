// The route table, what surrounds every route, and the small ones.
#include "server/api_server.h"

#include <chrono>
#include <ctime>

#include "base/format.h"
#include "base/heap.h"
#include "base/text.h"
#include "base/version.h"
#include "server/openapi.h"

namespace nibble {
namespace {

constexpr size_t kLargeBodyBytes = size_t{1} << 20;

bool has_word(std::string_view words, std::string_view word) {
  return (" " + std::string(words) + " ").find(" " + std::string(word) + " ") != std::string::npos;
}

// Does `path` fit `pattern`, whose {id} is one segment?
bool matches(std::string_view pattern, std::string_view path, std::string* id) {
  const size_t hole = pattern.find("{id}");
  if (hole == std::string_view::npos) return pattern == path;
  const std::string_view before = pattern.substr(0, hole);
  const std::string_view after = pattern.substr(hole + 4);
  if (!path.starts_with(before) || !path.ends_with(after) ||
      path.size() <= before.size() + after.size())
    return false;
  *id = path.substr(hole, path.size() - before.size() - after.size());
  return id->find('/') == std::string::npos;
}

// Remembers the status of an answer and adds what every answer of the API carries.
class ObservedReply final : public HttpReply {
 public:
  ObservedReply(HttpReply& reply, std::string request_id)
      : reply_(reply), request_id_(std::move(request_id)) {}

  void send(HttpResponse response) override {
    observe(response);
    reply_.send(std::move(response));
  }
  void begin_stream(HttpResponse head) override {
    observe(head);
    reply_.begin_stream(std::move(head));
  }
  bool write(std::string piece) override { return reply_.write(std::move(piece)); }
  bool has_room() const override { return reply_.has_room(); }
  void end_stream() override { reply_.end_stream(); }
  bool client_gone() const override { return reply_.client_gone(); }
  void on_client_gone(std::function<void()> callback) override {
    reply_.on_client_gone(std::move(callback));
  }
  void note(std::string_view name, std::string value) override {
    reply_.note(name, std::move(value));
  }
  int status() const { return status_; }

 private:
  void observe(HttpResponse& response) {
    status_ = response.status;
    if (!request_id_.empty()) response.headers.emplace("X-Request-Id", request_id_);
  }

  HttpReply& reply_;
  std::string request_id_;
  int status_ = 500;
};

}  // namespace

std::span<const ApiServer::Route> ApiServer::routes() {
  using Api = ApiServer;
  static constexpr Route kRoutes[] = {
      {"/health", "GET HEAD", "200 while the engine works, 503 when it has died", "", &Api::health},
      {"/ping", "GET HEAD POST", "The same, for load balancers", "", &Api::health},
      {"/version", "GET", "The server's version", "", &Api::version},
      {"/load", "GET", "Requests that generate at the moment", "", &Api::load},
      {"/metrics", "GET", "Prometheus metrics", "", &Api::metrics},
      {"/openapi.json", "GET", "This document", "", &Api::openapi},
      {"/v1/models", "GET", "The served model under each of its names", "", &Api::models},
      {"/v1/chat/completions", "POST", "A chat completion, whole or streamed", "ChatRequest",
       &Api::chat},
      {"/v1/completions", "POST", "A text completion, whole or streamed", "CompletionRequest",
       &Api::completions},
      {"/v1/responses", "POST", "OpenAI Responses", "ResponsesRequest", &Api::responses},
      {"/v1/responses/{id}", "GET", "A stored response", "", &Api::get_response},
      {"/v1/responses/{id}/cancel", "POST", "Ends a response that is still streaming", "",
       &Api::cancel_response},
      {"/v1/messages", "POST", "Anthropic Messages", "MessagesRequest", &Api::messages},
      {"/v1/messages/count_tokens", "POST", "Prompt tokens of a Messages request",
       "MessagesRequest", &Api::count_tokens},
      {"/tokenize", "POST", "Text or messages to token ids", "TokenizeRequest", &Api::tokenize},
      {"/detokenize", "POST", "Token ids to text", "DetokenizeRequest", &Api::detokenize},
      {"/invocations", "POST", "Chat or completion, by the form of the body", "ChatRequest",
       &Api::invocations},
  };
  return kRoutes;
}

Result<std::unique_ptr<ApiServer>> ApiServer::create(ServedModel& model, ApiOptions options) {
  NB_CHECK(!options.served_model_names.empty(), "a served model has a name");
  // Unknown parser names are an error of the start, not of the first request.
  NB_TRY(const auto probe, make_reply_parser({.reasoning_parser = options.reasoning_parser,
                                              .tool_parser = options.tool_parser,
                                              .tools = Json::array(),
                                              .prompt_tail = ""}));
  return std::unique_ptr<ApiServer>(new ApiServer(model, std::move(options)));
}

ApiServer::ApiServer(ServedModel& model, ApiOptions options)
    : model_(model),
      options_(std::move(options)),
      created_(std::time(nullptr)),
      metrics_(options_.served_model_names[0], model.engine->max_model_len()) {}

bool ApiServer::is_quick(const HttpRequest& request) {
  return request.method == "GET" || request.method == "HEAD";
}

bool ApiServer::is_instant(const HttpRequest& request) {
  return is_quick(request) &&
         (request.path == "/health" || request.path == "/ping" || request.path == "/ready");
}

HttpResponse ApiServer::error_response(int status, std::string_view message) {
  ApiError error{status, "Bad Request", std::string(message), nullptr};
  if (status >= 500) error.type = "InternalServerError";
  if (status == 503) error.type = "ServiceUnavailableError";
  return error_reply(error);
}

void ApiServer::handle(const HttpRequest& request, HttpReply& reply) {
  std::string request_id;
  if (options_.request_id_headers) {
    const auto given = request.headers.find("x-request-id");
    request_id = given != request.headers.end() ? given->second : random_hex(32);
  }
  ObservedReply observed(reply, std::move(request_id));
  const auto start = std::chrono::steady_clock::now();
  dispatch(request, observed);
  // Lists in JSON take many times their text, and the allocator would keep it for this thread.
  if (request.body.size() > kLargeBodyBytes) return_free_memory();
  // Series per route, not per path: a client must not be able to make new ones.
  std::string_view name = "none";
  std::string id;
  for (const Route& route : routes())
    if (matches(route.path, request.path, &id)) name = route.path;
  for (const std::string_view quiet : {"/metrics", "/health", "/load", "/ping", "/version"})
    if (name == quiet) return;
  const bool known_method = has_word("GET HEAD POST OPTIONS PUT DELETE PATCH", request.method);
  metrics_.http_request(
      name, known_method ? std::string_view(request.method) : "other", observed.status(),
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(),
      request.body.size());
}

void ApiServer::dispatch(const HttpRequest& request, HttpReply& reply) {
  bool path_found = false;
  for (const Route& route : routes()) {
    std::string id;
    if (!matches(route.path, request.path, &id)) continue;
    path_found = true;
    if (has_word(route.methods, request.method)) return (this->*route.handle)(request, reply, id);
  }
  if (path_found) return reply.send(json_reply({{"detail", "Method Not Allowed"}}, 405));
  reply.send(json_reply({{"detail", "Not Found"}}, 404));
}

void ApiServer::health(const HttpRequest&, HttpReply& reply, const std::string&) {
  if (heartbeat_.alive(model_.engine->stats())) return reply.send({.status = 200, .body = ""});
  reply.send(error_reply(
      {503, "ServiceUnavailableError",
       format("The engine has ended no step for {} s.", options_.stall_timeout_s), nullptr}));
}

void ApiServer::version(const HttpRequest&, HttpReply& reply, const std::string&) {
  reply.send(json_reply({{"version", kVersion}}));
}

void ApiServer::load(const HttpRequest&, HttpReply& reply, const std::string&) {
  reply.send(json_reply({{"server_load", num_at_work_.load()}}));
}

void ApiServer::metrics(const HttpRequest&, HttpReply& reply, const std::string&) {
  reply.send({.content_type = "text/plain; version=0.0.4; charset=utf-8",
              .body = metrics_.render(model_.engine->stats(), options_.cache_config)});
}

void ApiServer::openapi(const HttpRequest&, HttpReply& reply, const std::string&) {
  reply.send(json_reply(openapi_document(options_.needs_key)));
}

void ApiServer::models(const HttpRequest&, HttpReply& reply, const std::string&) {
  Json data = Json::array();
  for (const std::string& name : options_.served_model_names)
    data.push_back({{"id", name},
                    {"object", "model"},
                    {"created", created_},
                    {"owned_by", "nibble"},
                    {"root", model_.dir.path().string()},
                    {"parent", nullptr},
                    {"max_model_len", model_.engine->max_model_len()},
                    {"permission", Json::array({{{"id", "modelperm-" + name},
                                                 {"object", "model_permission"},
                                                 {"created", created_},
                                                 {"allow_create_engine", false},
                                                 {"allow_sampling", true},
                                                 {"allow_logprobs", true},
                                                 {"allow_search_indices", false},
                                                 {"allow_view", true},
                                                 {"allow_fine_tuning", false},
                                                 {"organization", "*"},
                                                 {"group", nullptr},
                                                 {"is_blocking", false}}})}});
  reply.send(json_reply({{"object", "list"}, {"data", data}}));
}

}  // namespace nibble
