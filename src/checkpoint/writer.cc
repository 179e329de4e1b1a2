// A shard is written once, front to back: its header needs the offsets of all tensors, so a fixed
// area is kept free at the front and filled when the shard closes. JSON allows trailing blanks, so
// the header is padded to that area, and a shard closes early should it fill up.
//
//   OUT.partial/lock            held with flock while a writer lives
//   OUT.partial/shard-00001     being written; renamed when the number of shards is known
#include "checkpoint/writer.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <vector>

#include "base/format.h"
#include "base/hash.h"

namespace nibble {
namespace {

constexpr size_t kHeaderBytes = size_t{1} << 20;  // of a shard; 1 MiB holds about 8,000 tensors
constexpr size_t kHeaderSlack = 512;              // kept for the last entry

struct WrittenTensor {
  std::string name;
  DType dtype;
  Shape shape;
  size_t begin;
  size_t end;
};

struct Shard {
  fs::path path;
  size_t num_bytes = 0;  // of tensors
  size_t header_estimate = 0;
  std::vector<WrittenTensor> tensors;
};

Error io_error(const fs::path& path, const char* doing) {
  return make_error(ErrorCode::kIo, "{}: cannot {}: {}", path.string(), doing,
                    std::strerror(errno));
}

Status write_all(int fd, const fs::path& path, const void* data, size_t size) {
  const auto* bytes = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t put = ::write(fd, bytes, size);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return io_error(path, "write");
    bytes += put;
    size -= static_cast<size_t>(put);
  }
  return {};
}

std::string header_text(const Shard& shard) {
  Json header = {{"__metadata__", {{"format", "pt"}}}};
  for (const WrittenTensor& tensor : shard.tensors) {
    Json shape = Json::array();
    for (const int64_t dim : tensor.shape.dims()) shape.push_back(dim);
    header[tensor.name] = {{"dtype", std::string(dtype_name(tensor.dtype))},
                           {"shape", std::move(shape)},
                           {"data_offsets", {tensor.begin, tensor.end}}};
  }
  return dump_json(header);
}

// SHA-256 of a file, read in pieces so that it never counts as resident memory.
Result<std::string> hash_file(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return io_error(path, "open");
  Sha256 hash;
  std::vector<std::byte> buffer(size_t{1} << 20);
  ssize_t got = 0;
  while ((got = ::read(fd, buffer.data(), buffer.size())) != 0) {
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) break;
    hash.update(std::span(buffer.data(), static_cast<size_t>(got)));
  }
  ::close(fd);
  if (got < 0) return io_error(path, "read");
  return hash.finish();
}

}  // namespace

struct CheckpointWriter::State {
  fs::path out;
  fs::path partial;
  WriterOptions options;
  int lock_fd = -1;
  int shard_fd = -1;
  std::vector<Shard> shards;
  std::map<std::string, std::string> files;
  size_t total_bytes = 0;

  ~State() {
    if (shard_fd >= 0) ::close(shard_fd);
    if (lock_fd >= 0) ::close(lock_fd);
  }

  Status open_shard() {
    Shard shard;
    shard.path = partial / format("shard-{:05}", shards.size() + 1);
    shard_fd = ::open(shard.path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (shard_fd < 0) return io_error(shard.path, "create");
    const std::vector<char> blanks(sizeof(uint64_t) + kHeaderBytes, ' ');
    shards.push_back(std::move(shard));
    return write_all(shard_fd, shards.back().path, blanks.data(), blanks.size());
  }

  Status close_shard() {
    if (shard_fd < 0) return {};
    const Shard& shard = shards.back();
    const std::string header = header_text(shard);
    NB_CHECK(header.size() <= kHeaderBytes, "header of %zu bytes", header.size());
    const uint64_t length = kHeaderBytes;
    if (::pwrite(shard_fd, &length, sizeof length, 0) != sizeof length ||
        ::pwrite(shard_fd, header.data(), header.size(), sizeof length) !=
            static_cast<ssize_t>(header.size()))
      return io_error(shard.path, "write the header of");
    if (::fsync(shard_fd) != 0) return io_error(shard.path, "sync");
    ::close(shard_fd);
    shard_fd = -1;
    return {};
  }
};

CheckpointWriter::CheckpointWriter(std::unique_ptr<State> state) : state_(std::move(state)) {}
CheckpointWriter::CheckpointWriter(CheckpointWriter&&) noexcept = default;
CheckpointWriter& CheckpointWriter::operator=(CheckpointWriter&&) noexcept = default;
CheckpointWriter::~CheckpointWriter() = default;

Result<CheckpointWriter> CheckpointWriter::create(const fs::path& given, WriterOptions options) {
  auto state = std::make_unique<State>();
  // A trailing slash would put OUT.partial inside OUT.
  state->out = given.has_filename() ? given : given.parent_path();
  state->partial = state->out.string() + ".partial";
  state->options = options;
  std::error_code error;
  if (fs::exists(fs::symlink_status(state->out, error)))
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: exists already; remove it or choose another output directory",
                      state->out.string());
  fs::create_directories(state->partial, error);
  if (error)
    return make_error(ErrorCode::kIo, "{}: cannot create the output directory: {}",
                      state->partial.string(), error.message());
  const fs::path lock = state->partial / "lock";
  state->lock_fd = ::open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (state->lock_fd < 0) return io_error(lock, "create");
  if (::flock(state->lock_fd, LOCK_EX | LOCK_NB) != 0)
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: another process is writing there; wait for it or choose another output "
                      "directory",
                      state->partial.string());
  for (const auto& entry : fs::directory_iterator(state->partial, error))
    if (entry.path().filename() != "lock") fs::remove_all(entry.path(), error);
  return CheckpointWriter(std::move(state));
}

