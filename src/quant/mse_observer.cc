// Shrinks the min-max range in steps of 1 % up to 20 % and keeps, per group, the range with the
// smallest sum of |error|^2.4. Everything is rounded to the weight's dtype, the exponent included.
#include <algorithm>
#include <cmath>
#include <limits>

#include "quant/observer.h"

namespace nibble {
namespace {

constexpr int kGrid = 100;
constexpr int kSteps = 20;    // int(maxshrink 0.20 * grid)
constexpr int kPatience = 5;  // steps without any improvement in the whole weight
constexpr float kNorm = 2.4f;

float largest_finite(DType dtype) {
  switch (dtype) {
    case DType::kBF16: return 0x1.fep127f;
    case DType::kF16: return 65504.0f;
    default: return std::numeric_limits<float>::max();
  }
}

class MseObserver final : public Observer {
 public:
  GroupRanges observe(const Tensor& weight, const QuantFormat& format) const override {
    const DType dtype = weight.dtype;
    const int64_t columns = weight.shape[1];
    const int64_t num_groups = format.num_groups(columns);
    const int64_t group_size = columns / num_groups;
    const auto count = static_cast<size_t>(weight.shape[0] * num_groups);
    std::vector<float> values(static_cast<size_t>(weight.num_elements()));
    to_float(weight, values.data());
    const GroupRanges full = make_minmax_observer()->observe(weight, format);
    GroupRanges kept = full;
    std::vector<float> best(count, largest_finite(dtype));
    const float exponent = round_to(dtype, kNorm);

    int without_improvement = 0;
    for (int step = 0; step < kSteps; ++step) {
      const auto shrink = static_cast<float>(1.0 - static_cast<double>(step) / kGrid);
      bool improved = false;
      for (size_t g = 0; g < count; ++g) {
        const float low = round_to(dtype, full.min[g] * shrink);
        const float high = round_to(dtype, full.max[g] * shrink);
        float scale = 0;
        int8_t zero_point = 0;
        group_parameters(low, high, dtype, format, &scale, &zero_point);
        const float* group = values.data() + static_cast<int64_t>(g) * group_size;
        float sum = 0;
        for (int64_t i = 0; i < group_size; ++i) {
          const float q = fake_quantize_value(group[i], scale, zero_point, dtype, format);
          const float error = std::fabs(round_to(dtype, q - group[i]));
          sum += round_to(dtype, static_cast<float>(std::pow(static_cast<double>(error),
                                                             static_cast<double>(exponent))));
        }
        sum = round_to(dtype, sum);
        if (!(sum < best[g])) continue;
        best[g] = sum;
        kept.min[g] = low;
        kept.max[g] = high;
        improved = true;
      }
      without_improvement = improved ? 0 : without_improvement + 1;
      if (without_improvement >= kPatience) break;
    }
    return kept;
  }
};

}  // namespace

std::unique_ptr<Observer> make_mse_observer() {
  return std::make_unique<MseObserver>();
}

}  // namespace nibble
