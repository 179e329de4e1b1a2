// The order of steps that keeps OUT either absent or complete:
//
//   create   mkdir OUT.partial, flock OUT.partial/.nibble-lock, remove what an abandoned run left
//   add      tensor bytes to shard-00001.part, shard-00002.part, ...; each fsynced when it is full
//   finish   shards to their final names, index, side files, manifest.json, fsync of the directory,
//            renameat2(OUT.partial -> OUT, RENAME_NOREPLACE), fsync of the parent, remove the lock
//
// The lock file moves with the directory and goes last, so no moment exists at which another
// process could lock and empty a directory that is about to be renamed.
#include "checkpoint/writer.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <optional>
#include <vector>

#include "base/format.h"
#include "base/hash.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/shard_writer.h"

namespace nibble {
namespace {

constexpr const char* kLockName = ".nibble-lock";
constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr const char* kManifestName = "manifest.json";

Error io_error(const fs::path& path, const char* doing) {
  const int code = errno;
  return make_error(ErrorCode::kIo, "{}: cannot {}: {}", path.string(), doing, std::strerror(code));
}

// The SHA-256 of every tensor of a shard, so that damage can be named.
Status add_digests(const fs::path& path, Json& tensors) {
  NB_TRY(const SafetensorsFile file, SafetensorsFile::open(path));
  for (const TensorInfo& info : file.tensors()) {
    const Tensor tensor = file.view(info);
    tensors[info.name] = sha256_hex(
        {static_cast<const char*>(tensor.data), static_cast<size_t>(tensor.num_bytes())});
    file.release_pages(info);
  }
  return {};
}

// True also for a dangling link: the name is taken.
bool name_taken(const fs::path& path) {
  struct stat info {};
  return ::lstat(path.c_str(), &info) == 0;
}

Error already_exists(const fs::path& out) {
  return make_error(ErrorCode::kInvalidArgument,
                    "{}: exists already; choose another name or remove it first", out.string());
}

// An exclusive lock on a file, held while this lives.
class LockFile {
 public:
  static Result<LockFile> acquire(const fs::path& path, const fs::path& directory) {
    LockFile lock;
    lock.fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (lock.fd_ < 0) return io_error(path, "create");
    const Error busy = make_error(ErrorCode::kInvalidArgument,
                                  "{}: another process is writing here; wait for it or choose "
                                  "another name",
                                  directory.string());
    if (::flock(lock.fd_, LOCK_EX | LOCK_NB) != 0)
      return errno == EWOULDBLOCK ? busy : io_error(path, "lock");
    // Between open and flock the former holder may have moved the directory to its final name.
    struct stat ours {
    }, there{};
    if (::fstat(lock.fd_, &ours) != 0 || ::lstat(path.c_str(), &there) != 0 ||
        ours.st_ino != there.st_ino || ours.st_dev != there.st_dev)
      return busy;
    return lock;
  }
  LockFile(LockFile&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  LockFile& operator=(LockFile&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~LockFile() {
    if (fd_ >= 0) ::close(fd_);
  }

 private:
  LockFile() = default;
  int fd_ = -1;
};

// Removes the files an abandoned run left in OUT.partial. A directory that no run of ours made, or
// that has grown subdirectories since, is not touched.
Status remove_leftovers(const fs::path& partial) {
  std::error_code error;
  std::vector<fs::path> leftovers;
  for (fs::directory_iterator it(partial, error), end; !error && it != end; it.increment(error)) {
    if (it->path().filename() == kLockName) continue;
    if (it->is_directory(error) && !it->is_symlink(error))
      return make_error(ErrorCode::kInvalidArgument,
                        "{}: holds a directory \"{}\", so this is no abandoned run; move it away",
                        partial.string(), it->path().filename().string());
    leftovers.push_back(it->path());
  }
  for (const fs::path& path : leftovers)
    if (!error) fs::remove(path, error);
  if (error)
    return make_error(ErrorCode::kIo, "{}: cannot remove leftovers of an abandoned run: {}",
                      partial.string(), error.message());
  return {};
}

Status check_free_space(const fs::path& directory, size_t expected_bytes) {
  struct statvfs info {};
  if (::statvfs(directory.c_str(), &info) != 0) return io_error(directory, "ask for free space");
  const double free_bytes = static_cast<double>(info.f_bavail) * static_cast<double>(info.f_frsize);
  if (free_bytes < static_cast<double>(expected_bytes))
    return make_error(ErrorCode::kIo, "{}: {} are free, the checkpoint needs {}; make room first",
                      directory.string(), format_bytes(free_bytes), format_bytes(expected_bytes));
  return {};
}

// rename(2) that refuses to replace; some network file systems know no such flag.
Status rename_no_replace(const fs::path& from, const fs::path& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return {};
  if (errno == EEXIST || errno == ENOTEMPTY) return already_exists(to);
  if (errno != EINVAL && errno != ENOSYS) return io_error(to, "rename into place");
  if (name_taken(to)) return already_exists(to);
  if (::rename(from.c_str(), to.c_str()) != 0) return io_error(to, "rename into place");
  return {};
}

// A name inside the checkpoint directory itself.
bool is_plain_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\0", 2)) == std::string_view::npos;
}

}  // namespace

struct CheckpointWriter::State {
  State(fs::path final_path, fs::path partial_path, WriterOptions writer_options,
        LockFile lock_file)
      : out(std::move(final_path)),
        partial(std::move(partial_path)),
        options(writer_options),
        lock(std::move(lock_file)) {}

