// Where a CUDA error ends the process.
#include "device/cuda/cuda_check.h"

#include <cstdio>
#include <cstdlib>

namespace nibble::cuda {

void fail(cudaError_t error, const char* call, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: %s: %s (%s); the GPU's memory cannot be trusted, stopping\n", file,
               line, call, cudaGetErrorName(error), cudaGetErrorString(error));
  std::fflush(stderr);
  std::abort();
}

}  // namespace nibble::cuda
