// Names of the improvements, and modes in words.
#include "quant/calibration_mode.h"

#include <algorithm>
#include <vector>

#include "base/format.h"
#include "base/text.h"

namespace nibble {
namespace {

constexpr std::array<std::string_view, kNumImprovements> kNames = {
    "observer-search", "error-propagation", "dead-channels", "norm-loss",
    "gated-norm",      "shortlist",         "refinement"};

}  // namespace

std::span<const std::string_view> improvement_names() {
  return kNames;
}

Status CalibrationMode::leave_out(std::string_view name) {
  const auto found = std::ranges::find(kNames, name);
  if (found == kNames.end()) {
    const std::string nearest = nearest_name(name, std::span<const std::string_view>(kNames));
    return make_error(ErrorCode::kInvalidArgument, "--without {}: unknown{}; known are {}", name,
                      nearest.empty() ? "" : ", did you mean \"" + nearest + "\"?",
                      join(std::span<const std::string_view>(kNames), ", "));
  }
  on_[static_cast<size_t>(found - kNames.begin())] = false;
  return {};
}

std::string CalibrationMode::text() const {
  if (std::ranges::none_of(on_, [](bool on) { return on; })) return "reference";
  std::vector<std::string_view> missing;
  for (size_t i = 0; i < on_.size(); ++i)
    if (!on_[i]) missing.push_back(kNames[i]);
  return missing.empty() ? "best"
                         : "best without " + join(std::span<const std::string_view>(missing), ", ");
}

}  // namespace nibble
