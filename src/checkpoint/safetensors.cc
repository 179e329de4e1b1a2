// Strict header checks: what passes here can be read without another bounds check.
#include "checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>

#include "base/format.h"
#include "base/json.h"

namespace nibble {
namespace {

constexpr size_t kLengthBytes = 8;

Error corrupt(std::string_view what, std::string reason) {
  return make_error(ErrorCode::kCorrupt, "{}: {}; download it again", what, reason);
}

// A non-negative integer that fits int64.
bool read_size(const Json& value, int64_t* out) {
  if (!value.is_number_integer()) return false;
  if (value.is_number_unsigned() &&
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
    return false;
  *out = value.get<int64_t>();
  return *out >= 0;
}

Result<TensorInfo> parse_entry(const std::string& name, const Json& entry, std::string_view what) {
  const auto fail = [&](std::string reason) {
    return corrupt(what, format("tensor \"{}\": {}", name, reason));
  };
  if (!entry.is_object()) return fail("entry is not an object");
  for (const auto& [key, value] : entry.items())
    if (key != "dtype" && key != "shape" && key != "data_offsets")
      return fail(format("unknown key \"{}\"", key));
  TensorInfo info;
  info.name = name;
  if (!entry.contains("dtype") || !entry["dtype"].is_string()) return fail("no dtype");
  const std::string& dtype_text = entry["dtype"].get_ref<const std::string&>();
  const std::optional<DType> dtype = dtype_from_safetensors(dtype_text);
  if (!dtype)
    return fail(
        format("unknown dtype \"{}\", known are F64 F32 F16 BF16 F8_E4M3 F8_E5M2 I64 I32 "
               "I16 I8 U8 BOOL",
               dtype_text));
  info.dtype = *dtype;

  if (!entry.contains("shape") || !entry["shape"].is_array()) return fail("no shape");
  const Json& shape = entry["shape"];
  if (shape.size() > Shape::kMaxRank)
    return fail(format("{} dimensions, at most {} are read", shape.size(), Shape::kMaxRank));
  int64_t dims[Shape::kMaxRank] = {};
  uint64_t num_bytes = dtype_size(info.dtype);
  for (size_t i = 0; i < shape.size(); ++i) {
    if (!read_size(shape[i], &dims[i]))
      return fail(format("shape {} is not valid", dump_json(shape)));
    if (__builtin_mul_overflow(num_bytes, static_cast<uint64_t>(dims[i]), &num_bytes))
      return fail(format("shape {} overflows", dump_json(shape)));
  }
  info.shape = Shape(std::span<const int64_t>(dims, shape.size()));

  int64_t begin = 0;
  int64_t end = 0;
  if (!entry.contains("data_offsets") || !entry["data_offsets"].is_array() ||
      entry["data_offsets"].size() != 2 || !read_size(entry["data_offsets"][0], &begin) ||
      !read_size(entry["data_offsets"][1], &end) || begin > end)
    return fail("data_offsets are not two growing numbers");
  if (static_cast<uint64_t>(end - begin) != num_bytes)
    return fail(format("data_offsets span {} bytes, dtype {} and shape {} need {}", end - begin,
                       dtype_text, dump_json(shape), num_bytes));
  info.offset = static_cast<size_t>(begin);
  info.num_bytes = static_cast<size_t>(num_bytes);
  return info;
}

}  // namespace

Result<std::vector<TensorInfo>> parse_safetensors_header(
    std::string_view bytes, size_t file_size, std::string_view what,
    std::map<std::string, std::string>* metadata) {
  if (bytes.starts_with("version https://git-lfs"))
    return make_error(ErrorCode::kCorrupt,
                      "{}: a git-lfs pointer, not the file itself; run: git lfs pull", what);
  if (file_size < kLengthBytes || bytes.size() < kLengthBytes)
    return corrupt(what, format("{} bytes are too few for a safetensors file", file_size));
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), kLengthBytes);
  if (header_bytes > SafetensorsFile::kMaxHeaderBytes)
    return corrupt(what, format("header claims {} bytes, the limit is {}", header_bytes,
                                SafetensorsFile::kMaxHeaderBytes));
  if (header_bytes > file_size - kLengthBytes || header_bytes > bytes.size() - kLengthBytes)
    return corrupt(what, format("header claims {} bytes, file has {}", header_bytes, file_size));
  const std::string_view text = bytes.substr(kLengthBytes, header_bytes);
  if (text.empty() || text.front() != '{') return corrupt(what, "header is not a JSON object");
  NB_TRY(const Json header,
         parse_json(text, what, {.max_bytes = SafetensorsFile::kMaxHeaderBytes, .max_depth = 4}));

  std::vector<TensorInfo> tensors;
  tensors.reserve(header.size());
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      if (!entry.is_object()) return corrupt(what, "__metadata__ is not an object");
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string())
          return corrupt(what, format("__metadata__ \"{}\" is not a string", key));
        if (metadata != nullptr) (*metadata)[key] = value.get<std::string>();
      }
      continue;
    }
    NB_TRY(TensorInfo info, parse_entry(name, entry, what));
    tensors.push_back(std::move(info));
  }

  // Offsets must tile the data area exactly: from 0, no gap, no overlap, no bytes left over.
  std::ranges::stable_sort(tensors, [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(a.offset, a.num_bytes) < std::pair(b.offset, b.num_bytes);
  });
  const size_t data_begin = kLengthBytes + header_bytes;
  size_t expected = 0;
  for (TensorInfo& info : tensors) {
    if (info.offset != expected)
      return corrupt(
          what, format("tensor \"{}\": data begins at {}, expected {} ({})", info.name, info.offset,
                       expected, info.offset > expected ? "a gap" : "an overlap"));
    expected += info.num_bytes;
    info.offset += data_begin;
  }
  if (expected != file_size - data_begin)
    return corrupt(what, format("header describes {} bytes of tensors, file has {}", expected,
                                file_size - data_begin));
  return tensors;
}

Result<SafetensorsFile> SafetensorsFile::open(const fs::path& path) {
  SafetensorsFile file;
  file.path_ = path;
  NB_TRY(file.file_, MappedFile::open(path));
  const std::span<const std::byte> bytes = file.file_.bytes();
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  NB_TRY(file.tensors_,
         parse_safetensors_header(text, bytes.size(), path.filename().string(), &file.metadata_));
  for (size_t i = 0; i < file.tensors_.size(); ++i) file.index_[file.tensors_[i].name] = i;
  return file;
}

const TensorInfo* SafetensorsFile::find(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

Tensor SafetensorsFile::view(const TensorInfo& info) const {
  // The map is read-only; Tensor has no const view, and nothing writes through a weight.
  return {const_cast<std::byte*>(file_.bytes().data()) + info.offset, info.dtype, info.shape};
}

}  // namespace nibble
