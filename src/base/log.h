// One event, one line on stderr: `prefill done num_tokens=4096 ms=212`. stdout is for results.
// Thread-safe. Doorkeeper of spdlog.
#pragma once

#include <string_view>

#include "base/format.h"

namespace nibble {

enum class LogLevel { kDebug, kInfo, kWarning, kError, kOff };

// Levels below `level` are dropped. Call before threads start; default kInfo.
void set_log_level(LogLevel level);
void log_line(LogLevel level, std::string_view text);

template <class... Args>
void log_debug(fmt::format_string<Args...> text, Args&&... args) {
  log_line(LogLevel::kDebug, fmt::format(text, std::forward<Args>(args)...));
}
template <class... Args>
void log_info(fmt::format_string<Args...> text, Args&&... args) {
  log_line(LogLevel::kInfo, fmt::format(text, std::forward<Args>(args)...));
}
template <class... Args>
void log_warning(fmt::format_string<Args...> text, Args&&... args) {
  log_line(LogLevel::kWarning, fmt::format(text, std::forward<Args>(args)...));
}
template <class... Args>
void log_error(fmt::format_string<Args...> text, Args&&... args) {
  log_line(LogLevel::kError, fmt::format(text, std::forward<Args>(args)...));
}

}  // namespace nibble
