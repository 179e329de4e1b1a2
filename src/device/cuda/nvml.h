// What NVIDIA's management library knows about a GPU that the CUDA runtime does not: memory in use
// before a context exists, and by whom. Loaded at run time; without it every answer is "unknown".
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace nibble::cuda {

struct GpuProcess {
  unsigned pid = 0;
  size_t bytes = 0;  // 0: the driver does not tell
};

// Any thread. `pci_bus_id` as cudaDeviceGetPCIBusId() writes it.
class Nvml {
 public:
  explicit Nvml(const std::string& pci_bus_id);
  ~Nvml();
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  // Bytes in use on the GPU by everyone; 0 if unknown.
  size_t used() const;
  std::vector<GpuProcess> processes() const;

 private:
  struct Library;
  Library* library_ = nullptr;
  void* gpu_ = nullptr;
};

}  // namespace nibble::cuda
