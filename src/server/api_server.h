// The API's routes over one served model. Thread-safe: any number of requests at once.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "net/http_server.h"
#include "server/answer.h"
#include "server/delivery_thread.h"
#include "server/dialect_responses.h"
#include "server/generation.h"
#include "server/heartbeat.h"
#include "server/metrics.h"
#include "server/served_model.h"

namespace nibble {

struct ChatRequest;

struct ApiOptions {
  std::vector<std::string> served_model_names;  // the first one is in answers; never empty
  std::string tool_parser;                      // "" for none
  bool auto_tool_choice = true;                 // tool_choice auto is allowed
  std::string reasoning_parser;                 // "" for none
  ReasoningField reasoning_field = ReasoningField::kBoth;
  RequestDefaults defaults = {};
  std::string response_role = "assistant";
  int stream_interval = 1;             // tokens per event
  bool prompt_tokens_details = false;  // usage tells the cached tokens
  bool request_id_headers = false;     // X-Request-Id comes back
  int stall_timeout_s = 300;           // a step may take this long until /health says 503
  std::string fingerprint = {};        // system_fingerprint; "" for none
  bool needs_key = false;              // for /openapi.json; the front asks for it
  // Labels of vllm:cache_config_info.
  std::vector<std::pair<std::string, std::string>> cache_config = {};
};

class ApiServer {
 public:
  // One row of the route table. `path` may hold {id}, which matches one segment.
  struct Route {
    std::string_view path;
    std::string_view methods;  // "GET HEAD"
    std::string_view summary;
    std::string_view body;  // of a POST: its schema's name in the OpenAPI document, or ""
    void (ApiServer::*handle)(const HttpRequest& request, HttpReply& reply, const std::string& id);
  };
  static std::span<const Route> routes();

  // kInvalidArgument: an unknown parser. `model` must outlive this object.
  static Result<std::unique_ptr<ApiServer>> create(ServedModel& model, ApiOptions options);

  // An HttpServer's handler.
  void handle(const HttpRequest& request, HttpReply& reply);
  // Health, models and metrics: they never wait for the engine.
  static bool is_quick(const HttpRequest& request);
  // Signs of life: answered from memory, on the io thread.
  static bool is_instant(const HttpRequest& request);
  // The error object, for answers the HTTP server gives by itself.
  static HttpResponse error_response(int status, std::string_view message);

 private:
  ApiServer(ServedModel& model, ApiOptions options);

  void dispatch(const HttpRequest& request, HttpReply& reply);

  // Routes; api_server.cc, generate_routes.cc and text_routes.cc.
  void health(const HttpRequest& request, HttpReply& reply, const std::string& id);
  void version(const HttpRequest& request, HttpReply& reply, const std::string& id);
  void load(const HttpRequest& request, HttpReply& reply, const std::string& id);
  void metrics(const HttpRequest& request, HttpReply& reply, const std::string& id);
  void models(const HttpRequest& request, HttpReply& reply, const std::string& id);
  void openapi(const HttpRequest& request, HttpReply& reply, const std::string& id);
  void chat(const HttpRequest& request, HttpReply& reply, const std::string& id);
  void completions(const HttpRequest& request, HttpReply& reply, const std::string& id);
  void messages(const HttpRequest& request, HttpReply& reply, const std::string& id);
  void count_tokens(const HttpRequest& request, HttpReply& reply, const std::string& id);
  void responses(const HttpRequest& request, HttpReply& reply, const std::string& id);
  void get_response(const HttpRequest& request, HttpReply& reply, const std::string& id);
  void cancel_response(const HttpRequest& request, HttpReply& reply, const std::string& id);
  void invocations(const HttpRequest& request, HttpReply& reply, const std::string& id);
  void tokenize(const HttpRequest& request, HttpReply& reply, const std::string& id);
  void detokenize(const HttpRequest& request, HttpReply& reply, const std::string& id);

  // The body as JSON, or 400.
  std::optional<ApiError> read_body(const HttpRequest& request, Json* body) const;
  std::optional<ApiError> check_model(const std::string& name) const;
  AnswerHead answer_head(const std::string& id) const;
  // Checks a chat request against the server's settings, renders its prompt and submits it.
  std::optional<ApiError> start_chat(const HttpRequest& http, const ChatRequest& request,
                                     const std::string& id, std::unique_ptr<Generation>* out);
  // Counts what deliver() did.
  void deliver_counted(Generation& generation, Answer& answer, bool stream, const std::string& id,
                       HttpReply& reply);

  ServedModel& model_;
  ApiOptions options_;
  int64_t created_;
  ServerMetrics metrics_;
  Heartbeat heartbeat_{std::chrono::seconds(options_.stall_timeout_s)};
  ResponseStore responses_;
  DeliveryThread delivery_;
  std::atomic<int> num_at_work_{0};  // generating requests: /load
};

}  // namespace nibble