  fs::path out;
  fs::path partial;
  WriterOptions options;
  LockFile lock;
  std::optional<ShardWriter> shard;                     // the one being written
  size_t num_shards = 0;                                // including that one
  std::map<std::string, size_t, std::less<>> shard_of;  // tensor name -> shard, from 0
  std::map<std::string, std::string, std::less<>> side_files;
  size_t total_bytes = 0;
  std::optional<Error> failure;  // the first one
  bool finished = false;

  fs::path part_path(size_t index) const { return partial / format("shard-{:05}.part", index + 1); }
  std::string shard_name(size_t index) const {
    return num_shards == 1 ? "model.safetensors"
                           : format("model-{:05}-of-{:05}.safetensors", index + 1, num_shards);
  }

  Status usable() const {
    if (failure) return *failure;
    if (finished)
      return make_error(ErrorCode::kInvalidArgument, "{}: finished already", out.string());
    return {};
  }
  Status fail(Error error) {
    failure = error;
    return error;
  }

  Status close_shard() {
    if (!shard) return {};
    const Status closed = shard->close();
    shard.reset();
    return closed;
  }

  Status add(std::string_view name, const Tensor& tensor) {
    const bool full =
        shard && shard->num_bytes() > 0 &&
        tensor.num_bytes() >
            options.max_shard_bytes - std::min(options.max_shard_bytes, shard->num_bytes());
    if (full) NB_TRY_STATUS(close_shard());
    if (!shard) {
      NB_TRY(shard, ShardWriter::create(part_path(num_shards)));
      ++num_shards;
    }
    NB_TRY_STATUS(shard->append(name, tensor));
    shard_of.emplace(name, num_shards - 1);
    total_bytes += tensor.num_bytes();
    return {};
  }

  // Keys sorted, as other writers do.
  std::string index_json() const {
    Json weight_map = Json::object();
    auto& entries = static_cast<Json::object_t::Container&>(weight_map.get_ref<Json::object_t&>());
    for (const auto& [name, index] : shard_of) entries.emplace_back(name, shard_name(index));
    return dump_json_pretty(
        {{"metadata", {{"total_size", total_bytes}}}, {"weight_map", std::move(weight_map)}});
  }

  Status write_manifest(std::vector<std::string> names) {
    std::ranges::sort(names);
    Json files = Json::object();
    Json tensors = Json::object();
    for (const std::string& name : names) {
      NB_TRY(const std::string digest, sha256_file(partial / name));
      std::error_code error;
      const uintmax_t size = fs::file_size(partial / name, error);
      if (error)
        return make_error(ErrorCode::kIo, "{}: cannot stat: {}", (partial / name).string(),
                          error.message());
      files[name] = {{"bytes", size}, {"sha256", digest}};
      if (name.ends_with(".safetensors")) NB_TRY_STATUS(add_digests(partial / name, tensors));
    }
    return write_file_durably(
        partial / kManifestName,
        dump_json_pretty({{"files", std::move(files)}, {"tensors", std::move(tensors)}}));
  }

