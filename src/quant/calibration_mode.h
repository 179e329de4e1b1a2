// What calibration does beyond llm-compressor's algorithm: all of it (best), none of it
// (reference), or all but some, to see what each part is worth. Docs:
// docs/reference/quantization.md.
#pragma once

#include <array>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

namespace nibble {

enum class Improvement {
  kObserverSearch,    // the search rounds with the recipe's observer instead of min-max
  kErrorPropagation,  // a layer sees what the rounded layers before it produce
  kDeadChannels,      // channels with next to no input keep the scale 1 and set no other's
  kNormLoss,          // a candidate's loss counts how the norm itself is rounded
  kGatedNorm,         // linear attention's gated norm is smoothed against its out_proj
  kShortlist,         // candidates are tried on a part of the samples, the best few on all
  kRefinement,        // what GPTQ leaves is refined; see quant/refine.h
};
inline constexpr size_t kNumImprovements = 7;

class CalibrationMode {
 public:
  static CalibrationMode best() { return CalibrationMode(true); }
  static CalibrationMode reference() { return CalibrationMode(false); }
  bool has(Improvement part) const { return on_[static_cast<size_t>(part)]; }
  // By its name in improvement_names(); kInvalidArgument, with the nearest name, for any other.
  Status leave_out(std::string_view name);
  // "best", "reference", "best without refinement, shortlist".
  std::string text() const;

 private:
  explicit CalibrationMode(bool on) { on_.fill(on); }
  std::array<bool, kNumImprovements> on_ = {};
};

std::span<const std::string_view> improvement_names();  // in the order of Improvement

}  // namespace nibble
