// The third cache tier: files under --cache-dir, one per slot, named by the hash of the prefix that
// ends with it. One thread of its own reads and writes, so the engine thread never waits for a
// disk; the slots' bytes are host memory that the poster keeps referenced meanwhile.
//
//   DIR/FINGERPRINT/ab/ab12...34.kv     header (kHeaderBytes), then the slot's bytes
//   DIR/FINGERPRINT/ab/ab12...34.state
//
// A file carries a SHA-256 of all of itself and the fingerprint of model and configuration; one
// that does not match is removed and missed, never believed. Files are written whole, synced and
// renamed into place, so a crash leaves at most *.partial, which the next start removes.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/file.h"
#include "base/result.h"
#include "engine/cache_tiers.h"
#include "engine/scheduler.h"

namespace nibble {

struct DiskTierOptions {
  fs::path dir;
  std::string fingerprint;  // 64 hex digits; other models' files live elsewhere
  size_t max_bytes = 0;     // of files under this fingerprint
  size_t block_bytes = 0;   // of a slot
  size_t snapshot_bytes = 0;
};

struct DiskTierStats {
  int64_t num_writes = 0, num_reads = 0, num_rejects = 0, num_bytes = 0;
};

class DiskTier {
 public:
  using SlotBytes = std::function<std::span<std::byte>(bool is_snapshot, int32_t host_slot)>;
  // Lists what is there. `slot_bytes` is called by the disk thread, `on_done` too, whenever
  // something may be taken.
  static Result<std::unique_ptr<DiskTier>> open(const DiskTierOptions& options,
                                                SlotBytes slot_bytes,
                                                std::function<void()> on_done);
  // Writes what is still queued.
  ~DiskTier();

  bool has(bool is_snapshot, const BlockHash& hash) const;
  // Marks a prefix as used just now: its files are removed last, its beginning after its end.
  void touch(std::span<const BlockHash> hashes);
  void write(const PersistRequest& request);
  // `ticket` comes back with the loads.
  void read(uint64_t ticket, std::vector<DiskLoad> loads);

  struct ReadDone {
    uint64_t ticket = 0;
    std::vector<DiskLoad> loads;
  };
  // Appends what is done since the last call.
  void take_done(std::vector<PersistRequest>* written, std::vector<ReadDone>* read);
  DiskTierStats stats() const;

 private:
  struct Entry {
    size_t bytes = 0;
    uint64_t used = 0;  // key of by_use_
  };
  using Index = std::unordered_map<BlockHash, Entry, BlockHashKey>;

  DiskTier(const DiskTierOptions& options, SlotBytes slot_bytes, std::function<void()> on_done);
  Status scan();
  void loop();
  void write_slot(const PersistRequest& request);
  bool read_slot(const DiskLoad& load);
  void reject(bool is_snapshot, const BlockHash& hash, const std::string& why);
  fs::path path_of(bool is_snapshot, const BlockHash& hash) const;
  // Under mutex_.
  void insert(bool is_snapshot, const BlockHash& hash, size_t bytes);
  void erase(bool is_snapshot, const BlockHash& hash);
  void mark_used(bool is_snapshot, const BlockHash& hash, Entry* entry);

  DiskTierOptions options_;
  fs::path root_;
  SlotBytes slot_bytes_;
  std::function<void()> on_done_;

  mutable std::mutex mutex_;  // guards the rest
  std::condition_variable wake_;
  bool stopping_ = false;
  bool warned_ = false;         // one line about files that cannot be written is enough
  std::array<Index, 2> index_;  // blocks, snapshots
  std::map<uint64_t, std::pair<bool, BlockHash>> by_use_;  // oldest first
  uint64_t clock_ = 0;
  std::vector<PersistRequest> writes_, written_;
  std::vector<ReadDone> reads_, done_;
  std::vector<std::vector<BlockHash>> touches_;
  DiskTierStats stats_;
  std::thread thread_;
};

}  // namespace nibble
