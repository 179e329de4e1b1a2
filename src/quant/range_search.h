// The range of each group of a weight, by the search that device/quant_ops.h describes.
#pragma once

#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "device/quant_ops.h"
#include "quant/group_quant.h"

namespace nibble {

// |error|^2.4 over a grid of 100, and importance * |error|^3 over a grid of 20, 20 steps each.
RangeSearch power_search(DType weight_dtype);
RangeSearch importance_search();

// weight [rows, columns] F32, BF16 or F16; columns a multiple of the group size; finite values.
// shares [columns] as importance_shares() gives them, or empty where the search does not ask.
GroupRanges find_ranges(const RangeSearch& search, const Tensor& weight, const QuantFormat& format,
                        std::span<const float> shares, ThreadPool& pool);

// importance [columns] divided by its mean; all ones, with a warning, when it says nothing.
std::vector<float> importance_shares(std::span<const float> importance, int64_t columns);

}  // namespace nibble
