// One table from error codes to the API's words.
#include "server/api_error.h"

namespace nibble {

ApiError to_api_error(const Error& error) {
  const int status = http_status(error.code);
  const char* type = "InternalServerError";
  if (status == 400) type = "BadRequestError";
  if (status == 404) type = "NotFoundError";
  if (status == 429) type = "RateLimitError";
  if (status == 503) type = "ServiceUnavailableError";
  if (status == 501) type = "NotImplementedError";
  return {status, type, error.message, nullptr};
}

Json error_body(const ApiError& error) {
  return {{"error",
           {{"message", error.message},
            {"type", error.type},
            {"param", error.param},
            {"code", error.status}}}};
}

HttpResponse json_reply(const Json& body, int status) {
  HttpResponse response{.status = status, .body = dump_json(body)};
  if (status == 429 || status == 503) response.headers["Retry-After"] = "1";
  return response;
}

HttpResponse error_reply(const ApiError& error) {
  return json_reply(error_body(error), error.status);
}

}  // namespace nibble
