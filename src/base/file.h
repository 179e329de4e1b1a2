// Files: whole-file reads with a cap, read-only maps, durable writes. POSIX only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

namespace nibble {

namespace fs = std::filesystem;

// Reads a regular file of at most `max_bytes`. Errors name the path and the reason.
Result<std::string> read_file(const fs::path& path, size_t max_bytes = size_t{256} << 20);

// Writes, fsyncs and renames into place: the final name holds either all bytes or is absent.
Status write_file_durably(const fs::path& path, std::string_view bytes);

// fsync of a directory, so that renames inside it survive a power cut.
Status sync_directory(const fs::path& path);

// A read-only memory map of a whole file. Move-only; the map lives as long as this object.
class MappedFile {
 public:
  static Result<MappedFile> open(const fs::path& path);
  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  // Tells the kernel that [offset, offset + size) will not be read again soon, so that its pages
  // stop counting as resident memory of this process.
  void release_pages(size_t offset, size_t size) const;

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace nibble
