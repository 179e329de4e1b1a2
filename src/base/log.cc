// spdlog behind base/log.h: a stderr sink, a time stamp, a level letter. Text from outside (paths,
// names, request fields) cannot break the rule of one line per event: controls are escaped.
#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>

namespace nibble {
namespace {

spdlog::logger& logger() {
  // Never destroyed: a thread may log while the process exits.
  static const auto* const instance = [] {
    auto created = spdlog::stderr_color_mt("nibble");
    created->set_pattern("%H:%M:%S.%e %^%L%$ %v");
    return new std::shared_ptr<spdlog::logger>(std::move(created));
  }();
  return **instance;
}

spdlog::level::level_enum spdlog_level(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug: return spdlog::level::debug;
    case LogLevel::kInfo: return spdlog::level::info;
    case LogLevel::kWarning: return spdlog::level::warn;
    case LogLevel::kError: return spdlog::level::err;
    case LogLevel::kOff: return spdlog::level::off;
  }
  return spdlog::level::off;
}

}  // namespace

void set_log_level(LogLevel level) {
  logger().set_level(spdlog_level(level));
}

void log_line(LogLevel level, std::string_view text) {
  const spdlog::level::level_enum at = spdlog_level(level);
  if (level == LogLevel::kOff || !logger().should_log(at)) return;
  const auto is_control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; };
  if (std::ranges::none_of(text, is_control)) {
    logger().log(at, fmt::string_view(text.data(), text.size()));
    return;
  }
  std::string line;
  for (const char c : text) {
    if (c == '\n') {
      line += "\\n";
    } else if (is_control(c)) {
      line += format("\\x{:02x}", static_cast<unsigned char>(c));
    } else {
      line += c;
    }
  }
  logger().log(at, fmt::string_view(line));
}

}  // namespace nibble
