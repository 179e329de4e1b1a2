// What the tests of ops share: tensors that own their memory, and ragged batches.
#pragma once

#include <cmath>
#include <cstdlib>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "device/ops.h"
#include "support/random.h"

namespace nibble::test {

// A tensor with memory of its own; starts as zeros.
class HostTensor {
 public:
  HostTensor(DType dtype, Shape shape)
      : dtype_(dtype),
        shape_(shape),
        bytes_(static_cast<size_t>(shape.num_elements()) * dtype_size(dtype) + 1) {}
  HostTensor(DType dtype, Shape shape, const std::vector<float>& values)
      : HostTensor(dtype, shape) {
    NB_CHECK(static_cast<int64_t>(values.size()) == shape.num_elements(), "%zu values for %s",
             values.size(), shape.to_string().c_str());
    for (size_t i = 0; i < values.size(); ++i) {
      if (dtype == DType::kF32) view().as<float>()[i] = values[i];
      if (dtype == DType::kBF16) view().as<BFloat16>()[i] = BFloat16(values[i]);
      if (dtype == DType::kF16) view().as<Float16>()[i] = Float16(values[i]);
    }
  }
  Tensor view() const { return {const_cast<std::byte*>(bytes_.data()), dtype_, shape_}; }
  operator Tensor() const { return view(); }
  std::vector<float> floats() const {
    std::vector<float> values(static_cast<size_t>(shape_.num_elements()));
    to_float(view(), values.data());
    return values;
  }
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  DType dtype_;
  Shape shape_;
  std::vector<std::byte> bytes_;
};

// A ragged batch that owns its arrays. Sequence s holds `context[s]` tokens already, gets
// `counts[s]` new ones, uses state slot s and its own KV blocks, in order, unless changed.
class OwnedBatch {
 public:
  explicit OwnedBatch(std::vector<int32_t> counts, std::vector<int32_t> context = {},
                      bool fresh = true, int32_t block_size = 16)
      : context_(std::move(context)), block_size_(block_size) {
    context_.resize(counts.size());
    for (size_t s = 0; s < counts.size(); ++s) {
      query_start_.push_back(query_start_.back() + counts[s]);
      slots_.push_back(static_cast<int32_t>(s));
      fresh_.push_back(fresh && context_[s] == 0);
      max_blocks_ = std::max(max_blocks_, (context_[s] + counts[s] + block_size - 1) / block_size);
    }
    table_.resize(counts.size() * static_cast<size_t>(max_blocks_));
    std::iota(table_.begin(), table_.end(), 0);
  }
  std::vector<int32_t>& slots() { return slots_; }
  std::vector<int32_t>& table() { return table_; }
  int32_t num_blocks() const { return static_cast<int32_t>(table_.size()); }
  RaggedBatch view() const {
    return {.num_tokens = query_start_.back(),
            .num_seqs = static_cast<int32_t>(slots_.size()),
            .query_start = query_start_.data(),
            .context_len = context_.data(),
            .block_table = table_.data(),
            .max_blocks = max_blocks_,
            .block_size = block_size_,
            .state_slot = slots_.data(),
            .state_is_fresh = fresh_.data()};
  }

 private:
  std::vector<int32_t> context_;
  int32_t block_size_;
  std::vector<int32_t> query_start_ = {0};
  std::vector<int32_t> slots_;
  std::vector<uint8_t> fresh_;
  std::vector<int32_t> table_;
  int32_t max_blocks_ = 1;
};

inline std::vector<float> normal_values(std::mt19937& random, int64_t count, float scale = 1.0f) {
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

// The largest |a - b|; NaN when either holds one, infinity when the sizes differ.
inline float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return INFINITY;
  float largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const float difference = std::fabs(a[i] - b[i]);
    if (!(difference <= largest)) largest = difference;
  }
  return largest;
}

}  // namespace nibble::test
