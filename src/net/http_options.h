// The HTTP server's limits and TLS files as flags of `nibble serve`.
#pragma once

#include <string>

#include "base/result.h"
#include "net/http_server.h"

namespace nibble {

struct HttpFlags {
  std::string uds;
  std::string ssl_certfile;
  std::string ssl_keyfile;
  size_t max_body_bytes = size_t{32} << 20;
  int max_connections = 8192;
  int header_timeout_s = 10;
  int body_timeout_s = 30;
  int keep_alive_timeout_s = 5;
  int write_timeout_s = 30;

  template <class V>
  void visit(V& v) {
    v.option("uds", &uds, "path of a Unix socket to listen on instead of host and port");
    v.option("ssl-certfile", &ssl_certfile, "PEM file with the certificate chain: serve HTTPS");
    v.option("ssl-keyfile", &ssl_keyfile, "PEM file with the certificate's key");
    v.option("max-body-bytes", &max_body_bytes, "a larger request body gets 413");
    v.option("max-connections", &max_connections, "more get 503");
    v.option("header-timeout", &header_timeout_s, "seconds a request's head may take");
    v.option("body-timeout", &body_timeout_s,
             "seconds a request's body may take, plus one per 64 KiB");
    v.option("keep-alive-timeout", &keep_alive_timeout_s, "seconds a connection may stay idle");
    v.option("write-timeout", &write_timeout_s,
             "seconds without progress until a client that does not read is dropped");
  }

  // Copies the checked values. kInvalidArgument names the flag.
  Status apply(HttpServerOptions* options) const;
};

}  // namespace nibble
