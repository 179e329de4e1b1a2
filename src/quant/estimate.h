// What a quantization would take, before it is done: exact for the size of the output, measured on
// this machine for the time.
#pragma once

#include "quant/pipeline.h"

namespace nibble {

struct QuantizeEstimate {
  int num_quantized = 0;
  int num_kept = 0;
  size_t source_bytes = 0;      // of tensors
  size_t output_bytes = 0;      // of tensors; exact
  size_t memory_bytes = 0;      // of the process at its peak
  size_t disk_bytes = 0;        // beside the output while it runs
  double flops_per_second = 0;  // of a matrix product here, now
  double seconds = 0;
};

// The same refusals as quantize_checkpoint().
Result<QuantizeEstimate> estimate_quantization(const fs::path& source,
                                               const QuantizeOptions& options);

}  // namespace nibble
