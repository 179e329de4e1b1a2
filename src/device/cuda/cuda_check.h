// CUDA calls that must not fail. After startup an error means that the device's memory can no
// longer be trusted: print the call, the error and the place, then abort.
#pragma once

#include <cuda_runtime.h>

namespace nibble::cuda {

[[noreturn]] void fail(cudaError_t error, const char* call, const char* file, int line);

}  // namespace nibble::cuda

#define NB_CUDA(call)                                                 \
  do {                                                                \
    const cudaError_t nb_cuda_error = (call);                         \
    if (nb_cuda_error != cudaSuccess)                                 \
      ::nibble::cuda::fail(nb_cuda_error, #call, __FILE__, __LINE__); \
  } while (false)

// After each kernel launch: a bad configuration is reported here, a fault inside the kernel at the
// next synchronisation.
#define NB_CUDA_LAUNCHED() NB_CUDA(cudaGetLastError())
