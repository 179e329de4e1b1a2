// Reads /proc, /sys, resource limits and NVML.
#include "cli/machine.h"

#include <sys/resource.h>

#include <chrono>
#include <fstream>
#include <sstream>
#include <thread>

#include "device/backends.h"
#include "device/device.h"
#include "net/port_holder.h"

namespace nibble::cli {
namespace {

std::string first_line(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// /proc/cpuinfo: "model name : ...", "flags : fpu vme ...". Arm has other lines.
void read_cpu(const fs::path& root, Machine* machine) {
  std::ifstream file(root / "proc/cpuinfo");
  std::string line;
  machine->is_x86 = false;
  while (std::getline(file, line)) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::string value = line.substr(std::min(colon + 2, line.size()));
    if (line.starts_with("model name")) machine->cpu = value;
    if (!line.starts_with("flags")) continue;
    machine->is_x86 = true;
    std::istringstream flags(value);
    for (std::string flag; flags >> flag;) {
      machine->has_avx2 = machine->has_avx2 || flag == "avx2";
      machine->has_avx512 = machine->has_avx512 || flag == "avx512bw";
    }
    return;
  }
}

// Display and 3D controllers (class 03) of vendor 10de.
std::vector<std::string> nvidia_pci_devices(const fs::path& root) {
  std::vector<std::string> found;
  std::error_code ignored;
  for (const fs::directory_entry& device :
       fs::directory_iterator(root / "sys/bus/pci/devices", ignored))
    if (first_line(device.path() / "vendor") == "0x10de" &&
        first_line(device.path() / "class").starts_with("0x03"))
      found.push_back(device.path().filename().string());
  std::sort(found.begin(), found.end());
  return found;
}

}  // namespace

Machine look_at_machine(const fs::path& root, int port) {
  Machine machine;
  read_cpu(root, &machine);
  machine.limits = host_limits(root);
  machine.num_threads = static_cast<int>(std::thread::hardware_concurrency());
  machine.usable_threads = usable_threads(machine.num_threads, machine.limits);
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) machine.most_open_files = files.rlim_max;
  machine.port = port;
  machine.port_holder = port_holder(port);
  machine.built_with_cuda = built_backends().find("cuda") != std::string_view::npos;
  machine.has_kernel_module = fs::exists(root / "proc/driver/nvidia/version");
  machine.pci_gpus = nvidia_pci_devices(root);
  machine.nvidia = list_gpus();
  for (GpuFacts& gpu : machine.nvidia.gpus)
    for (GpuProcess& process : gpu.processes)
      process.name = first_line(root / "proc" / std::to_string(process.pid) / "comm");
  return machine;
}

void open_gpu(Machine* machine) {
  if (!machine->built_with_cuda || machine->nvidia.gpus.empty()) return;
  const auto start = std::chrono::steady_clock::now();
  const Result<std::unique_ptr<Device>> device = open_device(Backend::kCuda);
  machine->gpu_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (device) {
    machine->gpu = (*device)->description();
  } else {
    machine->gpu_error = device.error().message;
  }
}

}  // namespace nibble::cli
