// OpenSSL over a file descriptor: SSL_read and SSL_write say which readiness they wait for.
#include "net/tls.h"

#include <openssl/err.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <csignal>

#include "base/format.h"

namespace nibble {
namespace {

std::string last_reason() {
  const unsigned long code = ERR_get_error();
  const char* reason = code == 0 ? nullptr : ERR_reason_error_string(code);
  ERR_clear_error();
  return reason ? reason : "unknown error";
}

TlsSession::Want want_after(SSL* ssl, int result) {
  switch (SSL_get_error(ssl, result)) {
    case SSL_ERROR_WANT_READ: return TlsSession::Want::kRead;
    case SSL_ERROR_WANT_WRITE: return TlsSession::Want::kWrite;
    default: ERR_clear_error(); return TlsSession::Want::kEnd;
  }
}

}  // namespace

struct TlsContext::State {
  std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context{nullptr, SSL_CTX_free};
};

Result<std::shared_ptr<TlsContext>> TlsContext::load(const std::string& certificate_file,
                                                     const std::string& key_file) {
  std::signal(SIGPIPE, SIG_IGN);  // OpenSSL writes with write(), which would raise it
  std::shared_ptr<TlsContext> out(new TlsContext);
  out->state_ = std::make_unique<State>();
  out->state_->context.reset(SSL_CTX_new(TLS_server_method()));
  SSL_CTX* const context = out->state_->context.get();
  if (!context) return make_error(ErrorCode::kIo, "TLS cannot start: {}", last_reason());
  SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                   SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_IGNORE_UNEXPECTED_EOF);
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                SSL_MODE_RELEASE_BUFFERS);
  if (SSL_CTX_use_certificate_chain_file(context, certificate_file.c_str()) != 1)
    return make_error(ErrorCode::kInvalidArgument,
                      "--ssl-certfile {}: {}; give a PEM file with the certificate chain",
                      certificate_file, last_reason());
  if (SSL_CTX_use_PrivateKey_file(context, key_file.c_str(), SSL_FILETYPE_PEM) != 1)
    return make_error(ErrorCode::kInvalidArgument,
                      "--ssl-keyfile {}: {}; give the PEM file of the certificate's own key",
                      key_file, last_reason());
  return out;
}

TlsContext::~TlsContext() = default;

struct TlsSession::State {
  std::shared_ptr<TlsContext> context;
  std::unique_ptr<SSL, decltype(&SSL_free)> ssl{nullptr, SSL_free};
};

TlsSession::TlsSession(std::shared_ptr<TlsContext> context, int fd)
    : state_(std::make_unique<State>()) {
  state_->ssl.reset(SSL_new(context->state_->context.get()));
  state_->context = std::move(context);
  if (!state_->ssl) return;  // out of memory: every call says kEnd
  SSL_set_fd(state_->ssl.get(), fd);
  SSL_set_accept_state(state_->ssl.get());
}

TlsSession::~TlsSession() = default;

size_t TlsSession::read(char* bytes, size_t size, Want* want) {
  *want = Want::kEnd;
  if (!state_->ssl) return 0;
  ERR_clear_error();
  const int num =
      SSL_read(state_->ssl.get(), bytes, static_cast<int>(std::min(size, size_t{1} << 30)));
  *want = num > 0 ? Want::kNothing : want_after(state_->ssl.get(), num);
  return num > 0 ? static_cast<size_t>(num) : 0;
}

size_t TlsSession::write(const char* bytes, size_t size, Want* want) {
  *want = Want::kEnd;
  if (!state_->ssl) return 0;
  ERR_clear_error();
  const int num =
      SSL_write(state_->ssl.get(), bytes, static_cast<int>(std::min(size, size_t{1} << 30)));
  *want = num > 0 ? Want::kNothing : want_after(state_->ssl.get(), num);
  return num > 0 ? static_cast<size_t>(num) : 0;
}

bool TlsSession::has_pending() const {
  return state_->ssl && SSL_pending(state_->ssl.get()) > 0;
}

void TlsSession::shutdown() {
  if (!state_->ssl || SSL_is_init_finished(state_->ssl.get()) == 0) return;
  ERR_clear_error();
  SSL_shutdown(state_->ssl.get());
  ERR_clear_error();
}

}  // namespace nibble
