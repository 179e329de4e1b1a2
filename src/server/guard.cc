// Keys are compared with every known key, found or not.
#include "server/guard.h"

#include <algorithm>

#include "base/file.h"
#include "base/format.h"
#include "base/hash.h"
#include "base/text.h"
#include "net/secret.h"

namespace nibble {
namespace {

std::string_view trimmed(std::string_view line) {
  const size_t begin = line.find_first_not_of(" \t\r");
  if (begin == std::string_view::npos) return {};
  return line.substr(begin, line.find_last_not_of(" \t\r") - begin + 1);
}

}  // namespace

Result<std::unique_ptr<Guard>> Guard::create(GuardOptions options, std::vector<std::string> keys) {
  if (!options.api_key_file.empty()) {
    NB_TRY(const std::string text, read_file(options.api_key_file, size_t{1} << 20));
    const size_t num_before = keys.size();
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find('\n', begin), text.size());
      const std::string_view line = trimmed(std::string_view(text).substr(begin, end - begin));
      if (!line.empty() && line.front() != '#') keys.emplace_back(line);
      begin = end + 1;
    }
    if (keys.size() == num_before)
      return make_error(ErrorCode::kInvalidArgument,
                        "--api-key-file {}: no key in it; write one a line", options.api_key_file);
  }
  if (options.max_requests_per_client < 0)
    return make_error(ErrorCode::kInvalidArgument,
                      "--max-requests-per-client {}: must be 0 (no cap) or more",
                      options.max_requests_per_client);
  auto guard = std::make_unique<Guard>();
  guard->options_ = std::move(options);
  for (std::string& key : keys) {
    if (key.empty())
      return make_error(ErrorCode::kInvalidArgument, "--api-key: a key must not be empty");
    guard->keys_.push_back({key, "key-" + sha256_hex(key).substr(0, 8)});
  }
  return guard;
}

bool Guard::is_open(std::string_view path) {
  static constexpr std::string_view kOpen[] = {"/",     "/status",  "/favicon.ico", "/health",
                                               "/ping", "/version", "/metrics",     "/ready"};
  return std::ranges::find(kOpen, path) != std::end(kOpen);
}

std::optional<std::string> Guard::identify(const HttpRequest& request) const {
  if (keys_.empty()) return request.remote_address;
  std::string_view given;
  const auto header = [&](const char* name) {
    const auto it = request.headers.find(name);
    return it == request.headers.end() ? std::string_view() : std::string_view(it->second);
  };
  const std::string_view bearer = header("authorization");
  if (const size_t space = bearer.find(' ');
      space != std::string_view::npos && ascii_lower(bearer.substr(0, space)) == "bearer")
    given = trimmed(bearer.substr(space + 1));
  // The Anthropic SDK's way.
  if (bearer.empty() && request.path.starts_with("/v1/messages")) given = header("x-api-key");
  std::optional<std::string> found;
  for (const Key& key : keys_)
    if (equal_secret(given, key.secret)) found = key.name;
  return found;
}

std::optional<Guard::Pass> Guard::enter(const std::string& client) {
  std::lock_guard lock(mutex_);
  int& count = at_work_[client];
  if (options_.max_requests_per_client > 0 && count >= options_.max_requests_per_client)
    return std::nullopt;
  ++count;
  return Pass(this, client);
}

void Guard::leave(const std::string& client) {
  std::lock_guard lock(mutex_);
  const auto it = at_work_.find(client);
  if (--it->second == 0) at_work_.erase(it);
}

}  // namespace nibble
