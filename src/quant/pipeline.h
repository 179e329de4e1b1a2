// From a checkpoint and a recipe to a quantized checkpoint: reads like the table "One weight" of
// docs/architecture.md, top to bottom.
#pragma once

#include <functional>
#include <string>

#include "base/file.h"
#include "base/json.h"
#include "quant/calibrated.h"
#include "quant/recipe.h"

namespace nibble {

struct QuantizeOptions {
  Recipe recipe;
  std::vector<std::vector<int32_t>> calibration;  // token ids; for recipes that need data
  Json calibration_notes;  // for the report: where the samples are from, seed, what was passed over
  CalibratedOptions calibrated;    // its spill folder is chosen here
  Backend device = Backend::kCpu;  // where calibration computes
  int num_threads = 0;             // 0: all
  size_t max_shard_bytes = 20'000'000'000;
  // Called after each module with how far the work is; may be empty.
  std::function<void(size_t done, size_t total, const std::string& module)> progress;
};

struct QuantizeReport {
  size_t source_bytes = 0;  // of tensors
  size_t output_bytes = 0;
  int num_quantized = 0;
  int num_kept = 0;
  double seconds = 0;
  Json details;  // what quantization_report.json holds
  std::vector<std::string> warnings;
};

// What can be refused without looking at a tensor.
Status check_quantizable(const ModelDir& dir, const Recipe& recipe, size_t num_samples);

// Writes `out` (which must not exist) from the model directory `source`. Nothing stays under the
// final name unless everything worked; OUT.calibration/ holds a calibration under way.
Result<QuantizeReport> quantize_checkpoint(const fs::path& source, const fs::path& out,
                                           const QuantizeOptions& options);

}  // namespace nibble
