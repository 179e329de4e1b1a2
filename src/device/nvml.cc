// A handful of functions by dlopen. The structures are those of NVML's stable C interface
// (docs.nvidia.com/deploy/nvml-api): nvmlMemory_t, nvmlPciInfo_t and, of version 3,
// nvmlProcessInfo_t.
#include "device/nvml.h"

#include <dlfcn.h>

namespace nibble {
namespace {

struct Memory {
  unsigned long long total, free, used;
};
struct Process {
  unsigned pid;
  unsigned long long used;
  unsigned gpu_instance, compute_instance;
};
struct PciInfo {
  char legacy_bus_id[16];
  unsigned domain, bus, device, device_id, subsystem_id;
  char bus_id[32];
};
constexpr unsigned long long kUnknown = ~0ull;
constexpr unsigned kNameBytes = 96;

}  // namespace

struct NvmlLibrary {
  void* handle = nullptr;
  int error = -1;  // of init()
  int (*init)() = nullptr;
  int (*shutdown)() = nullptr;
  int (*by_bus_id)(const char*, void**) = nullptr;
  int (*memory)(void*, Memory*) = nullptr;
  int (*processes)(void*, unsigned*, Process*) = nullptr;

  NvmlLibrary() {
    handle = ::dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) return;
    if (bind(init, "nvmlInit_v2") && bind(shutdown, "nvmlShutdown") &&
        bind(by_bus_id, "nvmlDeviceGetHandleByPciBusId_v2") &&
        bind(memory, "nvmlDeviceGetMemoryInfo") &&
        bind(processes, "nvmlDeviceGetComputeRunningProcesses_v3"))
      error = init();
  }
  ~NvmlLibrary() {
    if (error == 0) shutdown();
    if (handle != nullptr) ::dlclose(handle);
  }
  NvmlLibrary(const NvmlLibrary&) = delete;
  NvmlLibrary& operator=(const NvmlLibrary&) = delete;

  template <class Function>
  bool bind(Function& function, const char* name) const {
    function = reinterpret_cast<Function>(::dlsym(handle, name));
    return function != nullptr;
  }
  // Calls a function that not every version has; false if this one has not, or it fails.
  template <class... Args>
  bool ask(const char* name, Args... args) const {
    int (*function)(Args...) = nullptr;
    return bind(function, name) && function(args...) == 0;
  }

  size_t used_of(void* gpu) const {
    Memory found{};
    return gpu == nullptr || memory(gpu, &found) != 0 ? 0 : size_t{found.used};
  }
  std::vector<GpuProcess> processes_of(void* gpu) const {
    Process found[64] = {};
    unsigned count = 64;
    std::vector<GpuProcess> list;
    if (gpu == nullptr || processes(gpu, &count, found) != 0) return list;
    for (unsigned i = 0; i < count; ++i)
      list.push_back({found[i].pid, found[i].used == kUnknown ? 0 : size_t{found[i].used}, ""});
    return list;
  }
  GpuFacts facts_of(void* gpu) const {
    GpuFacts facts;
    char name[kNameBytes] = {};
    if (ask("nvmlDeviceGetName", gpu, &name[0], kNameBytes)) facts.name = name;
    PciInfo pci{};
    if (ask("nvmlDeviceGetPciInfo_v3", gpu, &pci)) facts.pci_bus_id = pci.bus_id;
    int major = 0;
    int minor = 0;
    if (ask("nvmlDeviceGetCudaComputeCapability", gpu, &major, &minor))
      facts.capability = 10 * major + minor;
    Memory found{};
    if (memory(gpu, &found) == 0) {
      facts.memory_total = found.total;
      facts.memory_used = found.used;
    }
    const auto number = [&](const char* function) {
      unsigned value = 0;
      return ask(function, gpu, &value) ? static_cast<int>(value) : 0;
    };
    facts.pcie_generation = number("nvmlDeviceGetMaxPcieLinkGeneration");
    facts.pcie_lanes = number("nvmlDeviceGetCurrPcieLinkWidth");
    facts.most_pcie_lanes = number("nvmlDeviceGetMaxPcieLinkWidth");
    int persistent = 0;
    if (ask("nvmlDeviceGetPersistenceMode", gpu, &persistent)) facts.persistent = persistent != 0;
    facts.processes = processes_of(gpu);
    return facts;
  }
};

Nvml::Nvml(const std::string& pci_bus_id) : library_(new NvmlLibrary) {
  if (library_->error == 0 && library_->by_bus_id(pci_bus_id.c_str(), &gpu_) != 0) gpu_ = nullptr;
}

Nvml::~Nvml() {
  delete library_;
}

size_t Nvml::used() const {
  return library_->used_of(gpu_);
}

std::vector<GpuProcess> Nvml::processes() const {
  return library_->processes_of(gpu_);
}

GpuInventory list_gpus() {
  const NvmlLibrary library;
  GpuInventory inventory;
  inventory.has_library = library.handle != nullptr;
  inventory.error = library.error;
  if (library.error != 0) return inventory;
  char version[kNameBytes] = {};
  if (library.ask("nvmlSystemGetDriverVersion", &version[0], kNameBytes))
    inventory.driver = version;
  library.ask("nvmlSystemGetCudaDriverVersion_v2", &inventory.cuda);
  unsigned count = 0;
  library.ask("nvmlDeviceGetCount_v2", &count);
  for (unsigned i = 0; i < count; ++i) {
    void* gpu = nullptr;
    if (library.ask("nvmlDeviceGetHandleByIndex_v2", i, &gpu))
      inventory.gpus.push_back(library.facts_of(gpu));
  }
  return inventory;
}

}  // namespace nibble
