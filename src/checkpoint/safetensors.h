// Reads one .safetensors file through a memory map. The header is checked strictly before any
// tensor is handed out: length, JSON, dtypes, shapes without overflow, offsets sorted, contiguous
// from 0, without gap, overlap or trailing bytes.
// Format: 8-byte little-endian header length, JSON header, tensor bytes.
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/result.h"
#include "tensor/tensor.h"

namespace nibble {

struct TensorInfo {
  std::string name;
  DType dtype = DType::kF32;
  Shape shape;
  size_t offset = 0;  // of the first byte, from the start of the file
  size_t num_bytes = 0;
};

class SafetensorsFile {
 public:
  static constexpr size_t kMaxHeaderBytes = size_t{100} << 20;

  static Result<SafetensorsFile> open(const fs::path& path);

  const fs::path& path() const { return path_; }
  const std::vector<TensorInfo>& tensors() const { return tensors_; }  // in file order
  const TensorInfo* find(std::string_view name) const;                 // null when absent
  Tensor view(const TensorInfo& info) const;  // points into the map: read-only
  // The file's bytes: those of one tensor, and all that come before the first tensor.
  std::span<const std::byte> bytes(const TensorInfo& info) const {
    return file_.bytes().subspan(info.offset, info.num_bytes);
  }
  std::span<const std::byte> header_bytes() const {
    return file_.bytes().first(tensors_.empty() ? file_.bytes().size() : tensors_[0].offset);
  }
  void release_pages(const TensorInfo& info) const {
    file_.release_pages(info.offset, info.num_bytes);
  }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  fs::path path_;
  MappedFile file_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, size_t, std::less<>> index_;
  std::map<std::string, std::string> metadata_;
};

// The header alone, from bytes (fuzz target and tests). `file_size` is the size the file claims.
Result<std::vector<TensorInfo>> parse_safetensors_header(
    std::string_view bytes, size_t file_size, std::string_view what,
    std::map<std::string, std::string>* metadata = nullptr);

}  // namespace nibble
