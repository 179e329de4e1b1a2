// The one table from error kinds to exit codes and HTTP statuses, and the end of a failed check.
#include "base/result.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>

namespace nibble {

int exit_code(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kNotFound:
    case ErrorCode::kUnsupported:
    case ErrorCode::kCorrupt:
    case ErrorCode::kIo: return 2;
    case ErrorCode::kOutOfMemory: return 3;
    case ErrorCode::kCancelled: return 5;
    case ErrorCode::kOverloaded: return 1;
  }
  return 1;
}

int http_status(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument: return 400;
    case ErrorCode::kNotFound: return 404;
    case ErrorCode::kUnsupported: return 501;
    case ErrorCode::kCorrupt:
    case ErrorCode::kIo: return 500;
    case ErrorCode::kOutOfMemory: return 503;
    case ErrorCode::kCancelled: return 499;
    case ErrorCode::kOverloaded: return 429;
  }
  return 500;
}

namespace detail {

void check_failed(const char* file, int line, const char* condition, const char* format, ...) {
  std::fprintf(stderr, "%s:%d: check failed: %s ", file, line, condition);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
  std::abort();
}

}  // namespace detail
}  // namespace nibble
