// The stages in order: check, stream, finish.
#include "quant/pipeline.h"

#include <chrono>
#include <map>
#include <optional>

#include "base/format.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/thread_pool.h"
#include "base/version.h"
#include "checkpoint/model_dir.h"
#include "checkpoint/writer.h"
#include "model/architectures.h"
#include "model/weights.h"
#include "quant/expert_stacks.h"
#include "quant/rtn.h"

namespace nibble {
namespace {

// Copied beside the weights when the source has them.
constexpr std::string_view kSideFiles[] = {"generation_config.json",
                                           "tokenizer.json",
                                           "tokenizer_config.json",
                                           "chat_template.jinja",
                                           "special_tokens_map.json",
                                           "vocab.json",
                                           "merges.txt",
                                           "processor_config.json",
                                           "preprocessor_config.json",
                                           "video_preprocessor_config.json"};

class Pipeline {
 public:
  Pipeline(const fs::path& source, const fs::path& out, const QuantizeOptions& options)
      : source_(source), out_(out), options_(options), pool_(options.num_threads) {}

  Result<QuantizeReport> run() {
    const auto start = std::chrono::steady_clock::now();
    NB_TRY(const ModelDir dir, ModelDir::open(source_));
    NB_TRY_STATUS(check(dir));
    if (options_.recipe.needs_calibration()) {
      std::map<std::string, int> groups;
      for (const auto& [name, decision] : quantized_)
        groups[decision->module.name] = decision->group;
      NB_TRY(const std::unique_ptr<Device> device,
             open_device(options_.device, pool_.num_threads()));
      device_name_ = device->name();
      NB_TRY(source_hashes_, scan_source(dir));
      const fs::path folder = out_.string() + ".calibration";
      NB_TRY(CalibrationJournal journal, CalibrationJournal::open(folder, fingerprint()));
      journal_ = std::move(journal);
      CalibratedOptions calibrated = options_.calibrated;
      calibrated.spill.folder = folder;
      NB_TRY(calibrated_, calibrate(dir, spec_, options_.recipe, groups, options_.calibration,
                                    calibrated, *journal_, *device, pool_));
    }
    NB_TRY(CheckpointWriter writer,
           CheckpointWriter::create(out_, {.max_shard_bytes = options_.max_shard_bytes}));
    Status written = stream_tensors(dir, writer);
    if (written) written = add_files(dir, writer);
    if (!written) {
      writer.discard();
      return written.error();
    }
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    report_.seconds = elapsed.count();
    report_.output_bytes = writer.total_tensor_bytes();
    report_.warnings = explanation_.warnings;
    report_.details = {{"source", source_.filename().string()},
                       {"algorithm", options_.recipe.algorithm()},
                       {"nibble_version", kVersion},
                       {"recipe_sha256", sha256_hex(options_.recipe.text)},
                       {"source_sha256", source_hashes_},
                       {"source_bytes", report_.source_bytes},
                       {"output_bytes", report_.output_bytes},
                       {"modules", std::move(modules_)}};
    if (options_.recipe.needs_calibration()) {
      report_.details["device"] = device_name_;
      report_.details["mode"] = options_.calibrated.mode.text();
      report_.details["norm_roundtrip"] =
          options_.calibrated.norm_rounding == NormRounding::kOnce ? "once" : "upstream";
      report_.details["calibration_samples"] = options_.calibration.size();
      if (!options_.calibration_notes.is_null())
        report_.details["calibration"] = options_.calibration_notes;
      report_.details["calibration_sha256"] = fingerprint()["the calibration set"];
      report_.details["mappings"] = std::move(calibrated_.mappings);
      report_.details["layers"] = std::move(calibrated_.layers);
    }
    NB_TRY_STATUS(writer.add_file("quantization_report.json", dump_json_pretty(report_.details)));
    NB_TRY_STATUS(writer.finish());
    NB_TRY_STATUS(check_written());
    if (journal_) journal_->remove();
    return std::move(report_);
  }

 private:
  // One look at every byte before hours of work: the hashes of the shards; refuses weights that are
  // not finite.
  Result<Json> scan_source(const ModelDir& dir) {
    const std::vector<SafetensorsFile>& shards = dir.shards();
    std::vector<Result<std::string>> scanned(shards.size(), std::string());
    const auto scan = [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) scanned[i] = scan_shard(shards[i]);
    };
    // A single shard leaves the threads to the look at its tensors.
    if (shards.size() == 1) {
      scan(0, 1);
    } else {
      pool_.parallel_for(shards.size(), 1, scan);
    }
    Json hashes = Json::object();
    for (size_t i = 0; i < shards.size(); ++i) {
      NB_TRY(hashes[shards[i].path().filename().string()], std::move(scanned[i]));
    }
    return hashes;
  }

