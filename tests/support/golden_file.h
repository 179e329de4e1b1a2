// Golden tensors: a safetensors file whose tensors come back as plain vectors.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/json.h"
#include "checkpoint/safetensors.h"
#include "support/paths.h"

namespace nibble::test {

class GoldenFile {
 public:
  explicit GoldenFile(const std::filesystem::path& path) : file_(SafetensorsFile::open(path)) {
    if (!file_) ADD_FAILURE() << file_.error().message;
  }
  bool has(const std::string& name) const { return file_->find(name) != nullptr; }
  Tensor tensor(const std::string& name) const {
    const TensorInfo* info = file_->find(name);
    if (info == nullptr) {
      ADD_FAILURE() << "no golden tensor " << name;
      return {};
    }
    return file_->view(*info);
  }
  std::vector<float> floats(const std::string& name) const {
    const Tensor found = tensor(name);
    std::vector<float> values(static_cast<size_t>(found.num_elements()));
    if (!found.empty()) to_float(found, values.data());
    return values;
  }
  std::vector<int32_t> ints(const std::string& name) const {
    const Tensor found = tensor(name);
    std::vector<int32_t> values;
    for (int64_t i = 0; i < found.num_elements(); ++i)
      values.push_back(found.dtype == DType::kI64
                           ? static_cast<int32_t>(found.as<const int64_t>()[i])
                           : found.as<const int32_t>()[i]);
    return values;
  }
  const SafetensorsFile& file() const { return *file_; }

 private:
  Result<SafetensorsFile> file_;
};

// A JSON file of the source tree; an empty object and a failed test when it does not parse.
inline Json load_json(const std::filesystem::path& path) {
  const Result<std::string> text = read_file(path);
  if (!text) {
    ADD_FAILURE() << text.error().message;
    return Json::object();
  }
  Result<Json> json = parse_json(*text, path.filename().string(), {.allow_duplicate_keys = true});
  if (!json) {
    ADD_FAILURE() << json.error().message;
    return Json::object();
  }
  return *json;
}

}  // namespace nibble::test