  Status finish() {
    NB_TRY_STATUS(close_shard());
    std::vector<std::string> names;
    for (size_t i = 0; i < num_shards; ++i) {
      names.push_back(shard_name(i));
      if (::rename(part_path(i).c_str(), (partial / names.back()).c_str()) != 0)
        return io_error(partial / names.back(), "rename into place");
    }
    if (num_shards > 1) side_files[kIndexName] = index_json();
    for (const auto& [name, bytes] : side_files) {
      NB_TRY_STATUS(write_file_durably(partial / name, bytes));
      names.push_back(name);
    }
    if (options.manifest) NB_TRY_STATUS(write_manifest(std::move(names)));
    NB_TRY_STATUS(sync_directory(partial));
    NB_TRY_STATUS(rename_no_replace(partial, out));
    finished = true;
    ::unlink((out / kLockName).c_str());
    return sync_directory(out.parent_path().empty() ? fs::path(".") : out.parent_path());
  }
};

CheckpointWriter::CheckpointWriter(std::unique_ptr<State> state) : state_(std::move(state)) {}
CheckpointWriter::CheckpointWriter(CheckpointWriter&&) noexcept = default;
CheckpointWriter& CheckpointWriter::operator=(CheckpointWriter&&) noexcept = default;
CheckpointWriter::~CheckpointWriter() = default;

Result<CheckpointWriter> CheckpointWriter::create(const fs::path& given, WriterOptions options) {
  fs::path out = given.lexically_normal();
  if (!out.has_filename()) out = out.parent_path();  // "OUT/"
  if (!is_plain_name(out.filename().string()))
    return make_error(ErrorCode::kInvalidArgument,
                      "\"{}\": not a name for a new directory; give one that does not exist yet",
                      given.string());
  if (name_taken(out)) return already_exists(out);
  const fs::path parent = out.parent_path().empty() ? fs::path(".") : out.parent_path();
  std::error_code error;
  if (!fs::is_directory(parent, error))
    return make_error(ErrorCode::kNotFound, "{}: the directory {} does not exist; make it first",
                      out.string(), parent.string());
  NB_TRY_STATUS(check_free_space(parent, options.expected_bytes));

  const fs::path partial = out.string() + ".partial";
  const fs::path lock_path = partial / kLockName;
  const bool made = ::mkdir(partial.c_str(), 0755) == 0;
  if (!made && errno != EEXIST) return io_error(partial, "make the directory");
  if (!made && !fs::is_directory(partial, error))
    return make_error(ErrorCode::kInvalidArgument, "{}: in the way: not a directory; move it away",
                      partial.string());
  if (!made && !name_taken(lock_path) && !fs::is_empty(partial, error))
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: in the way: no run of nibble made it; move it away", partial.string());
  NB_TRY(LockFile lock, LockFile::acquire(lock_path, partial));
  NB_TRY_STATUS(remove_leftovers(partial));
  return CheckpointWriter(
      std::make_unique<State>(std::move(out), partial, options, std::move(lock)));
}

Status CheckpointWriter::add(std::string_view name, const Tensor& tensor) {
  NB_TRY_STATUS(state_->usable());
  if (name.empty() || name == "__metadata__")
    return state_->fail(
        make_error(ErrorCode::kInvalidArgument, "\"{}\" cannot be the name of a tensor", name));
  if (state_->shard_of.contains(name))
    return state_->fail(make_error(ErrorCode::kInvalidArgument,
                                   "{}: tensor \"{}\" is written twice", state_->out.string(),
                                   name));
  if (Status added = state_->add(name, tensor); !added)
    return state_->fail(std::move(added).error());
  return {};
}

Status CheckpointWriter::add_file(std::string_view file_name, std::string bytes) {
  NB_TRY_STATUS(state_->usable());
  if (!is_plain_name(file_name) || file_name == kLockName || file_name == kIndexName ||
      file_name == kManifestName || file_name.ends_with(".safetensors") ||
      state_->side_files.contains(file_name))
    return state_->fail(
        make_error(ErrorCode::kInvalidArgument,
                   "{}: \"{}\" cannot be the name of a side file, or is one already",
                   state_->out.string(), file_name));
  state_->side_files.emplace(file_name, std::move(bytes));
  return {};
}

Status CheckpointWriter::finish() {
  NB_TRY_STATUS(state_->usable());
  if (Status done = state_->finish(); !done) return state_->fail(std::move(done).error());
  return {};
}

void CheckpointWriter::discard() {
  if (state_->finished) return;
  state_->failure = make_error(ErrorCode::kCancelled, "{}: discarded", state_->out.string());
  state_->shard.reset();
  std::error_code ignored;
  fs::remove_all(state_->partial, ignored);
}

size_t CheckpointWriter::total_tensor_bytes() const {
  return state_->total_bytes;
}

}  // namespace nibble
