// The part of quantization that needs data: layer by layer over calibration samples, searches
// smoothing scales (AWQ) and rounds with compensation (GPTQ). Docs: docs/reference/quantization.md.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/json.h"
#include "quant/layer_pass.h"
#include "quant/packed_weight.h"
#include "quant/recipe.h"
#include "quant/smoothing.h"

namespace nibble {

// kReference does what llm-compressor does: the search rounds with min-max whatever the recipe's
// observer is, and every layer sees the activations of full-precision layers. kBest searches with
// the recipe's observer and lets each layer see what the quantized layers before it produce.
enum class CalibrationMode { kReference, kBest };

struct CalibratedOptions {
  CalibrationMode mode = CalibrationMode::kBest;
  NormRounding norm_rounding = NormRounding::kOnce;
  std::function<void(int layer, int num_layers)> progress;  // may be empty
};

struct CalibratedWeights {
  SmoothingPlan plan;
  std::map<std::string, PackedWeight> rounded;  // by module; what GPTQ decided
  Json mappings = Json::array();                // for the report: losses and choices
};

// `groups` gives the recipe's group of every module that is quantized. Dense models only.
Result<CalibratedWeights> calibrate(const ModelDir& dir, const ModelSpec& spec,
                                    const Recipe& recipe, const std::map<std::string, int>& groups,
                                    const std::vector<std::vector<int32_t>>& samples,
                                    const CalibratedOptions& options, ThreadPool& pool);

}  // namespace nibble
