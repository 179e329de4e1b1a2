// POSIX behind base/file.h.
#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/format.h"

namespace nibble {
namespace {

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

Error io_error(const fs::path& path, const char* doing) {
  const int code = errno;
  return make_error(code == ENOENT ? ErrorCode::kNotFound : ErrorCode::kIo, "{}: cannot {}: {}",
                    path.string(), doing, std::strerror(code));
}

Result<size_t> regular_file_size(const FileDescriptor& file, const fs::path& path) {
  struct stat info {};
  if (::fstat(file.get(), &info) != 0) return io_error(path, "stat");
  if (!S_ISREG(info.st_mode))
    return make_error(ErrorCode::kInvalidArgument, "{}: not a regular file", path.string());
  return static_cast<size_t>(info.st_size);
}

// Opening a FIFO would wait for its writer; O_NONBLOCK means nothing to a regular file.
int open_for_reading(const fs::path& path) {
  return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
}

Status write_synced(const fs::path& path, std::string_view bytes) {
  const FileDescriptor file(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (file.get() < 0) return io_error(path, "create");
  while (!bytes.empty()) {
    const ssize_t put = ::write(file.get(), bytes.data(), bytes.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return io_error(path, "write");
    bytes.remove_prefix(static_cast<size_t>(put));
  }
  if (::fsync(file.get()) != 0) return io_error(path, "sync");
  return {};
}

}  // namespace

Result<std::string> read_file(const fs::path& path, size_t max_bytes) {
  const FileDescriptor file(open_for_reading(path));
  if (file.get() < 0) return io_error(path, "open");
  NB_TRY(const size_t size, regular_file_size(file, path));
  if (size > max_bytes)
    return make_error(ErrorCode::kInvalidArgument, "{}: {} bytes, the limit here is {}",
                      path.string(), size, max_bytes);
  std::string bytes(size, '\0');
  size_t done = 0;
  while (done < size) {
    const ssize_t got = ::read(file.get(), bytes.data() + done, size - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return io_error(path, "read");
    if (got == 0)
      return make_error(ErrorCode::kIo, "{}: shrank from {} to {} bytes while being read",
                        path.string(), size, done);
    done += static_cast<size_t>(got);
  }
  return bytes;
}

Status write_file_durably(const fs::path& path, std::string_view bytes) {
  const fs::path partial = path.string() + ".partial";
  if (Status written = write_synced(partial, bytes); !written) {
    ::unlink(partial.c_str());
    return written;
  }
  if (::rename(partial.c_str(), path.c_str()) != 0) {
    Error error = io_error(path, "rename into place");
    ::unlink(partial.c_str());
    return error;
  }
  return sync_directory(path.parent_path().empty() ? fs::path(".") : path.parent_path());
}

Status sync_directory(const fs::path& path) {
  const FileDescriptor directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.get() < 0) return io_error(path, "open");
  if (::fsync(directory.get()) != 0) return io_error(path, "sync");
  return {};
}

Result<MappedFile> MappedFile::open(const fs::path& path) {
  const FileDescriptor file(open_for_reading(path));
  if (file.get() < 0) return io_error(path, "open");
  NB_TRY(const size_t size, regular_file_size(file, path));
  MappedFile mapped;
  if (size == 0) return mapped;
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (data == MAP_FAILED) return io_error(path, "map");
  mapped.data_ = static_cast<const std::byte*>(data);
  mapped.size_ = size;
  return mapped;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::release_pages(size_t offset, size_t size) const {
  const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t begin = (offset + page - 1) / page * page;
  const size_t end = (offset + size) / page * page;
  if (begin < end) ::madvise(const_cast<std::byte*>(data_) + begin, end - begin, MADV_DONTNEED);
}

}  // namespace nibble
