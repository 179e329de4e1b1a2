// Ranges of the HTTP flags.
#include "net/http_options.h"

#include "base/format.h"

namespace nibble {

Status HttpFlags::apply(HttpServerOptions* options) const {
  const auto check = [](const char* flag, int64_t value, int64_t most) -> Status {
    if (value >= 1 && value <= most) return {};
    return make_error(ErrorCode::kInvalidArgument, "--{} {}: must be 1 to {}", flag, value, most);
  };
  constexpr int kDay = 86'400;
  NB_TRY_STATUS(check("max-body-bytes", static_cast<int64_t>(max_body_bytes), int64_t{1} << 32));
  NB_TRY_STATUS(check("max-connections", max_connections, 1'000'000));
  NB_TRY_STATUS(check("header-timeout", header_timeout_s, kDay));
  NB_TRY_STATUS(check("body-timeout", body_timeout_s, kDay));
  NB_TRY_STATUS(check("keep-alive-timeout", keep_alive_timeout_s, kDay));
  NB_TRY_STATUS(check("write-timeout", write_timeout_s, kDay));
  if (ssl_certfile.empty() != ssl_keyfile.empty())
    return make_error(ErrorCode::kInvalidArgument,
                      "--ssl-certfile and --ssl-keyfile go together; {} is missing",
                      ssl_certfile.empty() ? "--ssl-certfile" : "--ssl-keyfile");
  options->uds = uds;
  options->tls_certificate = ssl_certfile;
  options->tls_key = ssl_keyfile;
  options->max_body_bytes = max_body_bytes;
  options->max_connections = max_connections;
  options->header_timeout = std::chrono::seconds(header_timeout_s);
  options->body_timeout = std::chrono::seconds(body_timeout_s);
  options->idle_timeout = std::chrono::seconds(keep_alive_timeout_s);
  options->write_timeout = std::chrono::seconds(write_timeout_s);
  return {};
}

}  // namespace nibble