  Result<std::string> scan_shard(const SafetensorsFile& shard) {
    Sha256 hash;
    hash.update(shard.header_bytes());
    for (const TensorInfo& info : shard.tensors()) {
      hash.update(shard.bytes(info));
      if (!is_finite(shard.view(info)))
        return make_error(ErrorCode::kInvalidArgument, "{}: {} holds NaN or infinity",
                          shard.path().string(), info.name);
      shard.release_pages(info);
    }
    return hash.finish();
  }

  bool is_finite(const Tensor& tensor) {
    const bool is_float =
        tensor.dtype == DType::kBF16 || tensor.dtype == DType::kF16 || tensor.dtype == DType::kF32;
    const int64_t num = tensor.num_elements();
    if (!is_float || num == 0) return true;
    return all_finite(tensor.reshaped({num / tensor.shape[-1], tensor.shape[-1]}), pool_);
  }

  // Everything that the result depends on.
  Json fingerprint() const {
    Sha256 samples;
    for (const auto& sample : options_.calibration) {
      samples.update(std::as_bytes(std::span(sample)));
      samples.update("\n");
    }
    return {{"nibble version", kVersion},
            {"the source", source_hashes_},
            {"the recipe", sha256_hex(options_.recipe.text)},
            {"the calibration set", samples.finish()},
            {"--device", device_name_},
            {"--mode", options_.calibrated.mode.text()},
            {"--norm-roundtrip", static_cast<int>(options_.calibrated.norm_rounding)},
            {"--calibrate-all-experts", options_.calibrated.all_experts}};
  }

  Status check_written() const {
    const auto read_back = [&]() -> Status {
      NB_TRY(const ModelDir dir, ModelDir::open(out_));
      NB_TRY(const ModelSpec spec, parse_model_config(dir.config()));
      return look_up_weights(*source_of(dir), spec);
    };
    if (const Status read = read_back(); !read)
      return make_error(ErrorCode::kCorrupt, "{}: written, but does not read back: {}",
                        out_.string(), read.error().message);
    return {};
  }

  // Everything that can be refused is refused here, before any work.
  Status check(const ModelDir& dir) {
    if (fs::exists(out_))
      return make_error(ErrorCode::kInvalidArgument,
                        "{}: exists already; choose another output directory or remove it",
                        out_.string());
    NB_TRY_STATUS(check_quantizable(dir, options_.recipe, options_.calibration.size()));
    NB_TRY(spec_, parse_model_config(dir.config()));
    NB_TRY_STATUS(look_up_weights(*source_of(dir), spec_));
    NB_TRY(explanation_, explain_recipe(options_.recipe, spec_));
    for (const std::string& warning : explanation_.warnings) log_warning("recipe: {}", warning);
    for (const ModuleDecision& decision : explanation_.modules) {
      if (decision.group < 0) {
        ++report_.num_kept;
        continue;
      }
      const LinearModule& module = decision.module;
      NB_TRY(const Tensor weight, module_weight(dir, module));
      if (weight.dtype != DType::kBF16 && weight.dtype != DType::kF16 &&
          weight.dtype != DType::kF32)
        return make_error(ErrorCode::kUnsupported,
                          "{}.weight is {}; BF16, F16 and F32 weights can be quantized",
                          module.name, dtype_name(weight.dtype));
      quantized_[module.name + ".weight"] = &decision;
      ++report_.num_quantized;
    }
    return {};
  }

  // One pass over the mapped shards in file order: a tensor is copied or replaced, then its pages
  // go.
  Status stream_tensors(const ModelDir& dir, CheckpointWriter& writer) {
    size_t total = 0;
    for (const SafetensorsFile& shard : dir.shards()) total += shard.tensors().size();
    size_t done = 0;
    for (const SafetensorsFile& shard : dir.shards()) {
      const std::string file = shard.path().filename().string();
      const bool scanned = source_hashes_.contains(file);
      Sha256 hash;
      if (!scanned) hash.update(shard.header_bytes());
      for (const TensorInfo& info : shard.tensors()) {
        report_.source_bytes += info.num_bytes;
        if (!scanned) hash.update(shard.bytes(info));
        for (const NamedTensor& part : split_experts(info.name, shard.view(info)))
          NB_TRY_STATUS(write_tensor(part.name, part.tensor, writer));
        shard.release_pages(info);
        if (options_.progress) options_.progress(++done, total, info.name);
      }
      if (!scanned) source_hashes_[file] = hash.finish();
    }
    return {};
  }

