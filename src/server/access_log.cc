// Lines are written whole and flushed, so that a tail or a crash sees no half of one.
#include "server/access_log.h"

#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <ctime>

#include "base/format.h"
#include "base/json.h"
#include "base/log.h"

namespace nibble {
namespace {

std::string utc_now() {
  const auto now = std::chrono::system_clock::now();
  const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch());
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
  return format("{}.{:03}Z", text, ms.count() % 1000);
}

// A path may hold bytes that are no UTF-8; a log line must not fail on them.
std::string printable(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, 128)) out += c >= 0x20 && c < 0x7f ? c : '?';
  return out;
}

Json value_of(const std::string& text) {
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error == std::errc() && end == text.data() + text.size() && !text.empty()) {
    if (number == static_cast<double>(static_cast<int64_t>(number)))
      return static_cast<int64_t>(number);
    return number;
  }
  return printable(text);
}

}  // namespace

Result<std::unique_ptr<AccessLog>> AccessLog::open(const std::string& path) {
  auto log = std::make_unique<AccessLog>();
  log->path_ = path;
  if (path.empty()) return log;
  log->file_ = path == "-" ? stdout : std::fopen(path.c_str(), "ae");
  if (!log->file_)
    return make_error(ErrorCode::kIo, "--access-log {}: {}", path, std::strerror(errno));
  return log;
}

AccessLog::~AccessLog() {
  if (file_ && file_ != stdout) std::fclose(file_);
}

void AccessLog::write(const Entry& entry) {
  if (!file_) return;
  Json line = {{"time", utc_now()},
               {"client", printable(entry.client)},
               {"method", printable(entry.method)},
               {"route", printable(entry.route)},
               {"status", entry.status},
               {"ms", static_cast<double>(static_cast<int64_t>(entry.ms * 1000)) / 1000},
               {"bytes", entry.bytes}};
  for (const auto& [name, value] : entry.notes)
    line[name] = name == "id" ? Json(printable(value)) : value_of(value);
  const std::string text = dump_json(line) + "\n";
  std::lock_guard lock(mutex_);
  std::fwrite(text.data(), 1, text.size(), file_);
  std::fflush(file_);
}

void AccessLog::reopen() {
  if (path_.empty() || path_ == "-") return;
  std::FILE* const fresh = std::fopen(path_.c_str(), "ae");
  if (!fresh) {
    log_warning("access log stays open: {}: {}", path_, std::strerror(errno));
    return;
  }
  std::lock_guard lock(mutex_);
  std::fclose(file_);
  file_ = fresh;
}

}  // namespace nibble
