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
  std::unique_ptr<Observer> (*make)();
};

constexpr std::array<Row, 6> kRows = {{
    {"memoryless_minmax", make_minmax_observer},
    {"minmax", make_minmax_observer},
    {"static_minmax", make_minmax_observer},
    {"memoryless_mse", make_mse_observer},
    {"mse", make_mse_observer},
    {"imatrix_mse", make_imatrix_mse_observer},
}};

constexpr auto kNames = [] {
  std::array<std::string_view, kRows.size()> names{};
  for (size_t i = 0; i < names.size(); ++i) names[i] = kRows[i].name;
  return names;
}();

}  // namespace

std::span<const std::string_view> known_observers() {
  return kNames;
}

Result<std::unique_ptr<Observer>> make_observer(const std::string& name) {
  const auto row = std::ranges::find(kRows, std::string_view(name), &Row::name);
  if (row != kRows.end()) return row->make();
  const std::string nearest = nearest_name(name, std::span<const std::string_view>(kNames));
  return make_error(ErrorCode::kInvalidArgument, "observer \"{}\" is not known{}; known are {}",
                    name, nearest.empty() ? "" : format(", the nearest is {}", nearest),
                    join(kNames, ", "));
}

}  // namespace nibble