  Status write_tensor(const std::string& name, Tensor tensor, CheckpointWriter& writer) {
    const auto found = quantized_.find(name);
    const bool is_rounded =
        found != quantized_.end() && journal_ && journal_->has_rounded(found->second->module.name);
    OwnedTensor smoothed;
    if (calibrated_.plan.touches(name) && !is_rounded) {
      smoothed = OwnedTensor::copy_of(tensor);
      tensor = smoothed.view();
      calibrated_.plan.apply(name, tensor);
    }
    return found == quantized_.end() ? writer.add(name, tensor)
                                     : quantize(*found->second, tensor, writer);
  }

  Status quantize(const ModuleDecision& decision, const Tensor& weight, CheckpointWriter& writer) {
    const QuantizationGroup& group = options_.recipe.groups[static_cast<size_t>(decision.group)];
    const std::string& name = decision.module.name;
    PackedWeight packed;
    if (journal_ && journal_->has_rounded(name)) {
      NB_TRY(packed, journal_->rounded(name));
    } else {
      NB_TRY(const Observer observer, make_observer(group.observer));
      const Result<QuantizedWeight> rounded =
          round_to_nearest(weight, group.format, observer, {}, pool_);
      if (!rounded)
        return make_error(rounded.error().code, "{}.weight: {}", name, rounded.error().message);
      packed = pack_weight(pack_rounded(weight, *rounded, group.format, pool_), weight.dtype,
                           weight.shape, group.format);
    }
    const int64_t rows = weight.shape[0];
    const int64_t num_groups = group.format.num_groups(weight.shape[1]);
    void* scale = weight.dtype == DType::kF32 ? static_cast<void*>(packed.scale32.data())
                                              : static_cast<void*>(packed.scale16.data());
    int64_t shape[2] = {rows, weight.shape[1]};
    NB_TRY_STATUS(writer.add(name + ".weight_packed",
                             {packed.packed.data(),
                              DType::kI32,
                              {rows, packed_width(weight.shape[1], group.format.num_bits)}}));
    NB_TRY_STATUS(writer.add(name + ".weight_scale", {scale, weight.dtype, {rows, num_groups}}));
    if (!group.format.symmetric)
      NB_TRY_STATUS(writer.add(name + ".weight_zero_point",
                               {packed.zero_point.data(),
                                DType::kI32,
                                {packed_width(rows, group.format.num_bits), num_groups}}));
    NB_TRY_STATUS(writer.add(name + ".weight_shape", {shape, DType::kI64, {2}}));
    modules_[name] = {{"num_bits", group.format.num_bits},
                      {"observer", group.observer},
                      {"mean_squared_error", packed.mean_squared_error},
                      {"relative_error", packed.relative_error}};
    return {};
  }

  Status add_files(const ModelDir& dir, CheckpointWriter& writer) {
    Json config = dir.config();
    QuantizationConfig quantization;
    quantization.groups = options_.recipe.groups;
    // The ignore list in explicit names: every Linear that was kept.
    for (const ModuleDecision& decision : explanation_.modules)
      if (decision.group < 0) quantization.ignore.push_back(decision.module.name);
    config["quantization_config"] = quantization_config_json(quantization);
    NB_TRY_STATUS(writer.add_file("config.json", dump_json_pretty(config)));
    NB_TRY_STATUS(writer.add_file("recipe.yaml", options_.recipe.text));
    for (const std::string_view name : kSideFiles) {
      Result<std::string> text = dir.side_file(name);
      if (text) {
        NB_TRY_STATUS(writer.add_file(name, std::move(*text)));
      } else if (text.error().code != ErrorCode::kNotFound) {
        return text.error();
      }
    }
    return {};
  }

  const fs::path& source_;
  const fs::path& out_;
  const QuantizeOptions& options_;
  ThreadPool pool_;
  ModelSpec spec_;
  Explanation explanation_;
  std::map<std::string, const ModuleDecision*> quantized_;
  CalibratedWeights calibrated_;
  std::optional<CalibrationJournal> journal_;
  std::string device_name_;
  Json source_hashes_ = Json::object();  // by file name
  QuantizeReport report_;
  Json modules_ = Json::object();
};

}  // namespace

Status check_quantizable(const ModelDir& dir, const Recipe& recipe, size_t num_samples) {
  if (recipe.needs_calibration() && num_samples == 0)
    return make_error(ErrorCode::kInvalidArgument,
                      "the recipe asks for {}, which needs calibration samples; give "
                      "--calibration FILE",
                      recipe.algorithm());
  if (dir.quantization())
    return make_error(ErrorCode::kInvalidArgument,
                      "{}: already quantized; give the original checkpoint", dir.path().string());
  return {};
}

Result<QuantizeReport> quantize_checkpoint(const fs::path& source, const fs::path& out,
                                           const QuantizeOptions& options) {
  return Pipeline(source, out, options).run();
}

}  // namespace nibble
