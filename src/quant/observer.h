// Observers choose the range of each group of a weight. One file each, one row in observer.cc's
// table.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/thread_pool.h"
#include "quant/group_quant.h"

namespace nibble {

class Observer {
 public:
  virtual ~Observer() = default;
  // weight [rows, columns] F32, BF16 or F16; columns a multiple of the group size; finite values.
  // importance [columns]: mean squared input of each column, or empty when it is not known.
  virtual GroupRanges observe(const Tensor& weight, const QuantFormat& format,
                              std::span<const float> importance, ThreadPool& pool) const = 0;
  // Whether observe() looks at the importance, which takes calibration data.
  virtual bool needs_importance() const { return false; }
};

// "memoryless_minmax", "minmax", "static_minmax", "mse", "memoryless_mse",
// "imatrix_mse". On a single weight the ones with memory equal their memoryless twins. Unknown
// names list the known ones, nearest first.
Result<std::unique_ptr<Observer>> make_observer(const std::string& name);
std::span<const std::string_view> known_observers();

// The rows of the table.
std::unique_ptr<Observer> make_minmax_observer();
std::unique_ptr<Observer> make_mse_observer();
std::unique_ptr<Observer> make_imatrix_mse_observer();

}  // namespace nibble
