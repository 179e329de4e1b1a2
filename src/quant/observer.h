// Observers choose the range of each group of a weight: names for the searches of range_search.h.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/thread_pool.h"
#include "quant/range_search.h"

namespace nibble {

class Observer {
 public:
  enum class Kind { kMinMax, kMse, kImatrixMse };
  explicit Observer(Kind kind) : kind_(kind) {}

  // weight [rows, columns] F32, BF16 or F16; columns a multiple of the group size; finite values.
  // importance [columns]: mean squared input of each column, or empty when it is not known.
  GroupRanges observe(const Tensor& weight, const QuantFormat& format,
                      std::span<const float> importance, ThreadPool& pool) const;
  // The same as a search, and what it asks for of the importance: for QuantOps.
  RangeSearch range_search(DType weight_dtype) const;
  std::vector<float> shares(std::span<const float> importance, int64_t columns) const;

  // Whether the importance counts, which takes calibration data.
  bool needs_importance() const { return kind_ == Kind::kImatrixMse; }

 private:
  Kind kind_;
};

// "memoryless_minmax", "minmax", "static_minmax", "mse", "memoryless_mse",
// "imatrix_mse". On a single weight the ones with memory equal their memoryless twins. Unknown
// names list the known ones, nearest first.
Result<Observer> make_observer(const std::string& name);
std::span<const std::string_view> known_observers();

}  // namespace nibble
