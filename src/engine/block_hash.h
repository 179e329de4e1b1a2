// The name of a full KV block: SHA-256 over the name of the block before it and its own token ids.
// Equal names mean equal prefixes, so a block, and the recurrent state at its end, may be shared.
// A cryptographic hash because tenants share one cache: whoever finds a collision would read
// another's answer (docs/decisions/0007-prefix-cache.md).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "base/hash.h"

namespace nibble {

struct BlockHash {
  std::array<std::byte, 32> bytes{};
  bool operator==(const BlockHash&) const = default;
  // Any eight of the bytes are as good as random.
  uint64_t word() const {
    uint64_t value = 0;
    std::memcpy(&value, bytes.data(), sizeof value);
    return value;
  }
};

struct BlockHashKey {
  size_t operator()(const BlockHash& hash) const { return hash.word(); }
};

// Not thread-safe; one per thread. Allocates nothing after construction.
class BlockHasher {
 public:
  // What the first block is chained to. Prefixes are shared under equal salts only.
  BlockHash root(std::string_view salt) {
    hash_.update("nibble prefix 1\n");
    hash_.update(salt);
    return {hash_.finish_bytes()};
  }
  BlockHash next(const BlockHash& parent, std::span<const int32_t> tokens) {
    hash_.update(std::span<const std::byte>(parent.bytes));
    hash_.update(std::as_bytes(tokens));
    return {hash_.finish_bytes()};
  }

 private:
  Sha256 hash_;
};

}  // namespace nibble
