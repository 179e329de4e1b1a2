// TLS for the HTTP server: a certificate and key from PEM files, and sessions over non-blocking
// sockets. TLS 1.2 and newer, OpenSSL's default ciphers, no renegotiation, no compression.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "base/result.h"

namespace nibble {

// Immutable once loaded; shared by the sessions made from it.
class TlsContext {
 public:
  // kInvalidArgument names the file that cannot be read, or that the two do not belong together.
  static Result<std::shared_ptr<TlsContext>> load(const std::string& certificate_file,
                                                  const std::string& key_file);
  ~TlsContext();

 private:
  friend class TlsSession;
  TlsContext() = default;
  struct State;
  std::unique_ptr<State> state_;
};

// The server's end of one connection. The handshake happens inside the first reads.
class TlsSession {
 public:
  // What the socket must become before the call can go on, or that it cannot.
  enum class Want { kNothing, kRead, kWrite, kEnd };

  // `fd` stays its owner's and must be non-blocking.
  TlsSession(std::shared_ptr<TlsContext> context, int fd);
  ~TlsSession();

  // Number of bytes moved; 0 when `want` is not kNothing.
  size_t read(char* bytes, size_t size, Want* want);
  size_t write(const char* bytes, size_t size, Want* want);
  // Decrypted bytes that wait without the socket being readable.
  bool has_pending() const;
  // Says goodbye, as far as the kernel takes it at once.
  void shutdown();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace nibble
