// NB_CHECK: programmer errors. Always on; prints place and values, then aborts.
// Operating errors (files, flags, requests) are Results instead (base/result.h).
#pragma once

namespace nibble::detail {
[[noreturn, gnu::format(printf, 4, 5)]] void check_failed(const char* file, int line,
                                                          const char* condition, const char* format,
                                                          ...);
}  // namespace nibble::detail

#define NB_CHECK(condition, ...)                                                      \
  do {                                                                                \
    if (!(condition)) [[unlikely]]                                                    \
      ::nibble::detail::check_failed(__FILE__, __LINE__, #condition, "" __VA_ARGS__); \
  } while (false)

// For inner loops: compiled out of release builds.
#ifdef NDEBUG
#define NB_DCHECK(condition, ...) static_cast<void>(0)
#else
#define NB_DCHECK(condition, ...) NB_CHECK(condition, __VA_ARGS__)
#endif
