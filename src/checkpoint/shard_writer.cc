// A safetensors header lists all tensors and stands before their bytes, yet tensors arrive one by
// one and must not wait in memory. So the bytes go to disk at once, and the header is put in front
// at the end:
//
//   append:  path        [ tensors of a multiple of 8 bytes ......... ]      (nearly all)
//            path.tail4  [ the others of 4-byte elements ]   path.tail2 ...  path.tail1 ...
//   close:   path        [ len | header, spaces to 4096 | 8-byte multiples | tail4 | tail2 | tail1
//   ]
//
// - The format allows no gap between tensors, so alignment comes from order alone: in each stretch
//   every size is a multiple of the alignment of all that follows, and the header ends on a page.
// - The header is inserted with fallocate(FALLOC_FL_INSERT_RANGE), which moves no bytes (ext4,
// xfs).
//   Where that is refused the file is copied once. Both give the same bytes. A reserved header area
//   was the other choice: it wastes room in small files and fails at some number of tensors.
#include "checkpoint/shard_writer.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/format.h"
#include "base/json.h"
#include "checkpoint/safetensors.h"

namespace nibble {
namespace {

constexpr size_t kPage = 4096;
constexpr std::array<const char*, 4> kSuffixes = {"", ".tail4", ".tail2", ".tail1"};

Error io_error(const fs::path& path, const char* doing) {
  const int code = errno;
  return make_error(ErrorCode::kIo, "{}: cannot {}: {}", path.string(), doing, std::strerror(code));
}

Status write_at(int fd, const fs::path& path, std::string_view bytes, size_t offset) {
  while (!bytes.empty()) {
    const ssize_t put = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return io_error(path, "write");
    bytes.remove_prefix(static_cast<size_t>(put));
    offset += static_cast<size_t>(put);
  }
  return {};
}

// Appends all of `from` to `to` at `offset`, through a buffer of constant size.
Status copy_bytes(int from, const fs::path& from_path, int to, const fs::path& to_path, size_t size,
                  size_t offset) {
  std::string buffer(std::min(size, size_t{4} << 20), '\0');
  for (size_t done = 0; done < size;) {
    const ssize_t got = ::pread(from, buffer.data(), std::min(buffer.size(), size - done),
                                static_cast<off_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return io_error(from_path, "read");
    if (got == 0)
      return make_error(ErrorCode::kIo, "{}: shrank to {} bytes while being written",
                        from_path.string(), done);
    const auto count = static_cast<size_t>(got);
    NB_TRY_STATUS(write_at(to, to_path, std::string_view(buffer).substr(0, count), offset + done));
    done += count;
  }
  return {};
}

// The stream in which tensors of this size and element keep their neighbours aligned.
size_t stream_of(const Tensor& tensor) {
  if (tensor.num_bytes() % 8 == 0) return 0;
  switch (dtype_size(tensor.dtype)) {
    case 4: return 1;
    case 2: return 2;
    default: return 3;
  }
}

}  // namespace

Result<ShardWriter> ShardWriter::create(fs::path path) {
  ShardWriter writer;
  writer.path_ = std::move(path);
  NB_TRY_STATUS(writer.open_stream(0));
  return writer;
}

ShardWriter::ShardWriter(ShardWriter&& other) noexcept {
  *this = std::move(other);
}

ShardWriter& ShardWriter::operator=(ShardWriter&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(streams_, other.streams_);
  std::swap(entries_, other.entries_);
  std::swap(num_bytes_, other.num_bytes_);
  return *this;
}

ShardWriter::~ShardWriter() {
  for (const Stream& stream : streams_)
    if (stream.fd >= 0) ::close(stream.fd);
}

Status ShardWriter::open_stream(size_t index) {
  Stream& stream = streams_[index];
  stream.path = path_.string() + kSuffixes[index];
  stream.fd = ::open(stream.path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (stream.fd < 0) return io_error(stream.path, "create");
  return {};
}

Status ShardWriter::append(std::string_view name, const Tensor& tensor) {
  const size_t index = stream_of(tensor);
  if (streams_[index].fd < 0) NB_TRY_STATUS(open_stream(index));
  Stream& stream = streams_[index];
  const size_t size = tensor.num_bytes();
  NB_TRY_STATUS(
      write_at(stream.fd, stream.path, {static_cast<const char*>(tensor.data), size}, stream.size));
  // Starts the write-back now, so that dirty pages do not pile up until the fsync.
  ::sync_file_range(stream.fd, static_cast<off_t>(stream.size), static_cast<off_t>(size),
                    SYNC_FILE_RANGE_WRITE);
  entries_.push_back({std::string(name), tensor.dtype, tensor.shape, index, stream.size, size});
  stream.size += size;
  num_bytes_ += size;
  return {};
}

Status ShardWriter::join_streams() {
  for (size_t i = 1; i < streams_.size(); ++i) {
    Stream& tail = streams_[i];
    if (tail.fd < 0) continue;
    Stream& main = streams_[0];
    NB_TRY_STATUS(copy_bytes(tail.fd, tail.path, main.fd, main.path, tail.size, main.size));
    for (Entry& entry : entries_) {
      if (entry.stream != i) continue;
      entry.stream = 0;
      entry.offset += main.size;
    }
    main.size += tail.size;
    ::close(std::exchange(tail.fd, -1));
    if (::unlink(tail.path.c_str()) != 0) return io_error(tail.path, "remove");
  }
  // By offset; a tensor without bytes shares its offset with the next one and comes first.
  std::ranges::stable_sort(
      entries_, {}, [](const Entry& entry) { return std::pair(entry.offset, entry.num_bytes); });
  return {};
}

// Length and JSON, padded with spaces to whole pages.
std::string ShardWriter::header() const {
  std::string text = R"({"__metadata__":{"format":"pt"})";
  for (const Entry& entry : entries_)
    text += format(R"(,{}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})",
                   dump_json(Json(entry.name)), dtype_name(entry.dtype),
                   join(entry.shape.dims(), ","), entry.offset, entry.offset + entry.num_bytes);
  text += '}';
  constexpr size_t kLengthBytes = 8;
  const size_t total = (kLengthBytes + text.size() + kPage - 1) / kPage * kPage;
  text.resize(total - kLengthBytes, ' ');
  std::string bytes(kLengthBytes, '\0');
  for (size_t i = 0; i < kLengthBytes; ++i)
    bytes[i] = static_cast<char>((text.size() >> (8 * i)) & 0xff);
  return bytes + text;
}

Status ShardWriter::close(HeaderPlacement placement) {
  NB_TRY_STATUS(join_streams());
  const std::string head = header();
  if (head.size() > SafetensorsFile::kMaxHeaderBytes)
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: {} tensors need a header of {} bytes, the format allows {}; use a "
                      "smaller shard size",
                      path_.string(), entries_.size(), head.size(),
                      SafetensorsFile::kMaxHeaderBytes);
  Stream& main = streams_[0];
  // An empty file cannot be shifted: it has no range to insert before.
  const bool shifted =
      placement == HeaderPlacement::kInsertOrCopy && main.size > 0 &&
      ::fallocate(main.fd, FALLOC_FL_INSERT_RANGE, 0, static_cast<off_t>(head.size())) == 0;
  if (!shifted) {
    const fs::path copy_path = path_.string() + ".copy";
    const int copy = ::open(copy_path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (copy < 0) return io_error(copy_path, "create");
    Status copied = copy_bytes(main.fd, main.path, copy, copy_path, main.size, head.size());
    ::close(std::exchange(main.fd, copy));
    if (!copied) return copied;
    if (::rename(copy_path.c_str(), path_.c_str()) != 0)
      return io_error(path_, "rename into place");
  }
  NB_TRY_STATUS(write_at(main.fd, path_, head, 0));
  if (::fsync(main.fd) != 0) return io_error(path_, "sync");
  // close() reports what a network file system held back.
  if (::close(std::exchange(main.fd, -1)) != 0) return io_error(path_, "close");
  return {};
}

}  // namespace nibble
