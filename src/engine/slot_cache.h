// Slots that keep their content after the last user has gone, found by the hash of the prefix that
// made it, until the slot is taken for something else. One thread; allocates only when made.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "engine/block_hash.h"
#include "engine/block_pool.h"

namespace nibble {

class SlotCache {
 public:
  explicit SlotCache(int32_t num_slots)
      : pool_(num_slots),
        hashes_(static_cast<size_t>(num_slots)),
        is_published_(static_cast<size_t>(num_slots), 0),
        table_(std::bit_ceil(static_cast<size_t>(num_slots) * 2 + 2), -1) {}

  const BlockPool& pool() const { return pool_; }
  int32_t num_published() const { return num_published_; }

  // A slot whose content is forgotten, with one reference, or -1 when all are in use.
  int32_t take() {
    const int32_t slot = pool_.take();
    if (slot >= 0) forget(slot);
    return slot;
  }
  void share(int32_t slot) { pool_.share(slot); }
  void release(int32_t slot) { pool_.release(slot, !published(slot)); }
  // Marks a slot as used just now.
  void touch(int32_t slot) {
    share(slot);
    release(slot);
  }

  // The slot published under `hash`, or -1.
  int32_t find(const BlockHash& hash) const {
    for (size_t i = home(hash);; i = after(i)) {
      const int32_t slot = table_[i];
      if (slot < 0 || hashes_[static_cast<size_t>(slot)] == hash) return slot;
    }
  }
  // `hash` must be new, `slot` without a name.
  void publish(int32_t slot, const BlockHash& hash) {
    NB_CHECK(!published(slot), "slot %d has a name already", slot);
    hashes_[static_cast<size_t>(slot)] = hash;
    is_published_[static_cast<size_t>(slot)] = 1;
    size_t i = home(hash);
    while (table_[i] >= 0) i = after(i);
    table_[i] = slot;
    ++num_published_;
  }
  bool published(int32_t slot) const { return is_published_[static_cast<size_t>(slot)] != 0; }
  const BlockHash& hash(int32_t slot) const { return hashes_[static_cast<size_t>(slot)]; }

  void forget(int32_t slot) {
    if (!published(slot)) return;
    is_published_[static_cast<size_t>(slot)] = 0;
    --num_published_;
    size_t hole = home(hash(slot));
    while (table_[hole] != slot) hole = after(hole);
    // Linear probing without tombstones: later entries of the run move up unless they would pass
    // their home.
    for (size_t i = after(hole); table_[i] >= 0; i = after(i)) {
      const size_t distance = (i - home(hash(table_[i]))) & (table_.size() - 1);
      if (distance < ((i - hole) & (table_.size() - 1))) continue;
      table_[hole] = table_[i];
      hole = i;
    }
    table_[hole] = -1;
  }
  // Forgets every content; slots in use stay in use.
  void clear() {
    for (int32_t slot = 0; slot < pool_.size(); ++slot) forget(slot);
  }

 private:
  size_t home(const BlockHash& hash) const { return hash.word() & (table_.size() - 1); }
  size_t after(size_t i) const { return (i + 1) & (table_.size() - 1); }

  BlockPool pool_;
  std::vector<BlockHash> hashes_;      // of the slots
  std::vector<uint8_t> is_published_;  // of the slots
  std::vector<int32_t> table_;         // open addressing; slots, -1 for empty
  int32_t num_published_ = 0;
};

}  // namespace nibble
