// Files, their index, and the thread that serves them: reads before writes.
#include "engine/disk_tier.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>

#include "base/format.h"
#include "base/hash.h"
#include "base/log.h"

namespace nibble {
namespace {

constexpr std::string_view kMagic = "nibble kv cache\n";  // 16 bytes

struct Header {
  std::array<char, 16> magic;
  uint32_t version;
  uint32_t is_snapshot;
  uint32_t num_blocks;
  uint32_t reserved;
  uint64_t payload_bytes;
  std::array<char, 64> fingerprint;
  std::array<std::byte, 32> hash;
  std::array<std::byte, 32> checksum;  // of the header with zeros here, then the payload
};
constexpr size_t kHeaderBytes = sizeof(Header);
static_assert(kHeaderBytes == 168);

std::array<std::byte, 32> checksum(Header header, std::span<const std::byte> payload) {
  header.checksum = {};
  Sha256 hash;
  hash.update(std::as_bytes(std::span(&header, 1)));
  hash.update(payload);
  return hash.finish_bytes();
}

std::string hex(const BlockHash& hash) {
  std::string text;
  for (const std::byte byte : hash.bytes) text += format("{:02x}", static_cast<unsigned>(byte));
  return text;
}

bool parse_hex(std::string_view text, BlockHash* hash) {
  const auto digit = [](char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
  };
  if (text.size() != 64) return false;
  for (size_t i = 0; i < 32; ++i) {
    const int high = digit(text[2 * i]);
    const int low = digit(text[2 * i + 1]);
    if (high < 0 || low < 0) return false;
    hash->bytes[i] = static_cast<std::byte>(high * 16 + low);
  }
  return true;
}

}  // namespace

DiskTier::DiskTier(const DiskTierOptions& options, SlotBytes slot_bytes,
                   std::function<void()> on_done)
    : options_(options),
      root_(options.dir / options.fingerprint.substr(0, 16)),
      slot_bytes_(std::move(slot_bytes)),
      on_done_(std::move(on_done)) {}

Result<std::unique_ptr<DiskTier>> DiskTier::open(const DiskTierOptions& options,
                                                 SlotBytes slot_bytes,
                                                 std::function<void()> on_done) {
  std::unique_ptr<DiskTier> tier(new DiskTier(options, std::move(slot_bytes), std::move(on_done)));
  NB_TRY_STATUS(tier->scan());
  tier->thread_ = std::thread([raw = tier.get()] { raw->loop(); });
  return tier;
}

DiskTier::~DiskTier() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

// Oldest first, so that the order of use survives a restart. Contents are checked when read.
Status DiskTier::scan() {
  std::error_code error;
  fs::create_directories(root_, error);
  if (error)
    return make_error(ErrorCode::kIo, "--cache-dir {}: cannot create {}: {}", options_.dir.string(),
                      root_.string(), error.message());
  struct Found {
    fs::file_time_type time;
    bool is_snapshot;
    BlockHash hash;
    size_t bytes;
  };
  std::vector<Found> found;
  for (fs::recursive_directory_iterator it(root_, error), end; !error && it != end;
       it.increment(error)) {
    std::error_code ignored;
    if (!it->is_regular_file(ignored)) continue;
    const std::string extension = it->path().extension().string();
    if (extension == ".partial") fs::remove(it->path(), ignored);
    Found file;
    if ((extension != ".kv" && extension != ".state") ||
        !parse_hex(it->path().stem().string(), &file.hash))
      continue;
    file.is_snapshot = extension == ".state";
    file.bytes = it->file_size(ignored);
    file.time = it->last_write_time(ignored);
    found.push_back(file);
  }
  if (error)
    return make_error(ErrorCode::kIo, "--cache-dir {}: cannot list {}: {}", options_.dir.string(),
                      root_.string(), error.message());
  std::ranges::sort(found, {}, &Found::time);
  for (const Found& file : found) insert(file.is_snapshot, file.hash, file.bytes);
  return {};
}

bool DiskTier::has(bool is_snapshot, const BlockHash& hash) const {
  std::lock_guard lock(mutex_);
  return index_[is_snapshot].contains(hash);
}

void DiskTier::touch(std::span<const BlockHash> hashes) {
  {
    std::lock_guard lock(mutex_);
    touches_.emplace_back(hashes.begin(), hashes.end());
  }
  wake_.notify_one();
}

void DiskTier::write(const PersistRequest& request) {
  {
    std::lock_guard lock(mutex_);
    writes_.push_back(request);
  }
  wake_.notify_one();
}

void DiskTier::read(uint64_t ticket, std::vector<DiskLoad> loads) {
  {
    std::lock_guard lock(mutex_);
    reads_.push_back({ticket, std::move(loads)});
  }
  wake_.notify_one();
}

void DiskTier::take_done(std::vector<PersistRequest>* written, std::vector<ReadDone>* read) {
  std::lock_guard lock(mutex_);
  written->insert(written->end(), written_.begin(), written_.end());
  written_.clear();
  for (ReadDone& done : done_) read->push_back(std::move(done));
  done_.clear();
}

DiskTierStats DiskTier::stats() const {
  std::lock_guard lock(mutex_);
  return stats_;
}

void DiskTier::loop() {
  std::unique_lock lock(mutex_);
  size_t next_write = 0;  // into writes_, which is a queue emptied as a whole
  while (true) {
    wake_.wait(lock, [&] {
      return stopping_ || !reads_.empty() || next_write < writes_.size() || !touches_.empty();
    });
    if (!reads_.empty()) {
      ReadDone job = std::move(reads_.front());
      reads_.erase(reads_.begin());
      lock.unlock();
      for (DiskLoad& load : job.loads) load.done = read_slot(load);
      lock.lock();
      done_.push_back(std::move(job));
    } else if (!touches_.empty()) {
      const std::vector<BlockHash> hashes = std::move(touches_.back());
      touches_.pop_back();
      for (auto hash = hashes.rbegin(); hash != hashes.rend(); ++hash)
        for (const bool is_snapshot : {false, true})
          if (auto it = index_[is_snapshot].find(*hash); it != index_[is_snapshot].end())
            mark_used(is_snapshot, *hash, &it->second);
      continue;
    } else if (next_write < writes_.size()) {
      const PersistRequest request = writes_[next_write++];
      if (next_write == writes_.size()) {
        writes_.clear();
        next_write = 0;
      }
      const bool is_new = !index_[request.is_snapshot].contains(request.hash);
      lock.unlock();
      if (is_new) write_slot(request);
      lock.lock();
      written_.push_back(request);
    } else {
      return;  // stopping, and nothing left
    }
    lock.unlock();
    on_done_();
    lock.lock();
  }
}

void DiskTier::write_slot(const PersistRequest& request) {
  const std::span<const std::byte> payload = slot_bytes_(request.is_snapshot, request.host_slot);
  const size_t bytes = kHeaderBytes + payload.size();
  if (bytes > options_.max_bytes) return;
  std::vector<fs::path> evicted;
  {
    std::lock_guard lock(mutex_);
    while (static_cast<size_t>(stats_.num_bytes) + bytes > options_.max_bytes) {
      const auto [is_snapshot, hash] = by_use_.begin()->second;
      evicted.push_back(path_of(is_snapshot, hash));
      erase(is_snapshot, hash);
    }
  }
  std::error_code ignored;
  for (const fs::path& path : evicted) fs::remove(path, ignored);

  Header header = {};
  std::ranges::copy(kMagic, header.magic.begin());
  header.version = 1;
  header.is_snapshot = request.is_snapshot;
  header.num_blocks = static_cast<uint32_t>(request.num_blocks);
  header.payload_bytes = payload.size();
  std::copy_n(options_.fingerprint.begin(),
              std::min(options_.fingerprint.size(), header.fingerprint.size()),
              header.fingerprint.begin());
  header.hash = request.hash.bytes;
  header.checksum = checksum(header, payload);
  std::string file(bytes, '\0');
  std::memcpy(file.data(), &header, kHeaderBytes);
  std::memcpy(file.data() + kHeaderBytes, payload.data(), payload.size());
  const fs::path path = path_of(request.is_snapshot, request.hash);
  fs::create_directories(path.parent_path(), ignored);
  const Status written = write_file_durably(path, file);
  std::lock_guard lock(mutex_);
  if (!written) {
    if (!warned_) log_warning("cache-dir cannot be written reason=\"{}\"", written.error().message);
    warned_ = true;
    return;
  }
  ++stats_.num_writes;
  insert(request.is_snapshot, request.hash, bytes);
}

bool DiskTier::read_slot(const DiskLoad& load) {
  const std::span<std::byte> slot = slot_bytes_(load.is_snapshot, load.host_slot);
  const Result<std::string> file =
      read_file(path_of(load.is_snapshot, load.hash), kHeaderBytes + slot.size());
  if (!file) {
    reject(load.is_snapshot, load.hash, file.error().message);
    return false;
  }
  const auto fails = [&](const char* why) {
    reject(load.is_snapshot, load.hash, why);
    return false;
  };
  if (file->size() != kHeaderBytes + slot.size()) return fails("wrong size");
  Header header;
  std::memcpy(&header, file->data(), kHeaderBytes);
  const auto payload = std::as_bytes(std::span(*file)).subspan(kHeaderBytes);
  if (std::string_view(header.magic.data(), header.magic.size()) != kMagic || header.version != 1)
    return fails("not a cache file of this version");
  if (std::string_view(header.fingerprint.data(), header.fingerprint.size()) !=
      options_.fingerprint)
    return fails("of another model or configuration");
  if (header.hash != load.hash.bytes || header.is_snapshot != load.is_snapshot ||
      header.num_blocks != static_cast<uint32_t>(load.num_blocks) ||
      header.payload_bytes != slot.size())
    return fails("of another prefix");
  if (checksum(header, payload) != header.checksum) return fails("checksum does not match");
  std::ranges::copy(payload, slot.begin());
  std::lock_guard lock(mutex_);
  ++stats_.num_reads;
  if (auto it = index_[load.is_snapshot].find(load.hash); it != index_[load.is_snapshot].end())
    mark_used(load.is_snapshot, load.hash, &it->second);
  return true;
}

void DiskTier::reject(bool is_snapshot, const BlockHash& hash, const std::string& why) {
  const fs::path path = path_of(is_snapshot, hash);
  log_warning("cache file ignored path={} reason=\"{}\"", path.string(), why);
  std::error_code ignored;
  fs::remove(path, ignored);
  std::lock_guard lock(mutex_);
  ++stats_.num_rejects;
  erase(is_snapshot, hash);
}

fs::path DiskTier::path_of(bool is_snapshot, const BlockHash& hash) const {
  const std::string name = hex(hash);
  return root_ / name.substr(0, 2) / (name + (is_snapshot ? ".state" : ".kv"));
}

void DiskTier::insert(bool is_snapshot, const BlockHash& hash, size_t bytes) {
  erase(is_snapshot, hash);
  const uint64_t now = ++clock_;
  index_[is_snapshot][hash] = {bytes, now};
  by_use_[now] = {is_snapshot, hash};
  stats_.num_bytes += static_cast<int64_t>(bytes);
}

void DiskTier::erase(bool is_snapshot, const BlockHash& hash) {
  const auto it = index_[is_snapshot].find(hash);
  if (it == index_[is_snapshot].end()) return;
  by_use_.erase(it->second.used);
  stats_.num_bytes -= static_cast<int64_t>(it->second.bytes);
  index_[is_snapshot].erase(it);
}

void DiskTier::mark_used(bool is_snapshot, const BlockHash& hash, Entry* entry) {
  by_use_.erase(entry->used);
  entry->used = ++clock_;
  by_use_[entry->used] = {is_snapshot, hash};
  // The file's time carries the order over a restart.
  ::utimensat(AT_FDCWD, path_of(is_snapshot, hash).c_str(), nullptr, 0);
}

}  // namespace nibble
