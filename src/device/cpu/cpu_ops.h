// The CPU operations that were worth making fast; everything else is inherited from the reference.
//
// Batch invariance: an output element is always the same sum in the same order, whatever the number
// of tokens, threads or neighbours in the batch. tests/device/cpu_ops_property_test.cc holds this
// bitwise.
#pragma once

#include "base/thread_pool.h"
#include "device/ref/ref_ops.h"

namespace nibble::cpu {

class CpuOps final : public ref::RefOps {
 public:
  explicit CpuOps(int num_threads) : pool_(num_threads) {}

  void linear(const Tensor& x, const LinearWeight& weight, const Tensor& out) override;
  void attention(const AttentionArgs& args, const RaggedBatch& batch) override;
  void gated_delta_net(const GatedDeltaNetArgs& args, const RaggedBatch& batch) override;

  // What attention() keeps per thread between calls.
  size_t attention_scratch_bytes(int32_t num_heads_per_kv_head, int32_t head_dim,
                                 int32_t max_context) const;
  ThreadPool& pool() { return pool_; }

 private:
  ThreadPool pool_;
};

}  // namespace nibble::cpu
