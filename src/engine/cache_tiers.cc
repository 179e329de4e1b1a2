// The one decision between tiers that is not made while scheduling.
#include "engine/cache_tiers.h"

namespace nibble {

std::vector<DiskLoad> plan_disk_loads(PrefixCache& cache, std::span<const BlockHash> hashes,
                                      const OnDisk& on_disk) {
  std::vector<DiskLoad> loads;
  const PrefixMatch now = cache.match(hashes);
  const auto size = static_cast<int32_t>(hashes.size());
  const auto hash_at = [&](int32_t i) -> const BlockHash& {
    return hashes[static_cast<size_t>(i)];
  };
  const int32_t on_device = cache.match_device_blocks(hashes);
  const auto above_disk = [&](int32_t i) {
    return i < on_device || cache.host_blocks.find(hash_at(i)) >= 0;
  };
  int32_t reach = 0;  // blocks that some tier has
  while (reach < size && (above_disk(reach) || on_disk(false, hash_at(reach)))) ++reach;
  bool snapshot_from_disk = false;
  if (cache.hybrid()) {
    for (; reach > now.num_blocks; --reach) {
      const BlockHash& hash = hash_at(reach - 1);
      if (cache.snapshots.find(hash) >= 0 || cache.host_snapshots.find(hash) >= 0) break;
      snapshot_from_disk = on_disk(true, hash);
      if (snapshot_from_disk) break;
    }
  }
  if (reach <= now.num_blocks) return loads;

  const auto add = [&](bool is_snapshot, int32_t block) {
    SlotCache& host = is_snapshot ? cache.host_snapshots : cache.host_blocks;
    const int32_t slot = host.take();
    if (slot < 0) return false;
    loads.push_back({is_snapshot, slot, hash_at(block), block + 1, false});
    return true;
  };
  bool room = !snapshot_from_disk || add(true, reach - 1);
  for (int32_t i = on_device; i < reach && room; ++i) {
    const int32_t known = cache.host_blocks.find(hash_at(i));
    if (known >= 0) {
      cache.host_blocks.touch(known);  // so that the loads do not evict it
    } else {
      room = on_disk(false, hash_at(i)) && add(false, i);  // an earlier load may have evicted it
    }
  }
  if (!room) {
    finish_disk_loads(cache, loads);
    loads.clear();
  }
  return loads;
}

void finish_disk_loads(PrefixCache& cache, std::span<const DiskLoad> loads) {
  for (const DiskLoad& load : loads) {
    SlotCache& host = load.is_snapshot ? cache.host_snapshots : cache.host_blocks;
    if (load.done && host.find(load.hash) < 0) {
      if (load.is_snapshot) {
        cache.publish_host_snapshot(load.host_slot, load.hash, load.num_blocks);
      } else {
        host.publish(load.host_slot, load.hash);
      }
    }
    host.release(load.host_slot);
  }
}

}  // namespace nibble
