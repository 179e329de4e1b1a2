// Cheap checks first; a checkpoint that does not open is not run.
#include "eval/verify.h"

#include <cmath>

#include "base/format.h"
#include "base/hash.h"
#include "base/json.h"
#include "checkpoint/model_dir.h"

namespace nibble {
namespace {

constexpr int kNumIds = 32;  // of the built-in sample

class Verifier {
 public:
  Verifier(const fs::path& path, const VerifyOptions& options) : path_(path), options_(options) {}

  Result<VerifyReport> run() {
    if (!fs::is_directory(path_))
      return make_error(ErrorCode::kNotFound, "{}: not a directory; give a checkpoint",
                        path_.string());
    check_manifest();
    const Result<ModelDir> dir = ModelDir::open(path_);
    if (!dir) {
      problem("{}", dir.error().message);
      return std::move(report_);
    }
    check_values(*dir);
    if (report_.problems.empty()) NB_TRY_STATUS(run_model(*dir));
    return std::move(report_);
  }

 private:
  template <class... Args>
  void problem(fmt::format_string<Args...> text, Args&&... args) {
    report_.problems.push_back(format(text, std::forward<Args>(args)...));
  }

  void check_manifest() {
    const Result<std::string> text = read_file(path_ / "manifest.json");
    if (!text) return;
    report_.has_manifest = true;
    const Result<Json> manifest = parse_json(*text, "manifest.json");
    if (!manifest || !manifest->is_object() || !manifest->contains("files") ||
        !(*manifest)["files"].is_object()) {
      problem("manifest.json: not a manifest of nibble");
      return;
    }
    const Json tensors = manifest->value("tensors", Json::object());
    for (const auto& [name, entry] : (*manifest)["files"].items()) {
      if (fs::path(name).filename() != name || !entry.is_object()) {
        problem("manifest.json: \"{}\" is no file name", name);
        continue;
      }
      const Result<std::string> digest = sha256_file(path_ / name);
      ++report_.num_files;
      if (!digest) {
        problem("{}", digest.error().message);
      } else if (*digest != entry.value("sha256", "")) {
        name_damage(name, tensors);
      }
    }
  }

  // A file whose hash is wrong: which tensors, or else the file.
  void name_damage(const std::string& name, const Json& tensors) {
    size_t named = 0;
    if (name.ends_with(".safetensors"))
      if (const Result<SafetensorsFile> file = SafetensorsFile::open(path_ / name); file)
        for (const TensorInfo& info : file->tensors()) {
          const Tensor tensor = file->view(info);
          const auto* bytes = static_cast<const char*>(tensor.data);
          if (tensors.value(info.name, "") == sha256_hex({bytes, tensor.num_bytes()})) continue;
          problem("{}: tensor {} differs from what was written", name, info.name);
          ++named;
        }
    if (named == 0) problem("{}: differs from what was written", name);
  }

  void check_values(const ModelDir& dir) {
    std::vector<float> values;
    for (const SafetensorsFile& shard : dir.shards())
      for (const TensorInfo& info : shard.tensors()) {
        ++report_.num_tensors;
        if (info.dtype != DType::kBF16 && info.dtype != DType::kF16 && info.dtype != DType::kF32)
          continue;
        const Tensor tensor = shard.view(info);
        values.resize(static_cast<size_t>(tensor.num_elements()));
        to_float(tensor, values.data());
        for (size_t i = 0; i < values.size(); ++i)
          if (!std::isfinite(values[i])) {
            problem("{}: tensor {} holds {} at element {}", shard.path().filename().string(),
                    info.name, values[i], i);
            break;
          }
        shard.release_pages(info);
      }
  }

  Status run_model(const ModelDir& dir) {
    size_t longest = kNumIds;
    for (const auto& sample : options_.samples) longest = std::max(longest, sample.size());
    EngineOptions engine;
    engine.num_threads = options_.num_threads;
    Result<Scorer> scorer = Scorer::open(dir, engine, static_cast<int32_t>(longest));
    if (!scorer) {
      problem("{}", scorer.error().message);
      return {};
    }
    std::vector<std::vector<int32_t>> samples = options_.samples;
    if (samples.empty()) {
      samples.emplace_back();
      for (int i = 0; i < kNumIds; ++i)
        samples[0].push_back(static_cast<int32_t>(scorer->spec().vocab_size * i / kNumIds));
    }
    bool finite = true;
    NB_TRY_STATUS(scorer->score(samples[0], [&](int32_t, const Tensor& logits) {
      for (int64_t i = 0; i < logits.num_elements(); ++i)
        finite &= std::isfinite(logits.as<const float>()[i]);
    }));
    if (!finite) problem("the forward pass gives NaN or infinity");
    if (options_.parent.empty() || !finite) return {};
    NB_TRY(const ModelDir parent_dir, ModelDir::open(options_.parent));
    NB_TRY(Scorer parent, Scorer::open(parent_dir, engine, static_cast<int32_t>(longest)));
    NB_TRY(report_.fidelity, compare_models(parent, *scorer, samples));
    report_.compared = true;
    return {};
  }

  const fs::path& path_;
  const VerifyOptions& options_;
  VerifyReport report_;
};

}  // namespace

Result<VerifyReport> verify_checkpoint(const fs::path& path, const VerifyOptions& options) {
  return Verifier(path, options).run();
}

}  // namespace nibble
