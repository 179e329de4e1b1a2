// Order of the writes of a layer: weights, activations, JSON. A kill between them leaves the layer
// undone, and the next run writes all three again.
#include "quant/journal.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstring>

#include "base/format.h"
#include "checkpoint/shard_writer.h"

namespace nibble {
namespace {

// The first difference of two fingerprints, as one clause.
std::string difference(const Json& then, const Json& now) {
  for (const auto& [key, value] : now.items())
    if (!then.contains(key) || then[key] != value) return key;
  return "its format";
}

template <class T>
Status append(ShardWriter& writer, const std::string& name, DType dtype,
              const std::vector<T>& values) {
  if (values.empty()) return {};
  return writer.append(
      name, {const_cast<T*>(values.data()), dtype, {static_cast<int64_t>(values.size())}});
}

template <class T>
void read(const SafetensorsFile& file, const std::string& name, std::vector<T>& values) {
  const TensorInfo* info = file.find(name);
  if (info == nullptr) return;
  values.resize(info->num_bytes / sizeof(T));
  std::memcpy(values.data(), file.view(*info).data, info->num_bytes);
}

}  // namespace

Result<CalibrationJournal> CalibrationJournal::open(const fs::path& folder, const Json& fingerprint,
                                                    bool resume) {
  CalibrationJournal journal;
  journal.folder_ = folder;
  std::error_code error;
  fs::create_directories(folder, error);
  if (error)
    return make_error(ErrorCode::kIo, "{}: cannot be created: {}", folder.string(),
                      error.message());
  const int fd = ::open((folder / "lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0)
    return make_error(ErrorCode::kIo, "{}/lock: {}", folder.string(), std::strerror(errno));
  journal.lock_ = std::shared_ptr<void>(nullptr, [fd](void*) { ::close(fd); });
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0)
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: another run is writing this output; wait for it or choose another OUT",
                      folder.string());

  const fs::path print_path = folder / "run.json";
  if (fs::exists(print_path) && fs::exists(journal.file_of("layer", 0, "json"))) {
    NB_TRY(const std::string text, read_file(print_path));
    NB_TRY(const Json then, parse_json(text, print_path.string()));
    if (!resume)
      return make_error(ErrorCode::kInvalidArgument,
                        "{}: an interrupted run is here; go on with --resume, or delete the folder",
                        folder.string());
    if (then != fingerprint)
      return make_error(ErrorCode::kInvalidArgument,
                        "{}: cannot resume: {} changed since the interrupted run; undo that, or "
                        "delete the folder",
                        folder.string(), difference(then, fingerprint));
    for (int layer = 0; fs::exists(journal.file_of("layer", layer, "json")); ++layer) {
      const fs::path path = journal.file_of("layer", layer, "json");
      NB_TRY(const std::string decisions, read_file(path));
      NB_TRY(Json parsed, parse_json(decisions, path.string()));
      journal.take(std::move(parsed));
    }
    return journal;
  }
  NB_TRY_STATUS(write_file_durably(print_path, dump_json(fingerprint)));
  return journal;
}

fs::path CalibrationJournal::file_of(std::string_view kind, int layer,
                                     std::string_view extension) const {
  return folder_ / format("{}-{}.{}", kind, layer, extension);
}

void CalibrationJournal::take(Json decisions) {
  for (const auto& [module, figures] : decisions["rounded"].items())
    modules_[module] = num_finished();
  layers_.push_back(std::move(decisions));
}

Status CalibrationJournal::record(const Json& decisions,
                                  const std::map<std::string, PackedWeight>& rounded,
                                  const Tensor& stream) {
  const int layer = num_finished();
  Json complete = decisions;
  complete["rounded"] = Json::object();
  if (!rounded.empty()) {
    const fs::path path = file_of("rounded", layer, "safetensors");
    std::error_code ignored;
    fs::remove(path, ignored);
    NB_TRY(ShardWriter writer, ShardWriter::create(path));
    for (const auto& [module, weight] : rounded) {
      NB_TRY_STATUS(append(writer, module + ".packed", DType::kI32, weight.packed));
      NB_TRY_STATUS(append(writer, module + ".scale16", DType::kI16, weight.scale16));
      NB_TRY_STATUS(append(writer, module + ".scale32", DType::kF32, weight.scale32));
      NB_TRY_STATUS(append(writer, module + ".zero_point", DType::kI32, weight.zero_point));
      complete["rounded"][module] = {weight.mean_squared_error, weight.relative_error};
    }
    NB_TRY_STATUS(writer.close());
  }
  NB_TRY_STATUS(write_file_durably(
      file_of("stream", layer, "bin"),
      {static_cast<const char*>(stream.data), static_cast<size_t>(stream.num_bytes())}));
  NB_TRY_STATUS(write_file_durably(file_of("layer", layer, "json"), dump_json(complete)));
  take(std::move(complete));
  std::error_code ignored;
  if (layer > 0) fs::remove(file_of("stream", layer - 1, "bin"), ignored);
  return {};
}

Status CalibrationJournal::restore_stream(const Tensor& stream) const {
  const fs::path path = file_of("stream", num_finished() - 1, "bin");
  NB_TRY(const MappedFile file, MappedFile::open(path));
  if (file.bytes().size() != stream.num_bytes())
    return make_error(ErrorCode::kCorrupt, "{}: holds {} bytes, expected {}; delete {}",
                      path.string(), file.bytes().size(), stream.num_bytes(), folder_.string());
  std::memcpy(stream.data, file.bytes().data(), stream.num_bytes());
  return {};
}

Result<PackedWeight> CalibrationJournal::rounded(const std::string& module) const {
  const int layer = modules_.at(module);
  NB_TRY(const SafetensorsFile file,
         SafetensorsFile::open(file_of("rounded", layer, "safetensors")));
  PackedWeight weight;
  read(file, module + ".packed", weight.packed);
  read(file, module + ".scale16", weight.scale16);
  read(file, module + ".scale32", weight.scale32);
  read(file, module + ".zero_point", weight.zero_point);
  const Json& figures = decisions(layer)["rounded"][module];
  weight.mean_squared_error = figures[0].get<double>();
  weight.relative_error = figures[1].get<double>();
  return weight;
}

void CalibrationJournal::remove() {
  std::error_code ignored;
  fs::remove_all(folder_, ignored);
}

}  // namespace nibble
