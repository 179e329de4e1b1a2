// The range of a group is its smallest and largest weight.
#include <algorithm>

#include "quant/observer.h"

namespace nibble {
namespace {

class MinMaxObserver final : public Observer {
 public:
  GroupRanges observe(const Tensor& weight, const QuantFormat& format, std::span<const float>,
                      ThreadPool& pool) const override {
    const int64_t columns = weight.shape[1];
    const int64_t num_groups = format.num_groups(columns);
    const int64_t group_size = columns / num_groups;
    GroupRanges ranges;
    ranges.min.resize(static_cast<size_t>(weight.shape[0] * num_groups));
    ranges.max.resize(ranges.min.size());
    pool.parallel_for(static_cast<size_t>(weight.shape[0]), 16, [&](size_t begin, size_t end) {
      std::vector<float> row(static_cast<size_t>(columns));
      for (size_t r = begin; r < end; ++r) {
        to_float(weight.rows(static_cast<int64_t>(r), static_cast<int64_t>(r) + 1), row.data());
        for (int64_t g = 0; g < num_groups; ++g) {
          const auto first = row.begin() + g * group_size;
          const auto [low, high] = std::minmax_element(first, first + group_size);
          const size_t at = r * static_cast<size_t>(num_groups) + static_cast<size_t>(g);
          ranges.min[at] = *low;
          ranges.max[at] = *high;
        }
      }
    });
    return ranges;
  }
};

}  // namespace

std::unique_ptr<Observer> make_minmax_observer() {
  return std::make_unique<MinMaxObserver>();
}

}  // namespace nibble
