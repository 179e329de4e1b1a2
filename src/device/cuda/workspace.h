// Device memory that operations use inside one call; reserved once at startup, shared by all
// operations because they run one after the other on the compute stream. Plain C++17.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nibble::cuda {

struct Workspace {
  int num_sms = 0;              // multiprocessors of the GPU
  int compute_capability = 0;   // of the code that runs: code_capability()
  size_t max_shared_bytes = 0;  // dynamic shared memory one block may ask for

  // Scratch for one operation; contents do not survive it. Operations that need more than `size`
  // work in pieces.
  void* scratch = nullptr;
  size_t scratch_size = 0;

  // Activations that an operation has left in the form of fixed_rows.h for the product after it.
  void* fixed_rows = nullptr;
  size_t fixed_rows_size = 0;

  // Zero between operations: counters by which the last block of a group knows that it is last. Who
  // uses them leaves them zero.
  uint32_t* counters = nullptr;
  int64_t num_counters = 0;
};

}  // namespace nibble::cuda
