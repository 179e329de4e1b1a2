// Fixed slots handed out by index, with reference counts: KV blocks and recurrent-state slots are
// two instances. One thread. Knows nothing of what a slot holds.
#pragma once

#include <cstdint>
#include <vector>

#include "base/check.h"

namespace nibble {

class BlockPool {
 public:
  explicit BlockPool(int32_t num_slots) : refcounts_(static_cast<size_t>(num_slots), 0) {
    free_.reserve(refcounts_.size());
    for (int32_t slot = num_slots; slot-- > 0;) free_.push_back(slot);
  }

  int32_t size() const { return static_cast<int32_t>(refcounts_.size()); }
  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }

  // A free slot with one reference, or -1.
  int32_t take() {
    if (free_.empty()) return -1;
    const int32_t slot = free_.back();
    free_.pop_back();
    refcounts_[static_cast<size_t>(slot)] = 1;
    return slot;
  }
  void share(int32_t slot) { ++count(slot); }
  void release(int32_t slot) {
    int32_t& references = count(slot);
    NB_CHECK(references > 0, "slot %d released too often", slot);
    if (--references == 0) free_.push_back(slot);
  }
  int32_t references(int32_t slot) const { return refcounts_[static_cast<size_t>(slot)]; }

 private:
  int32_t& count(int32_t slot) {
    NB_CHECK(slot >= 0 && slot < size(), "slot %d of %d", slot, size());
    return refcounts_[static_cast<size_t>(slot)];
  }
  std::vector<int32_t> refcounts_;
  std::vector<int32_t> free_;
};

}  // namespace nibble
