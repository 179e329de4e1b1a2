// The part of quantization that needs data: layer by layer over calibration samples, searches
// smoothing scales (AWQ) and rounds with compensation (GPTQ). Docs: docs/reference/quantization.md.
#pragma once

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

// The best mode tries every candidate on this part of the samples (1 / kShortlistPart), and only
// the best few, and the identity, on all.
inline constexpr int64_t kShortlistPart = 4;
inline constexpr size_t kShortlistSize = 5;

// What happened to one layer, for people.
struct LayerSummary {
  int layer = 0;
  int num_layers = 0;
  bool resumed = false;            // taken from the journal
  double smoothing_check = 0;      // see CalibratedWeights::layers
  double forward_seconds = 0;      // one plain pass over all samples; 0 in reference mode
  double search_seconds = 0;       // over the candidates of all mappings
  double rounding_seconds = 0;     // GPTQ and refinement
  const Json* mappings = nullptr;  // this layer's rows of CalibratedWeights::mappings
};

struct CalibratedOptions {
  CalibrationMode mode = CalibrationMode::best();
  NormRounding norm_rounding = NormRounding::kOnce;
  bool all_experts = true;  // see LayerPass::Recording
  Spill spill;
  std::function<void(const LayerSummary&)> progress;  // may be empty
};

struct CalibratedWeights {
  SmoothingPlan plan;
  Json mappings = Json::array();  // for the report: losses and choices
  // Per layer: smoothing_check, how far the smoothed layer in floating point is from the
  // original, relative to what the layer adds to the stream (2^-7 is the limit for a warning).
  Json layers = Json::array();
};

// `groups` gives the recipe's group of every module that is quantized. Layers
// that `journal` holds are taken from it; every other is recorded there, with the rounded weights.
Result<CalibratedWeights> calibrate(const ModelDir& dir, const ModelSpec& spec,
                                    const Recipe& recipe, const std::map<std::string, int>& groups,
                                    const std::vector<std::vector<int32_t>>& samples,
                                    const CalibratedOptions& options, CalibrationJournal& journal,
                                    ThreadPool& pool);

}  // namespace nibble
