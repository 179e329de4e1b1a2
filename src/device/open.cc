// Picks a backend: the only file that names one.
#include "base/format.h"
#include "base/log.h"
#include "device/backends.h"
#include "device/cpu/cpu_device.h"
#include "device/cuda/cuda_device.h"
#include "device/device.h"
#include "device/ref/ref_device.h"

namespace nibble {
namespace {

Result<std::unique_ptr<Device>> open_cuda() {
#ifdef NIBBLE_WITH_CUDA
  return cuda::open();
#else
  return Error{ErrorCode::kUnsupported,
               "cuda: this program was built without CUDA; build it where nvcc is installed "
               "(cmake --preset cuda), or use the CPU backend"};
#endif
}

Result<std::unique_ptr<Device>> open_best(int num_threads) {
#ifdef NIBBLE_WITH_CUDA
  if (Result<std::unique_ptr<Device>> gpu = open_cuda()) {
    return gpu;
  } else if (cuda::driver_present()) {
    log_warning("{}", gpu.error().message);
  }
#endif
  return cpu::open(num_threads);
}

}  // namespace

std::string_view built_backends() {
#ifdef NIBBLE_WITH_CUDA
  return "cpu, cuda";
#else
  return "cpu";
#endif
}

Result<Backend> parse_backend(const std::string& name) {
  if (name == "auto") return Backend::kAuto;
  if (name == "cpu") return Backend::kCpu;
  if (name == "cuda") return Backend::kCuda;
  if (name == "reference") return Backend::kReference;
  return make_error(ErrorCode::kInvalidArgument,
                    "--device {}: unknown; use auto, cpu, cuda or reference", name);
}

Result<std::unique_ptr<Device>> open_device(Backend backend, int num_threads) {
  switch (backend) {
    case Backend::kReference: return ref::open();
    case Backend::kAuto: return open_best(num_threads);
    case Backend::kCpu: return cpu::open(num_threads);
    case Backend::kCuda: return open_cuda();
  }
  return Error{ErrorCode::kInvalidArgument, "unknown backend"};
}

}  // namespace nibble
