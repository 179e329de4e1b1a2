// Typed reading of one JSON object of a request; the first thing wrong is remembered, with the
// field's name and value, and answered with 400.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "server/api_error.h"

namespace nibble {

// JSON inside a request's text: what is wrong with it is the client's error, kInvalidArgument.
Result<Json> parse_request_json(std::string_view text, std::string_view what);

class Fields {
 public:
  // `body` must be an object and outlive this.
  explicit Fields(const Json& body) : body_(body) {}

  // The member, unless it is absent or null.
  const Json* find(const char* name) const;

  // Each leaves `out` as it is when the field is absent, null or wrong.
  void flag(const char* name, bool* out);
  void text(const char* name, std::string* out);
  // A whole number of [low, high]; 3.0 counts as one, "3" does not.
  void integer(const char* name, int64_t low, int64_t high, int64_t* out);
  void integer(const char* name, int64_t low, int64_t high, int* out);
  // A number of [low, high], or of (low, high] with `open_low`.
  void number(const char* name, double low, double high, bool open_low, float* out);
  // A list of token ids, at most `max_count` of them.
  void ids(const char* name, std::vector<int32_t>* out, size_t max_count = 1 << 20);
  // A string or a list of strings, none of them empty, at most `max_count`.
  void texts(const char* name, std::vector<std::string>* out, size_t max_count);

  void reject(const char* name, std::string_view expected, const Json& found);
  void fail(int status, const Json& param, std::string message);
  const std::optional<ApiError>& error() const { return error_; }

 private:
  const Json& body_;
  std::optional<ApiError> error_;
};

}  // namespace nibble
