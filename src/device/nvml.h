// What NVIDIA's management library (NVML) knows: GPUs whether this program can compute on them or
// not, memory in use before a context exists, and by whom. Loaded at run time; needs no CUDA. Where
// it is absent or does not tell, answers are empty.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

namespace nibble {

struct NvmlLibrary;

struct GpuProcess {
  unsigned pid = 0;
  size_t bytes = 0;  // 0: the driver does not tell
  std::string name;  // "" unless whoever asked has filled it in
};

// One GPU. Any thread. `pci_bus_id` as cudaDeviceGetPCIBusId() writes it.
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
  NvmlLibrary* library_ = nullptr;
  void* gpu_ = nullptr;
};

struct GpuFacts {
  std::string name;        // "NVIDIA H200"
  std::string pci_bus_id;  // "00000000:3B:00.0"
  int capability = 0;      // 90 for 9.0
  size_t memory_total = 0;
  size_t memory_used = 0;   // by everyone, the driver included
  int pcie_generation = 0;  // that the slot and the card can do; the link is slower while idle
  int pcie_lanes = 0;
  int most_pcie_lanes = 0;
  std::optional<bool> persistent;  // the driver stays loaded while nobody uses the GPU
  std::vector<GpuProcess> processes;

  size_t memory_free() const { return memory_total > memory_used ? memory_total - memory_used : 0; }
};

struct GpuInventory {
  bool has_library = false;
  int error = 0;       // of the library's start: 0, or its number
  std::string driver;  // "580.159.04"
  int cuda = 0;        // the newest CUDA that the driver runs: 13000 for 13.0
  std::vector<GpuFacts> gpus;
};
GpuInventory list_gpus();

}  // namespace nibble
