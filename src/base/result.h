// Result<T>: a value or an Error, with the member names of C++23's std::expected.
// Used at every folder border; nothing in nibble throws across one (docs/architecture.md,
// "Errors").
#pragma once

#include <string>
#include <type_traits>
#include <utility>
#include <variant>

#include "base/check.h"

namespace nibble {

// What kind of thing went wrong. `exit_code` and `http_status` are the one table that maps each
// kind to the outside world.
enum class ErrorCode {
  kInvalidArgument,  // a flag, request or recipe says something that cannot be done
  kNotFound,         // a file, tensor, model or route that does not exist
  kUnsupported,      // well-formed, but nothing in nibble handles it
  kCorrupt,          // bytes that contradict themselves or their format
  kOutOfMemory,      // does not fit; the message says by how much
  kIo,               // the operating system refused
  kCancelled,        // the caller asked to stop
  kOverloaded,       // a bounded queue is full; try again later
};

struct Error {
  ErrorCode code = ErrorCode::kInvalidArgument;
  std::string message;  // culprit, what was found, what was expected, what to do
};

// Process exit status: 2 bad input, 3 does not fit, 5 interrupted and resumable, 1 anything else.
int exit_code(ErrorCode code);
// HTTP status: 400, 404, 429, 499, 500, 501, 503.
int http_status(ErrorCode code);

template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

  bool has_value() const { return state_.index() == 0; }
  explicit operator bool() const { return has_value(); }

  T& value() & {
    NB_CHECK(has_value(), "value() of a failed Result: %s", error().message.c_str());
    return std::get<0>(state_);
  }
  const T& value() const& {
    NB_CHECK(has_value(), "value() of a failed Result: %s", error().message.c_str());
    return std::get<0>(state_);
  }
  T&& value() && {
    NB_CHECK(has_value(), "value() of a failed Result: %s", error().message.c_str());
    return std::get<0>(std::move(state_));
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  const Error& error() const& { return std::get<1>(state_); }
  Error&& error() && { return std::get<1>(std::move(state_)); }

 private:
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : failed_(true), error_(std::move(error)) {}

  bool has_value() const { return !failed_; }
  explicit operator bool() const { return has_value(); }
  const Error& error() const& { return error_; }
  Error&& error() && { return std::move(error_); }

 private:
  bool failed_ = false;
  Error error_;
};

using Status = Result<void>;

}  // namespace nibble

#define NB_CONCAT_INNER(a, b) a##b
#define NB_CONCAT(a, b) NB_CONCAT_INNER(a, b)

// NB_TRY(auto file, open(path)): unwraps, or returns the error from the enclosing function.
#define NB_TRY(declaration, ...)                            \
  auto NB_CONCAT(nb_try_, __LINE__) = (__VA_ARGS__);        \
  if (!NB_CONCAT(nb_try_, __LINE__).has_value())            \
    return std::move(NB_CONCAT(nb_try_, __LINE__)).error(); \
  declaration = std::move(NB_CONCAT(nb_try_, __LINE__)).value()

// NB_TRY_STATUS(write(bytes)): the same for a Status.
#define NB_TRY_STATUS(...)                                      \
  do {                                                          \
    if (auto nb_status = (__VA_ARGS__); !nb_status.has_value()) \
      return std::move(nb_status).error();                      \
  } while (false)
