// Times the operations of a loaded model one by one, on its own weights: what `nibble bench
// kernels` prints.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/options.h"
#include "model/model.h"

namespace nibble {

struct KernelTimingOptions {
  std::vector<int32_t> tokens = {1, 16, 512};  // rows of a product
  std::vector<int32_t> batches = {1, 16};      // sequences of one token, for attention and states
  std::vector<int32_t> contexts = {4096};      // of each
  std::vector<int32_t> chunks = {512};         // tokens of one prompt
  DType kv_dtype = DType::kF32;
  int block_size = 16;
  int repeats = 20;
};

struct KernelTiming {
  std::string operation;  // "linear", "attention", "gated_delta_net"
  std::string what;       // "gate_proj W4 [17408, 5120]", "decode", "prefill"
  int32_t num_seqs = 0;   // 0 for products
  int32_t num_tokens = 0;
  int32_t context = 0;
  StepCost cost = {};  // of one call
  double seconds = 0;
};

// A timed run calls an operation on as many weights or caches, one after the other, as no cache
// holds together. Mixtures of experts are left out.
Result<std::vector<KernelTiming>> time_kernels(const Model& model, Device& device,
                                               const KernelTimingOptions& options);

}  // namespace nibble
