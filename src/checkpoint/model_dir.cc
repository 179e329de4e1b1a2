// Opening a checkpoint directory, and saying what is wrong with one that does not open.
#include "checkpoint/model_dir.h"

#include <algorithm>
#include <mutex>
#include <set>

#include "base/format.h"

namespace nibble {
namespace {

constexpr size_t kMaxConfigBytes = size_t{16} << 20;
constexpr size_t kMaxIndexBytes = size_t{64} << 20;

// What a directory without config.json seems to be, for the error message.
std::string describe(const fs::path& path) {
  std::error_code error;
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(path, error)) {
    const std::string name = entry.path().filename().string();
    if (name.ends_with(".gguf")) return "there is a GGUF file, which nibble does not read";
    if (name == "adapter_config.json")
      return "this is a LoRA adapter; merge it into its base model first";
    if (names.size() < 5) names.push_back(name);
  }
  if (names.empty()) return "the directory is empty";
  std::ranges::sort(names);
  return format("found {}", join(names, ", "));
}

// A Hugging Face cache entry: models--org--name/snapshots/HASH.
fs::path resolve_snapshot(const fs::path& path) {
  std::error_code error;
  if (fs::exists(path / "config.json", error) || !fs::is_directory(path / "snapshots", error))
    return path;
  fs::path newest;
  fs::file_time_type newest_time{};
  for (const auto& entry : fs::directory_iterator(path / "snapshots", error)) {
    if (!fs::exists(entry.path() / "config.json", error)) continue;
    const fs::file_time_type time = entry.last_write_time(error);
    if (newest.empty() || time > newest_time) {
      newest = entry.path();
      newest_time = time;
    }
  }
  return newest.empty() ? path : newest;
}

Result<Json> read_json(const fs::path& path, size_t max_bytes) {
  NB_TRY(const std::string text, read_file(path, max_bytes));
  if (text.starts_with("version https://git-lfs"))
    return make_error(ErrorCode::kCorrupt,
                      "{}: a git-lfs pointer, not the file itself; run: git lfs pull",
                      path.string());
  NB_TRY(Json json, parse_json(text, path.filename().string(),
                               {.max_bytes = max_bytes, .allow_duplicate_keys = true}));
  if (!json.is_object())
    return make_error(ErrorCode::kCorrupt, "{}: not a JSON object", path.filename().string());
  return json;
}

}  // namespace

// Zero points unpacked on demand. Shared by copies of the directory; guarded by a mutex.
struct ModelDir::ZeroPoints {
  std::mutex mutex;
  std::map<std::string, std::vector<int8_t>, std::less<>> unpacked;
};

Result<Json> read_model_config(const fs::path& given) {
  std::error_code error;
  if (!fs::exists(given, error))
    return make_error(ErrorCode::kNotFound, "{}: no such file or directory", given.string());
  if (!fs::is_directory(given, error)) return read_json(given, kMaxConfigBytes);
  const fs::path path = resolve_snapshot(given);
  if (!fs::exists(path / "config.json", error))
    return make_error(ErrorCode::kNotFound, "{}: no config.json in this directory: {}",
                      path.string(), describe(path));
  return read_json(path / "config.json", kMaxConfigBytes);
}

