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

// Activations are written when the work since they last were took so many times as long.
constexpr int kWorthIt = 20;

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

struct LayerFiles {
  fs::path rounded;
  fs::path stream;      // empty: not written
  fs::path old_stream;  // goes once the layer is there
  fs::path decisions;
};

Status write_layer(const LayerFiles& files, const std::map<std::string, PackedWeight>& rounded,
                   const Tensor& stream, const std::string& decisions,
                   std::chrono::steady_clock::duration* stream_cost) {
  std::error_code ignored;
  if (!rounded.empty()) {
    fs::remove(files.rounded, ignored);
    NB_TRY(ShardWriter writer, ShardWriter::create(files.rounded));
    for (const auto& [module, weight] : rounded) {
      NB_TRY_STATUS(append(writer, module + ".packed", DType::kI32, weight.packed));
      NB_TRY_STATUS(append(writer, module + ".scale16", DType::kI16, weight.scale16));
      NB_TRY_STATUS(append(writer, module + ".scale32", DType::kF32, weight.scale32));
      NB_TRY_STATUS(append(writer, module + ".zero_point", DType::kI32, weight.zero_point));
    }
    NB_TRY_STATUS(writer.close());
  }
  if (!files.stream.empty()) {
    const auto begin = std::chrono::steady_clock::now();
    NB_TRY_STATUS(write_file_durably(files.stream, {static_cast<const char*>(stream.data),
                                                    static_cast<size_t>(stream.num_bytes())}));
    *stream_cost = std::chrono::steady_clock::now() - begin;
  }
  NB_TRY_STATUS(write_file_durably(files.decisions, decisions));
  if (!files.old_stream.empty()) fs::remove(files.old_stream, ignored);
  return {};
}

}  // namespace

Result<CalibrationJournal> CalibrationJournal::open(const fs::path& folder,
                                                    const Json& fingerprint) {
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
    if (then != fingerprint)
      return make_error(ErrorCode::kInvalidArgument,
                        "{}: an interrupted run is here, and {} changed since; undo that to go on "
                        "with it, or delete the folder",
                        folder.string(), difference(then, fingerprint));
    int num_layers = 0;  // up to the last one whose activations are here
    for (int layer = 0; fs::exists(journal.file_of("layer", layer, "json")); ++layer)
      if (fs::exists(journal.file_of("stream", layer, "bin"))) num_layers = layer + 1;
    journal.stream_layer_ = num_layers - 1;
    for (int layer = 0; layer < num_layers; ++layer) {
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
                                  std::map<std::string, PackedWeight> rounded, const Tensor& stream,
                                  bool last) {
  NB_TRY_STATUS(settle());
  const int layer = num_finished();
  Json complete = decisions;
  complete["rounded"] = Json::object();
  for (const auto& [module, weight] : rounded)
    complete["rounded"][module] = {weight.mean_squared_error, weight.relative_error};
  LayerFiles files;
  files.rounded = file_of("rounded", layer, "safetensors");
  files.decisions = file_of("layer", layer, "json");
  const auto now = Clock::now();
  if (last || now - stream_written_ >= kWorthIt * *stream_cost_) {
    files.stream = file_of("stream", layer, "bin");
    if (stream_layer_ >= 0) files.old_stream = file_of("stream", stream_layer_, "bin");
    stream_layer_ = layer;
    stream_written_ = now;
  }
  writing_ =
      std::async(std::launch::async, [files, stream, cost = stream_cost_,
                                      text = dump_json(complete), weights = std::move(rounded)] {
        return write_layer(files, weights, stream, text, cost.get());
      });
  take(std::move(complete));
  return {};
}

Status CalibrationJournal::settle() {
  return writing_.valid() ? writing_.get() : Status();
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
