// Byte-pair merges by rank over one word.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace nibble {

class Bpe {
 public:
  struct Merge {
    int32_t rank = 0;
    int32_t result = 0;  // id of the joined piece
  };

  // Ids of the 256 single bytes; every one must exist.
  void set_byte_ids(const std::vector<int32_t>& ids) { byte_ids_ = ids; }
  void add_merge(int32_t left, int32_t right, int32_t rank, int32_t result) {
    merges_.try_emplace(key(left, right), Merge{rank, result});
  }
  size_t num_merges() const { return merges_.size(); }

  // Appends the ids of `word` (raw bytes). Lowest rank first, leftmost among equals; O(n log n).
  void encode(std::string_view word, std::vector<int32_t>* ids) const;

 private:
  static uint64_t key(int32_t left, int32_t right) {
    return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) |
           static_cast<uint32_t>(right);
  }
  const Merge* find(int32_t left, int32_t right) const {
    const auto it = merges_.find(key(left, right));
    return it == merges_.end() ? nullptr : &it->second;
  }

  struct Hash {
    size_t operator()(uint64_t x) const {
      x ^= x >> 32;
      x *= 0xd6e8feb86659fd93u;
      return static_cast<size_t>(x ^ (x >> 32));
    }
  };
  std::unordered_map<uint64_t, Merge, Hash> merges_;
  std::vector<int32_t> byte_ids_;
};

}  // namespace nibble