Status CheckpointWriter::add(std::string_view name, const Tensor& tensor) {
  State& state = *state_;
  const size_t num_bytes = tensor.num_bytes();
  const size_t entry_bytes = name.size() + 160;
  if (state.shard_fd >= 0) {
    const Shard& shard = state.shards.back();
    const bool too_large = shard.num_bytes + num_bytes > state.options.max_shard_bytes;
    const bool header_full = shard.header_estimate + entry_bytes + kHeaderSlack > kHeaderBytes;
    if (!shard.tensors.empty() && (too_large || header_full)) NB_TRY_STATUS(state.close_shard());
  }
  if (state.shard_fd < 0) NB_TRY_STATUS(state.open_shard());
  Shard& shard = state.shards.back();
  NB_TRY_STATUS(write_all(state.shard_fd, shard.path, tensor.data, num_bytes));
  shard.tensors.push_back({std::string(name), tensor.dtype, tensor.shape, shard.num_bytes,
                           shard.num_bytes + num_bytes});
  shard.num_bytes += num_bytes;
  shard.header_estimate += entry_bytes;
  state.total_bytes += num_bytes;
  return {};
}

Status CheckpointWriter::add_file(std::string_view file_name, std::string bytes) {
  state_->files[std::string(file_name)] = std::move(bytes);
  return {};
}

Status CheckpointWriter::finish() {
  State& state = *state_;
  NB_TRY_STATUS(state.close_shard());
  std::vector<std::string> names;  // of every file, for the manifest
  Json weight_map = Json::object();
  for (size_t i = 0; i < state.shards.size(); ++i) {
    const std::string name = state.shards.size() == 1 ? "model.safetensors"
                                                      : format("model-{:05}-of-{:05}.safetensors",
                                                               i + 1, state.shards.size());
    for (const WrittenTensor& tensor : state.shards[i].tensors) weight_map[tensor.name] = name;
    if (::rename(state.shards[i].path.c_str(), (state.partial / name).c_str()) != 0)
      return io_error(state.partial / name, "rename into place");
    names.push_back(name);
  }
  if (state.shards.size() > 1)
    state.files["model.safetensors.index.json"] = dump_json_pretty(
        {{"metadata", {{"total_size", state.total_bytes}}}, {"weight_map", std::move(weight_map)}});
  for (const auto& [name, bytes] : state.files) {
    NB_TRY_STATUS(write_file_durably(state.partial / name, bytes));
    names.push_back(name);
  }
  Json manifest = Json::object();
  for (const std::string& name : names) {
    NB_TRY(std::string digest, hash_file(state.partial / name));
    std::error_code error;
    manifest[name] = {{"sha256", std::move(digest)},
                      {"bytes", fs::file_size(state.partial / name, error)}};
  }
  NB_TRY_STATUS(write_file_durably(state.partial / "manifest.json",
                                   dump_json_pretty({{"files", std::move(manifest)}})));
  std::error_code error;
  fs::remove(state.partial / "lock", error);
  NB_TRY_STATUS(sync_directory(state.partial));
  // RENAME_NOREPLACE: a directory that appeared meanwhile is not overwritten.
  constexpr unsigned kNoReplace = 1;
  if (::syscall(SYS_renameat2, AT_FDCWD, state.partial.c_str(), AT_FDCWD, state.out.c_str(),
                kNoReplace) != 0) {
    const bool unsupported = errno == EINVAL || errno == ENOSYS;
    if (!unsupported || fs::exists(state.out, error) ||
        ::rename(state.partial.c_str(), state.out.c_str()) != 0)
      return io_error(state.out, "rename the finished directory to");
  }
  const fs::path parent = state.out.parent_path();
  return sync_directory(parent.empty() ? fs::path(".") : parent);
}

size_t CheckpointWriter::total_tensor_bytes() const {
  return state_->total_bytes;
}

}  // namespace nibble