Result<ModelDir> ModelDir::open(const fs::path& given) {
  std::error_code error;
  if (!fs::exists(given, error))
    return make_error(ErrorCode::kNotFound, "{}: no such directory", given.string());
  if (!fs::is_directory(given, error))
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: not a directory; give the directory that holds config.json",
                      given.string());
  ModelDir dir;
  dir.zero_points_ = std::make_shared<ZeroPoints>();
  dir.path_ = resolve_snapshot(given);
  if (!fs::exists(dir.path_ / "config.json", error))
    return make_error(ErrorCode::kNotFound, "{}: no config.json in this directory: {}",
                      dir.path_.string(), describe(dir.path_));
  NB_TRY(dir.config_, read_json(dir.path_ / "config.json", kMaxConfigBytes));
  dir.generation_config_ = Json::object();
  if (fs::exists(dir.path_ / "generation_config.json", error)) {
    NB_TRY(dir.generation_config_,
           read_json(dir.path_ / "generation_config.json", kMaxConfigBytes));
  }
  NB_TRY(dir.quantization_, parse_quantization_config(dir.config_));

  // tensor -> file, from the index or from the single file.
  std::map<std::string, std::vector<std::string>> names_by_file;
  const fs::path index_path = dir.path_ / "model.safetensors.index.json";
  if (fs::exists(index_path, error)) {
    NB_TRY(const Json index, read_json(index_path, kMaxIndexBytes));
    if (!index.contains("weight_map") || !index["weight_map"].is_object())
      return make_error(ErrorCode::kCorrupt,
                        "model.safetensors.index.json: weight_map is missing or not an object");
    for (const auto& [name, file] : index["weight_map"].items()) {
      if (!file.is_string())
        return make_error(ErrorCode::kCorrupt,
                          "model.safetensors.index.json: weight_map \"{}\" is not a file name",
                          name);
      const std::string& file_name = file.get_ref<const std::string&>();
      if (fs::path(file_name).filename() != fs::path(file_name))
        return make_error(ErrorCode::kCorrupt,
                          "model.safetensors.index.json: weight_map \"{}\" points outside the "
                          "directory: \"{}\"",
                          name, file_name);
      names_by_file[file_name].push_back(name);
    }
  } else if (fs::exists(dir.path_ / "model.safetensors", error)) {
    names_by_file["model.safetensors"] = {};
  } else {
    return make_error(ErrorCode::kNotFound,
                      "{}: neither model.safetensors nor model.safetensors.index.json: {}",
                      dir.path_.string(), describe(dir.path_));
  }

  dir.shards_.reserve(names_by_file.size());
  for (const auto& [file_name, names] : names_by_file) {
    if (!fs::exists(dir.path_ / file_name, error))
      return make_error(ErrorCode::kNotFound,
                        "{}: named by model.safetensors.index.json but not there; download it",
                        (dir.path_ / file_name).string());
    NB_TRY(SafetensorsFile shard, SafetensorsFile::open(dir.path_ / file_name));
    dir.shards_.push_back(std::move(shard));
    const size_t shard_index = dir.shards_.size() - 1;
    const SafetensorsFile& opened = dir.shards_.back();
    for (const std::string& name : names)
      if (opened.find(name) == nullptr)
        return make_error(ErrorCode::kCorrupt,
                          "{}: tensor \"{}\" is missing, the index places it here; download the "
                          "file again",
                          file_name, name);
    for (const TensorInfo& info : opened.tensors()) dir.places_[info.name] = {shard_index, &info};
  }
  return dir;
}

std::vector<std::string> ModelDir::tensor_names() const {
  std::vector<std::string> names;
  names.reserve(places_.size());
  for (const auto& [name, place] : places_) names.push_back(name);
  return names;
}

bool ModelDir::has(std::string_view name) const {
  return places_.contains(name);
}

Result<Tensor> ModelDir::tensor(std::string_view name) const {
  const auto it = places_.find(name);
  if (it == places_.end())
    return make_error(ErrorCode::kNotFound, "{}: tensor \"{}\" is missing", path_.string(), name);
  return shards_[it->second.shard].view(*it->second.info);
}

Result<Tensor> ModelDir::tensor(std::string_view name, const Shape& expected) const {
  NB_TRY(const Tensor found, tensor(name));
  if (!(found.shape == expected))
    return make_error(ErrorCode::kCorrupt,
                      "{}: tensor \"{}\" has shape {}, config.json asks for {}", path_.string(),
                      name, found.shape.to_string(), expected.to_string());
  return found;
}

