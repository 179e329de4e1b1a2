// A checkpoint's bfloat16 weights as float16, for activations of float16 on devices that hold
// copies of weights: GPUs before sm_80, which have no bfloat16, or where float16 is asked for.
// Products of like types have kernels of their own; of unlike ones only a slow one.
//
// Float16 holds every bfloat16 from 2^-14 to 65280 exactly. Smaller ones are rounded, to zero below
// 2^-25, which is counted; a finite larger one is an error (kUnsupported).
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <vector>

#include "base/thread_pool.h"
#include "model/weights.h"

namespace nibble {

// Linears, of which packed ones have their scales converted, and tensors of two dimensions or more;
// vectors (norms, gates) stay as they are. What linear() returns holds until the next call of it,
// what tensor() returns as long as this. One thread uses it.
class HalfWeights final : public WeightSource {
 public:
  explicit HalfWeights(const WeightSource& source) : source_(source) {}
  bool has(std::string_view name) const override { return source_.has(name); }
  Result<Tensor> tensor(std::string_view name, const Shape& expected) const override;
  Result<LinearWeight> linear(std::string_view name, int64_t out_features,
                              int64_t in_features) const override;
  // Values that became zero so far.
  int64_t lost() const { return lost_; }

 private:
  Status convert(std::string_view name, Tensor* tensor, std::vector<uint16_t>* to) const;

  const WeightSource& source_;
  mutable ThreadPool threads_;
  mutable std::deque<std::vector<uint16_t>> kept_;
  mutable std::vector<uint16_t> linear_;
  mutable std::atomic<int64_t> lost_ = 0;
};

}  // namespace nibble
