// SHA-256 of bytes that arrive in pieces. Doorkeeper of OpenSSL's digests.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/file.h"
#include "base/result.h"

namespace nibble {

class Sha256 {
 public:
  Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;
  ~Sha256();

  void update(std::span<const std::byte> bytes);
  void update(std::string_view bytes) { update(std::as_bytes(std::span(bytes))); }
  // 64 lowercase hex digits of everything so far; the object starts afresh.
  std::string finish();
  // The same as 32 bytes. Allocates nothing after the first use of the object.
  std::array<std::byte, 32> finish_bytes();

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

std::string sha256_hex(std::string_view bytes);

// Reads the file in pieces: memory does not grow with it.
Result<std::string> sha256_file(const fs::path& path);

}  // namespace nibble
