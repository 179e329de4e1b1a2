// OpenSSL's EVP interface behind base/hash.h. Its calls fail only when the library itself is
// broken, so failures are checks, not errors.
#include "base/hash.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "base/format.h"

namespace nibble {

struct Sha256::Context {
  EVP_MD_CTX* evp = EVP_MD_CTX_new();
  Context() { NB_CHECK(evp != nullptr, "OpenSSL gives no digest context"); }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  ~Context() { EVP_MD_CTX_free(evp); }
  void start() {
    NB_CHECK(EVP_DigestInit_ex(evp, EVP_sha256(), nullptr) == 1, "OpenSSL has no SHA-256");
  }
};

Sha256::Sha256() : context_(std::make_unique<Context>()) {
  context_->start();
}
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;
Sha256::~Sha256() = default;

void Sha256::update(std::span<const std::byte> bytes) {
  NB_CHECK(EVP_DigestUpdate(context_->evp, bytes.data(), bytes.size()) == 1);
}

std::array<std::byte, 32> Sha256::finish_bytes() {
  std::array<std::byte, 32> digest = {};
  unsigned int size = 0;
  NB_CHECK(EVP_DigestFinal_ex(context_->evp, reinterpret_cast<unsigned char*>(digest.data()),
                              &size) == 1 &&
           size == digest.size());
  context_->start();
  return digest;
}

std::string Sha256::finish() {
  std::string hex;
  hex.reserve(64);
  for (const std::byte byte : finish_bytes()) hex += format("{:02x}", static_cast<unsigned>(byte));
  return hex;
}

std::string sha256_hex(std::string_view bytes) {
  Sha256 hash;
  hash.update(bytes);
  return hash.finish();
}

Result<std::string> sha256_file(const fs::path& path) {
  const auto failure = [&](const char* doing) {
    return make_error(errno == ENOENT ? ErrorCode::kNotFound : ErrorCode::kIo, "{}: cannot {}: {}",
                      path.string(), doing, std::strerror(errno));
  };
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return failure("open");
  Sha256 hash;
  std::vector<std::byte> buffer(size_t{1} << 20);
  while (true) {
    const ssize_t got = ::read(fd, buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      Error error = failure("read");
      ::close(fd);
      return error;
    }
    if (got == 0) break;
    hash.update(std::span(buffer).first(static_cast<size_t>(got)));
  }
  ::close(fd);
  return hash.finish();
}

}  // namespace nibble
