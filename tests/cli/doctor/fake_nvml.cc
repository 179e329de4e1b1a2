// A management library with two GPUs: one shared, in a narrow slot; one that tells little.
#include <cstdio>
#include <cstring>

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
constexpr int kOk = 0;
constexpr int kNotSupported = 3;
constexpr unsigned long long kGiB = 1ull << 30;
int gpus[2];  // handles are their addresses

bool is_first(const void* gpu) {
  return gpu == &gpus[0];
}

}  // namespace

extern "C" {
int nvmlInit_v2() {
  return kOk;
}
int nvmlShutdown() {
  return kOk;
}
int nvmlSystemGetDriverVersion(char* version, unsigned bytes) {
  std::snprintf(version, bytes, "550.54.15");
  return kOk;
}
int nvmlSystemGetCudaDriverVersion_v2(int* version) {
  *version = 12040;
  return kOk;
}
int nvmlDeviceGetCount_v2(unsigned* count) {
  *count = 2;
  return kOk;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** gpu) {
  *gpu = &gpus[index];
  return kOk;
}
int nvmlDeviceGetHandleByPciBusId_v2(const char* bus_id, void** gpu) {
  *gpu = &gpus[0];
  return std::strcmp(bus_id, "00000000:01:00.0") == 0 ? kOk : kNotSupported;
}
int nvmlDeviceGetName(void* gpu, char* name, unsigned bytes) {
  std::snprintf(name, bytes, is_first(gpu) ? "Tesla V100-SXM2-32GB" : "Quadro K620");
  return kOk;
}
int nvmlDeviceGetPciInfo_v3(void* gpu, PciInfo* pci) {
  std::snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:0%d:00.0", is_first(gpu) ? 1 : 2);
  return kOk;
}
int nvmlDeviceGetCudaComputeCapability(void* gpu, int* major, int* minor) {
  *major = is_first(gpu) ? 7 : 5;
  *minor = 0;
  return kOk;
}
int nvmlDeviceGetMemoryInfo(void* gpu, Memory* memory) {
  *memory = is_first(gpu) ? Memory{32 * kGiB, 20 * kGiB, 12 * kGiB} : Memory{2 * kGiB, 2 * kGiB, 0};
  return kOk;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void* gpu, unsigned* count, Process* processes) {
  if (!is_first(gpu)) return kNotSupported;
  *count = 1;
  processes[0] = {1, 11 * kGiB, 0, 0};
  return kOk;
}
int nvmlDeviceGetMaxPcieLinkGeneration(void* gpu, unsigned* generation) {
  *generation = 3;
  return is_first(gpu) ? kOk : kNotSupported;
}
int nvmlDeviceGetCurrPcieLinkWidth(void* gpu, unsigned* lanes) {
  *lanes = 4;
  return is_first(gpu) ? kOk : kNotSupported;
}
int nvmlDeviceGetMaxPcieLinkWidth(void* gpu, unsigned* lanes) {
  *lanes = 16;
  return is_first(gpu) ? kOk : kNotSupported;
}
int nvmlDeviceGetPersistenceMode(void* gpu, int* mode) {
  *mode = 0;
  return is_first(gpu) ? kOk : kNotSupported;
}
}
