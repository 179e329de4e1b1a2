// A Hugging Face checkpoint directory: config.json, shards behind an index, and side files.
// Opening checks that every indexed tensor is where the index says. Immutable, threads may share
// it.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "checkpoint/compressed_tensors.h"
#include "checkpoint/safetensors.h"
#include "tensor/linear_weight.h"

namespace nibble {

// config.json alone, of a model directory, a Hugging Face cache entry or the file itself: what can
// be known without weights.
Result<Json> read_model_config(const fs::path& path);

class ModelDir {
 public:
  // Accepts a model directory, or a Hugging Face cache entry with `snapshots/`. A wrong directory
  // says which file was looked for and what is there instead (a GGUF, a LoRA, a git-lfs pointer).
  static Result<ModelDir> open(const fs::path& path);

  const fs::path& path() const { return path_; }
  const Json& config() const { return config_; }
  const Json& generation_config() const { return generation_config_; }  // {} when absent
  const std::optional<QuantizationConfig>& quantization() const { return quantization_; }

  const std::vector<SafetensorsFile>& shards() const { return shards_; }
  std::vector<std::string> tensor_names() const;  // sorted
  bool has(std::string_view name) const;
  // A read-only view into the mapped shard. kNotFound names tensor and directory.
  Result<Tensor> tensor(std::string_view name) const;
  // The same, and the shape must match: the error names both shapes.
  Result<Tensor> tensor(std::string_view name, const Shape& expected) const;
  // NAME.weight, or NAME.weight_packed and its companions, as a disk-layout weight. The zero points
  // of a quantized weight are unpacked to I8 into memory that this ModelDir owns.
  Result<LinearWeight> linear(std::string_view name, int64_t out_features,
                              int64_t in_features) const;
  // Lets the pages of a tensor's map go (quantization of models larger than memory).
  void release(std::string_view name) const;

  // generation_config.json and such: whole text, or kNotFound.
  Result<std::string> side_file(std::string_view file_name) const;
  // kNotFound says where to get one.
  Result<std::string> tokenizer_json() const;
  // chat_template.jinja, or the chat_template key of tokenizer_config.json; "" if there is neither,
  // as in base models.
  Result<std::string> chat_template() const;

 private:
  fs::path path_;
  Json config_;
  Json generation_config_;
  std::optional<QuantizationConfig> quantization_;
  std::vector<SafetensorsFile> shards_;
  struct Place {
    size_t shard;
    const TensorInfo* info;
  };
  std::map<std::string, Place, std::less<>> places_;
  struct ZeroPoints;  // unpacked on demand, kept
  std::shared_ptr<ZeroPoints> zero_points_;
};

}  // namespace nibble
