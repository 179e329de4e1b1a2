// The OpenAI-compatible routes over one served model. Thread-safe: any number of requests at once.
#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "net/http_server.h"
#include "server/dialect_openai.h"
#include "server/served_model.h"

namespace nibble {

struct ApiOptions {
  std::vector<std::string> served_model_names;  // the first one is in answers; never empty
  std::string tool_parser;                      // "" for none
  std::string reasoning_parser;                 // "" for none
  ReasoningField reasoning_field = ReasoningField::kBoth;
};

class ApiServer {
 public:
  // kInvalidArgument: an unknown parser. `model` must outlive this object.
  static Result<std::unique_ptr<ApiServer>> create(ServedModel& model, ApiOptions options);

  // An HttpServer's handler.
  void handle(const HttpRequest& request, HttpReply& reply);
  // Health, models and metrics: they never wait for the engine.
  static bool is_quick(const HttpRequest& request);
  // The error object, for answers the HTTP server gives by itself.
  static HttpResponse error_response(int status, std::string_view message);

 private:
  ApiServer(ServedModel& model, ApiOptions options);

  void chat(const HttpRequest& request, HttpReply& reply);
  void tokenize(const HttpRequest& request, HttpReply& reply);
  void detokenize(const HttpRequest& request, HttpReply& reply);
  HttpResponse models() const;
  HttpResponse metrics() const;

  ServedModel& model_;
  ApiOptions options_;
  int64_t created_;
  std::atomic<int64_t> num_finished_{0};
  std::atomic<int64_t> num_failed_{0};
};

}  // namespace nibble
