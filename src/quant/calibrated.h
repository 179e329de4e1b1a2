// The part of quantization that needs data: layer by layer over calibration samples, searches
// smoothing scales (AWQ) and rounds with compensation (GPTQ). Docs: docs/reference/quantization.md.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/json.h"
#include "quant/calibration_mode.h"
#include "quant/journal.h"
#include "quant/layer_pass.h"
#include "quant/recipe.h"
#include "quant/smoothing.h"

namespace nibble {

// The best mode tries every candidate on a part of the samples, and only the best few of those that
// are hardly behind the best one, and the identity, on the rest.
inline constexpr size_t kShortlistSize = 3;
inline constexpr double kShortlistBehind = 1.02;
inline int64_t shortlist_tokens(int64_t num_tokens) {
  return std::clamp<int64_t>(num_tokens / 4, 1, 32768);
}

// What happened to one layer, for people.
struct LayerSummary {
  int layer = 0;
  int num_layers = 0;
  bool resumed = false;            // taken from the journal
  double smoothing_check = 0;      // see CalibratedWeights::layers
  double loading_seconds = 0;      // of its weights
  double recording_seconds = 0;    // the pass over all samples that records inputs
  double forward_seconds = 0;      // one plain pass over all samples; 0 in reference mode
  double search_seconds = 0;       // over the candidates of all mappings
  double rounding_seconds = 0;     // GPTQ and refinement
  size_t peak_device_bytes = 0;    // that this process has held so far; 0 where it cannot be known
  const Json* mappings = nullptr;  // this layer's rows of CalibratedWeights::mappings
};

struct CalibratedOptions {
  CalibrationMode mode = CalibrationMode::best();
  NormRounding norm_rounding = NormRounding::kOnce;
  bool all_experts = true;  // see LayerPass::Recording
  Spill spill;
  std::function<void()> started;                      // before the first layer; may be empty
  std::function<void(const LayerSummary&)> progress;  // may be empty
};

struct CalibratedWeights {
  SmoothingPlan plan;
  Json mappings = Json::array();  // for the report: losses and choices
  // Per layer: smoothing_check, how far the smoothed layer in floating point is from the
  // original, relative to what the layer adds to the stream (2^-7 is the limit for a warning).
  Json layers = Json::array();
};

// How the recipe's GPTQ rounds in this mode; without the room.
Compensation compensation_of(const Recipe& recipe, const CalibrationMode& mode);

// Computes on `device`. `groups` gives the recipe's group of every module that is quantized. Layers
// that `journal` holds are taken from it; every other is recorded there, with the rounded weights.
Result<CalibratedWeights> calibrate(const ModelDir& dir, const ModelSpec& spec,
                                    const Recipe& recipe, const std::map<std::string, int>& groups,
                                    const std::vector<std::vector<int32_t>>& samples,
                                    const CalibratedOptions& options, CalibrationJournal& journal,
                                    Device& device, ThreadPool& pool);

}  // namespace nibble
