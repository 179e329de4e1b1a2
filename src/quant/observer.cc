// The table of observers.
#include "quant/observer.h"

#include <algorithm>
#include <array>

#include "base/format.h"
#include "base/text.h"

namespace nibble {
namespace {

struct Row {
  std::string_view name;
  Observer::Kind kind;
};

constexpr std::array<Row, 6> kRows = {{
    {"memoryless_minmax", Observer::Kind::kMinMax},
    {"minmax", Observer::Kind::kMinMax},
    {"static_minmax", Observer::Kind::kMinMax},
    {"memoryless_mse", Observer::Kind::kMse},
    {"mse", Observer::Kind::kMse},
    {"imatrix_mse", Observer::Kind::kImatrixMse},
}};

constexpr auto kNames = [] {
  std::array<std::string_view, kRows.size()> names{};
  for (size_t i = 0; i < names.size(); ++i) names[i] = kRows[i].name;
  return names;
}();

}  // namespace

GroupRanges Observer::observe(const Tensor& weight, const QuantFormat& format,
                              std::span<const float> importance, ThreadPool& pool) const {
  return find_ranges(range_search(weight.dtype), weight, format,
                     shares(importance, weight.shape[1]), pool);
}

RangeSearch Observer::range_search(DType weight_dtype) const {
  switch (kind_) {
    case Kind::kMse: return power_search(weight_dtype);
    case Kind::kImatrixMse: return importance_search();
    case Kind::kMinMax: break;
  }
  return {};
}

std::vector<float> Observer::shares(std::span<const float> importance, int64_t columns) const {
  return needs_importance() ? importance_shares(importance, columns) : std::vector<float>();
}

std::span<const std::string_view> known_observers() {
  return kNames;
}

Result<Observer> make_observer(const std::string& name) {
  const auto row = std::ranges::find(kRows, std::string_view(name), &Row::name);
  if (row != kRows.end()) return Observer(row->kind);
  const std::string nearest = nearest_name(name, std::span<const std::string_view>(kNames));
  return make_error(ErrorCode::kInvalidArgument, "observer \"{}\" is not known{}; known are {}",
                    name, nearest.empty() ? "" : format(", the nearest is {}", nearest),
                    join(kNames, ", "));
}

}  // namespace nibble
