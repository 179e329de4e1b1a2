// What a client is told when a request fails: the OpenAI error object with vLLM's types.
#pragma once

#include <string>

#include "base/json.h"
#include "base/result.h"
#include "net/http_server.h"

namespace nibble {

struct ApiError {
  int status = 400;
  std::string type = "BadRequestError";
  std::string message;
  Json param;  // the field's name, or null
};

// The table of HTTP statuses and types; messages pass through.
ApiError to_api_error(const Error& error);
// {"error": {"message", "type", "param", "code"}}
Json error_body(const ApiError& error);
HttpResponse error_reply(const ApiError& error);
// JSON with its content type; 429 and 503 say when to come back.
HttpResponse json_reply(const Json& body, int status = 200);

}  // namespace nibble
