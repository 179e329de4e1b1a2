// Moving kept prefixes from files to host memory, slot by slot, without knowing what a slot holds:
// what to read for a prompt that comes in. From host memory the scheduler takes it (scheduler.cc),
// and what it keeps there goes to files by PersistRequest.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "engine/prefix_cache.h"

namespace nibble {

// A slot's content on its way from a file to a host slot, which holds a reference meanwhile.
struct DiskLoad {
  bool is_snapshot = false;
  int32_t host_slot = 0;
  BlockHash hash;
  int32_t num_blocks = 0;  // of the prefix that ends with it
  bool done = false;       // read, and checked
};

using OnDisk = std::function<bool(bool is_snapshot, const BlockHash& hash)>;

// What is missing on device and host to resume this prefix as late as files allow; empty when files
// do not help, or when host memory has no room for it. Takes the host slots.
std::vector<DiskLoad> plan_disk_loads(PrefixCache& cache, std::span<const BlockHash> hashes,
                                      const OnDisk& on_disk);
// Publishes what was read and releases the slots.
void finish_disk_loads(PrefixCache& cache, std::span<const DiskLoad> loads);

}  // namespace nibble
