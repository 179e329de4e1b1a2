// A handful of functions by dlopen. The structures are those of NVML's stable C interface
// (docs.nvidia.com/deploy/nvml-api): nvmlMemory_t and nvmlProcessInfo_t of version 3.
#include "device/cuda/nvml.h"

#include <dlfcn.h>

namespace nibble::cuda {
namespace {

struct Memory {
  unsigned long long total, free, used;
};
struct Process {
  unsigned pid;
  unsigned long long used;
  unsigned gpu_instance, compute_instance;
};
constexpr unsigned long long kUnknown = ~0ull;

}  // namespace

struct Nvml::Library {
  void* handle = nullptr;
  int (*init)() = nullptr;
  int (*shutdown)() = nullptr;
  int (*by_bus_id)(const char*, void**) = nullptr;
  int (*memory)(void*, Memory*) = nullptr;
  int (*processes)(void*, unsigned*, Process*) = nullptr;

  bool load() {
    handle = ::dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) return false;
    const auto bind = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(::dlsym(handle, name));
      return function != nullptr;
    };
    return bind(init, "nvmlInit_v2") && bind(shutdown, "nvmlShutdown") &&
           bind(by_bus_id, "nvmlDeviceGetHandleByPciBusId_v2") &&
           bind(memory, "nvmlDeviceGetMemoryInfo") &&
           bind(processes, "nvmlDeviceGetComputeRunningProcesses_v3") && init() == 0;
  }
  ~Library() {
    if (handle != nullptr) ::dlclose(handle);
  }
};

Nvml::Nvml(const std::string& pci_bus_id) : library_(new Library) {
  if (library_->load() && library_->by_bus_id(pci_bus_id.c_str(), &gpu_) != 0) gpu_ = nullptr;
}

Nvml::~Nvml() {
  delete library_;
}

size_t Nvml::used() const {
  Memory memory{};
  if (gpu_ == nullptr || library_->memory(gpu_, &memory) != 0) return 0;
  return memory.used;
}

std::vector<GpuProcess> Nvml::processes() const {
  Process found[64] = {};
  unsigned count = 64;
  std::vector<GpuProcess> processes;
  if (gpu_ == nullptr || library_->processes(gpu_, &count, found) != 0) return processes;
  for (unsigned i = 0; i < count; ++i)
    processes.push_back({found[i].pid, found[i].used == kUnknown ? 0 : size_t{found[i].used}});
  return processes;
}

}  // namespace nibble::cuda
