// Writes one .safetensors file whose header is known only when the last tensor has arrived.
// Used by checkpoint/writer.cc.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/result.h"
#include "tensor/tensor.h"

namespace nibble {

// How the header gets in front of tensors that are already on disk.
enum class HeaderPlacement {
  kInsertOrCopy,  // shift the file in place where the file system can, else copy
  kCopy,          // always copy; the same bytes (tests)
};

class ShardWriter {
 public:
  // Creates `path` and, while it is being written, files beside it named `path` plus a suffix.
  static Result<ShardWriter> create(fs::path path);
  ShardWriter(ShardWriter&& other) noexcept;
  ShardWriter& operator=(ShardWriter&& other) noexcept;
  ~ShardWriter();

  Status append(std::string_view name, const Tensor& tensor);
  // Joins the streams, puts the header in front and fsyncs. Last call on this object.
  Status close(HeaderPlacement placement = HeaderPlacement::kInsertOrCopy);

  size_t num_bytes() const { return num_bytes_; }  // of tensors so far

 private:
  // Tensors of one stream follow each other on disk without a gap.
  struct Stream {
    fs::path path;
    int fd = -1;
    size_t size = 0;
  };
  struct Entry {
    std::string name;
    DType dtype;
    Shape shape;
    size_t stream;
    size_t offset;  // within the stream
    size_t num_bytes;
  };
  ShardWriter() = default;
  Status open_stream(size_t index);
  Status join_streams();
  std::string header() const;

  fs::path path_;
  std::array<Stream, 4> streams_;
  std::vector<Entry> entries_;
  size_t num_bytes_ = 0;
};

}  // namespace nibble
