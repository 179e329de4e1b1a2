// What is kept of computed prefixes, on the device and in host memory: KV blocks, and for hybrid
// models snapshots of the recurrent states at block boundaries. A sequence may resume at p only if
// every KV block of [0, p) is kept and, for a hybrid model, a snapshot taken exactly at p.
//
// On the device a kept block's parent is kept too: whoever holds a block holds all before it,
// blocks of one name are one block (the scheduler swaps duplicates), and they are released last
// first. So presence along a prefix is monotone, and a lookup searches it by bisection.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/slot_cache.h"

namespace nibble {

struct PrefixCacheShape {
  int32_t num_blocks = 0;     // of the device
  int32_t num_snapshots = 0;  // of the device
  int32_t num_host_blocks = 0;
  int32_t num_host_snapshots = 0;
  bool hybrid = false;  // resuming needs a snapshot
};

// A copy between tiers, in order with all others and before the step planned with it.
struct SlotCopy {
  enum class Kind : uint8_t {
    kStateToSnapshot,
    kSnapshotToState,
    kBlockToHost,
    kHostToBlock,
    kSnapshotToHost,
    kHostToState,
  };
  Kind kind = Kind::kStateToSnapshot;
  int32_t from = 0;
  int32_t to = 0;
};

struct PrefixMatch {
  int32_t num_blocks = 0;         // to resume after
  int32_t num_device_blocks = 0;  // of these; the rest is in host memory
  int32_t snapshot = -1;          // on the device, or
  int32_t host_snapshot = -1;     // in host memory; both -1 for pure attention
  int32_t num_kept_blocks = 0;    // KV that matches, resumable or not
};

class PrefixCache {
 public:
  explicit PrefixCache(const PrefixCacheShape& shape);

  // The longest resumable prefix of at most hashes.size() blocks; hashes[i] is of block i.
  PrefixMatch match(std::span<const BlockHash> hashes) const;
  // Blocks of the prefix that are on the device, in O(log).
  int32_t match_device_blocks(std::span<const BlockHash> hashes) const;

  // Names a snapshot just taken after `num_blocks` blocks; the slot stays free to be evicted.
  void publish_snapshot(int32_t slot, const BlockHash& hash, int32_t num_blocks);
  void publish_host_snapshot(int32_t slot, const BlockHash& hash, int32_t num_blocks);
  int32_t snapshot_position(int32_t slot) const {
    return snapshot_position_[static_cast<size_t>(slot)];
  }
  void clear();

  bool hybrid() const { return hybrid_; }
  SlotCache blocks, snapshots, host_blocks, host_snapshots;

 private:
  bool hybrid_;
  std::vector<int32_t> snapshot_position_, host_snapshot_position_;  // in blocks, of the slots
};

}  // namespace nibble