Result<LinearWeight> ModelDir::linear(std::string_view name, int64_t out_features,
                                      int64_t in_features) const {
  LinearWeight weight;
  weight.out_features = out_features;
  weight.in_features = in_features;
  const std::string base(name);
  if (!has(base + ".weight_packed")) {
    NB_TRY(weight.dense, tensor(base + ".weight", {out_features, in_features}));
    if (!is_floating(weight.dense.dtype) || dtype_size(weight.dense.dtype) == 1)
      return make_error(ErrorCode::kUnsupported,
                        "{}: tensor \"{}.weight\" is {}, nibble computes with F32, F16 and BF16",
                        path_.string(), name, dtype_name(weight.dense.dtype));
    return weight;
  }

  if (!quantization_)
    return make_error(ErrorCode::kCorrupt,
                      "{}: tensor \"{}.weight_packed\" but config.json has no quantization_config",
                      path_.string(), name);
  NB_TRY(weight.scale, tensor(base + ".weight_scale"));
  if (weight.scale.shape.rank() != 2 || weight.scale.shape[0] != out_features ||
      weight.scale.shape[1] < 1 || in_features % weight.scale.shape[1] != 0 ||
      !is_floating(weight.scale.dtype) || dtype_size(weight.scale.dtype) < 2)
    return make_error(ErrorCode::kCorrupt,
                      "{}: tensor \"{}.weight_scale\" is {} {}, expected a float [{}, groups] with "
                      "groups dividing {}",
                      path_.string(), name, dtype_name(weight.scale.dtype),
                      weight.scale.shape.to_string(), out_features, in_features);
  const int64_t num_groups = weight.scale.shape[1];
  // Which group of the config this module belongs to follows from the bytes: width and group count.
  NB_TRY(weight.packed, tensor(base + ".weight_packed"));
  const bool has_zero_point = has(base + ".weight_zero_point");
  bool found = false;
  for (const QuantizationGroup& group : quantization_->groups) {
    const QuantFormat& candidate = group.format;
    if (candidate.num_groups(in_features) != num_groups || candidate.symmetric == has_zero_point ||
        !(weight.packed.shape ==
          Shape{out_features, packed_width(in_features, candidate.num_bits)}))
      continue;
    weight.format = candidate;
    found = true;
    break;
  }
  if (!found || weight.packed.dtype != DType::kI32)
    return make_error(ErrorCode::kCorrupt,
                      "{}: \"{}\": weight_packed {} {} with weight_scale {}{} fits no group of "
                      "quantization_config for a weight of [{}, {}]",
                      path_.string(), name, dtype_name(weight.packed.dtype),
                      weight.packed.shape.to_string(), weight.scale.shape.to_string(),
                      has_zero_point ? " and zero points" : "", out_features, in_features);
  NB_TRY(const Tensor shape, tensor(base + ".weight_shape", {2}));
  int64_t stored[2] = {-1, -1};
  for (int i = 0; i < 2; ++i) {
    if (shape.dtype == DType::kI64) stored[i] = shape.as<const int64_t>()[i];
    if (shape.dtype == DType::kI32) stored[i] = shape.as<const int32_t>()[i];
  }
  if (stored[0] != out_features || stored[1] != in_features)
    return make_error(ErrorCode::kCorrupt,
                      "{}: tensor \"{}.weight_shape\" says [{}, {}], config.json asks for [{}, {}]",
                      path_.string(), name, stored[0], stored[1], out_features, in_features);
  if (!has_zero_point) return weight;

  const int bits = weight.format.num_bits;
  NB_TRY(const Tensor packed_zeros,
         tensor(base + ".weight_zero_point", {packed_width(out_features, bits), num_groups}));
  if (packed_zeros.dtype != DType::kI32)
    return make_error(ErrorCode::kCorrupt,
                      "{}: tensor \"{}.weight_zero_point\" is {}, expected I32", path_.string(),
                      name, dtype_name(packed_zeros.dtype));
  std::lock_guard lock(zero_points_->mutex);
  std::vector<int8_t>& unpacked = zero_points_->unpacked[base];
  if (unpacked.empty()) {
    unpacked.resize(static_cast<size_t>(out_features * num_groups));
    unpack_columns(
        {packed_zeros.as<const int32_t>(), static_cast<size_t>(packed_zeros.num_elements())},
        out_features, num_groups, bits, unpacked);
  }
  weight.zero_point = {unpacked.data(), DType::kI8, {out_features, num_groups}};
  return weight;
}

void ModelDir::release(std::string_view name) const {
  if (const auto it = places_.find(name); it != places_.end())
    shards_[it->second.shard].release_pages(*it->second.info);
}

Result<std::string> ModelDir::side_file(std::string_view file_name) const {
  NB_TRY(std::string text, read_file(path_ / file_name));
  if (text.starts_with("version https://git-lfs"))
    return make_error(ErrorCode::kCorrupt,
                      "{}: a git-lfs pointer, not the file itself; run: git lfs pull",
                      (path_ / file_name).string());
  return text;
}

Result<std::string> ModelDir::tokenizer_json() const {
  std::error_code error;
  if (fs::exists(path_ / "tokenizer.json", error)) return side_file("tokenizer.json");
  return make_error(ErrorCode::kNotFound,
                    "{}: no tokenizer.json; copy it from the model that this one was made from",
                    path_.string());
}

Result<std::string> ModelDir::chat_template() const {
  std::error_code error;
  if (fs::exists(path_ / "chat_template.jinja", error)) return side_file("chat_template.jinja");
  if (fs::exists(path_ / "tokenizer_config.json", error)) {
    NB_TRY(const Json config, read_json(path_ / "tokenizer_config.json", kMaxConfigBytes));
    if (config.contains("chat_template") && config["chat_template"].is_string())
      return config["chat_template"].get<std::string>();
  }
  return std::string();
}

}  // namespace nibble
