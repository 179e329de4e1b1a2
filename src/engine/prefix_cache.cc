// Lookup along a prefix.
#include "engine/prefix_cache.h"

#include <algorithm>

namespace nibble {
namespace {

// The slot with the longest kept state of this prefix, at most `limit` blocks, or -1. There are
// few snapshots and many blocks: walking the snapshots is the short way.
int32_t longest_snapshot(const SlotCache& cache, std::span<const int32_t> positions,
                         std::span<const BlockHash> hashes, int32_t limit) {
  int32_t best = -1;
  int32_t best_position = 0;
  for (int32_t slot = 0; slot < cache.pool().size(); ++slot) {
    const int32_t position = positions[static_cast<size_t>(slot)];
    if (position <= best_position || position > limit || !cache.published(slot)) continue;
    if (cache.hash(slot) != hashes[static_cast<size_t>(position) - 1]) continue;
    best = slot;
    best_position = position;
  }
  return best;
}

}  // namespace

PrefixCache::PrefixCache(const PrefixCacheShape& shape)
    : blocks(shape.num_blocks),
      snapshots(shape.num_snapshots),
      host_blocks(shape.num_host_blocks),
      host_snapshots(shape.num_host_snapshots),
      hybrid_(shape.hybrid),
      snapshot_position_(static_cast<size_t>(shape.num_snapshots), 0),
      host_snapshot_position_(static_cast<size_t>(shape.num_host_snapshots), 0) {}

int32_t PrefixCache::match_device_blocks(std::span<const BlockHash> hashes) const {
  // present(i) holds for i < answer and fails from there on. Gallop first: most lookups match
  // little.
  int32_t low = 0;  // that many are present
  int32_t high = 1;
  const auto size = static_cast<int32_t>(hashes.size());
  const auto present = [&](int32_t i) { return blocks.find(hashes[static_cast<size_t>(i)]) >= 0; };
  while (high <= size && present(high - 1)) {
    low = high;
    high *= 2;
  }
  high = std::min(high, size + 1);
  while (high - low > 1) {
    const int32_t middle = (low + high) / 2;
    (present(middle - 1) ? low : high) = middle;
  }
  return low;
}

PrefixMatch PrefixCache::match(std::span<const BlockHash> hashes) const {
  PrefixMatch match;
  const int32_t on_device = match_device_blocks(hashes);
  int32_t kept = on_device;
  if (host_blocks.num_published() > 0)
    while (kept < static_cast<int32_t>(hashes.size()) &&
           host_blocks.find(hashes[static_cast<size_t>(kept)]) >= 0)
      ++kept;
  match.num_kept_blocks = kept;
  match.num_blocks = kept;
  if (hybrid_) {
    const int32_t slot = longest_snapshot(snapshots, snapshot_position_, hashes, kept);
    const int32_t host = longest_snapshot(host_snapshots, host_snapshot_position_, hashes, kept);
    const int32_t at = slot < 0 ? 0 : snapshot_position_[static_cast<size_t>(slot)];
    const int32_t host_at = host < 0 ? 0 : host_snapshot_position_[static_cast<size_t>(host)];
    match.num_blocks = std::max(at, host_at);
    if (at >= host_at) {
      match.snapshot = slot;
    } else {
      match.host_snapshot = host;
    }
  }
  match.num_device_blocks = std::min(on_device, match.num_blocks);
  return match;
}

void PrefixCache::publish_snapshot(int32_t slot, const BlockHash& hash, int32_t num_blocks) {
  snapshots.publish(slot, hash);
  snapshot_position_[static_cast<size_t>(slot)] = num_blocks;
}

void PrefixCache::publish_host_snapshot(int32_t slot, const BlockHash& hash, int32_t num_blocks) {
  host_snapshots.publish(slot, hash);
  host_snapshot_position_[static_cast<size_t>(slot)] = num_blocks;
}

void PrefixCache::clear() {
  blocks.clear();
  snapshots.clear();
  host_blocks.clear();
  host_snapshots.clear();
}

}  // namespace nibble
