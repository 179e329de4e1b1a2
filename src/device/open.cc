// Picks a backend: the only file that names one.
#include "device/cpu/cpu_device.h"
#include "device/cuda/cuda_device.h"
#include "device/device.h"
#include "device/ref/ref_device.h"

namespace nibble {

Result<std::unique_ptr<Device>> open_device(Backend backend, int num_threads) {
  switch (backend) {
    case Backend::kReference: return ref::open();
    case Backend::kAuto:
    case Backend::kCpu: return cpu::open(num_threads);
    case Backend::kCuda:
#ifdef NIBBLE_WITH_CUDA
      return cuda::open();
#else
      return Error{ErrorCode::kUnsupported,
                   "cuda: this program was built without CUDA; build it where nvcc is installed "
                   "(cmake --preset cuda), or use the CPU backend"};
#endif
  }
  return Error{ErrorCode::kInvalidArgument, "unknown backend"};
}

}  // namespace nibble
