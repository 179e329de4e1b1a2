// The range of a group is its smallest and largest weight.
#include <algorithm>
#include <limits>

#include "quant/observer.h"

namespace nibble {
namespace {

class MinMaxObserver final : public Observer {
 public:
  GroupRanges observe(const Tensor& weight, const QuantFormat& format) const override {
    const int64_t rows = weight.shape[0];
    const int64_t columns = weight.shape[1];
    const int64_t num_groups = format.num_groups(columns);
    const int64_t group_size = columns / num_groups;
    GroupRanges ranges;
    std::vector<float> row(static_cast<size_t>(columns));
    for (int64_t r = 0; r < rows; ++r) {
      to_float(weight.rows(r, r + 1), row.data());
      for (int64_t g = 0; g < num_groups; ++g) {
        const auto begin = row.begin() + g * group_size;
        const auto [low, high] = std::minmax_element(begin, begin + group_size);
        ranges.min.push_back(*low);
        ranges.max.push_back(*high);
      }
    }
    return ranges;
  }
};

}  // namespace

std::unique_ptr<Observer> make_minmax_observer() {
  return std::make_unique<MinMaxObserver>();
}

}  // namespace nibble
