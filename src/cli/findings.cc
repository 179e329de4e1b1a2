// One function for each part of a machine; what a finding says is for people who have never built a
// server.
#include "cli/findings.h"

#include <algorithm>

#include "base/format.h"
#include "net/http_options.h"

namespace nibble::cli {
namespace {

constexpr size_t kGiB = size_t{1} << 30;
constexpr size_t kDriverBytes = kGiB;  // that a driver may hold of a GPU nobody uses

// 10^9 bytes a second of a PCIe lane, one direction, by generation from 1.
constexpr double kLaneRates[] = {0.25, 0.5, 0.985, 1.969, 3.938, 7.563};

constexpr const char* kOnCpu = "nibble computes on the CPU";

void of_driver(const Machine& machine, std::vector<Finding>* out) {
  const GpuInventory& nvidia = machine.nvidia;
  const bool has_gpu =
      machine.has_kernel_module || !machine.pci_gpus.empty() || !nvidia.gpus.empty();
  if (!has_gpu) return;
  if (!machine.built_with_cuda) {
    out->push_back({true, "there is an NVIDIA GPU, and this program was built without CUDA", kOnCpu,
                    "build it where nvcc is installed: make build"});
    return;
  }
  if (!nvidia.gpus.empty()) return;
  if (nvidia.has_library) {
    out->push_back({true,
                    nvidia.error == 0
                        ? std::string("the NVIDIA driver shows no GPU")
                        : format("the NVIDIA driver does not answer (NVML error {})", nvidia.error),
                    kOnCpu,
                    "in a container: start it with --gpus all; else see nvidia-smi and dmesg, and "
                    "reboot after a driver update"});
  } else if (machine.has_kernel_module) {
    out->push_back({true, "the NVIDIA driver is loaded, its libraries are not here", kOnCpu,
                    "in a container: install nvidia-container-toolkit on the host and start with "
                    "--gpus all; else install the driver's libraries (libcuda1, libnvidia-ml1)"});
  } else {
    out->push_back({true,
                    format("an NVIDIA GPU in PCI slot {}, and no driver", machine.pci_gpus[0]),
                    kOnCpu, "install the NVIDIA driver (nvidia-driver), reboot"});
  }
}

std::string holders(const GpuFacts& gpu) {
  std::string text;
  for (const GpuProcess& process : gpu.processes) {
    text += format("{}pid {}", text.empty() ? "" : ", ", process.pid);
    if (!process.name.empty()) text += format(" ({})", process.name);
    if (process.bytes > 0) text += " " + format_bytes(process.bytes);
  }
  return text;
}

// New enough to have kernels; 0 where the driver does not tell.
bool is_usable(const GpuFacts& gpu) {
  return gpu.capability == 0 || gpu.capability >= 70;
}
int64_t num_usable(const Machine& machine) {
  return std::count_if(machine.nvidia.gpus.begin(), machine.nvidia.gpus.end(), is_usable);
}

void of_gpu(const Machine& machine, size_t index, std::vector<Finding>* out) {
  const GpuFacts& gpu = machine.nvidia.gpus[index];
  const std::string name = format("GPU {} ({})", index, gpu.name);
  if (!is_usable(gpu)) {
    out->push_back(
        {num_usable(machine) == 0,
         format("{} has compute capability {}.{}", name, gpu.capability / 10, gpu.capability % 10),
         "nibble has no kernels for it", "use a GPU of 7.0 (V100) or later"});
    return;
  }
  if (gpu.memory_used > kDriverBytes || !gpu.processes.empty()) {
    const std::string who = holders(gpu);
    out->push_back({false,
                    format("{}: {} in use{}", name, format_bytes(gpu.memory_used),
                           who.empty() ? "" : " by " + who),
                    format("{} of {} are left for a model", format_bytes(gpu.memory_free()),
                           format_bytes(gpu.memory_total)),
                    who.empty() ? "see nvidia-smi" : "stop it if the model needs the room"});
  }
  if (gpu.pcie_lanes > 0 && gpu.pcie_lanes < gpu.most_pcie_lanes && gpu.pcie_generation >= 1 &&
      gpu.pcie_generation <= 6) {
    const double rate = kLaneRates[gpu.pcie_generation - 1];
    const auto seconds = [&](int lanes) { return 20 * 1.073741824 / (rate * lanes); };
    out->push_back({false,
                    format("{}: {} of {} PCIe lanes", name, gpu.pcie_lanes, gpu.most_pcie_lanes),
                    format("20 GiB of weights take {:.0f} s to load at best, not {:.0f}",
                           seconds(gpu.pcie_lanes), seconds(gpu.most_pcie_lanes)),
                    "put it into a wider slot, or without a riser"});
  }
  if (gpu.capability != 0 && gpu.capability < 80)
    out->push_back({false,
                    format("{} has compute capability {}.{}, which has no bfloat16", name,
                           gpu.capability / 10, gpu.capability % 10),
                    "models are computed in float16; weights too small for it become zero, and "
                    "are counted at load",
                    ""});
  if (gpu.persistent == false)
    out->push_back({false, format("{}: persistence mode is off", name),
                    "the driver is loaded anew for each start, a second or more",
                    "sudo nvidia-smi -pm 1"});
}

void of_host(const Machine& machine, std::vector<Finding>* out) {
  if (machine.is_x86 && !machine.cpu.empty() && !machine.has_avx2)
    out->push_back({false, "this processor has no AVX2",
                    "the CPU backend takes its narrow loops, several times slower",
                    "use a GPU, or a processor of 2013 or later"});
  if (machine.usable_threads < machine.num_threads)
    out->push_back({false,
                    format("a container or service allows {} of {} threads", machine.usable_threads,
                           machine.num_threads),
                    "what runs on the CPU takes as much longer",
                    "raise its limit (docker run --cpus, CPUQuota=)"});
  if (machine.limits.memory_is_limit)
    out->push_back({false,
                    format("a container or service allows {} of memory",
                           format_bytes(machine.limits.memory.total)),
                    "beyond it the kernel ends the process, whatever the machine has",
                    "raise it (docker run --memory, MemoryMax=)"});
  const int connections = HttpFlags{}.max_connections;
  if (machine.most_open_files > 0 && machine.most_open_files < static_cast<size_t>(connections))
    out->push_back({false, format("at most {} open files", machine.most_open_files),
                    format("`nibble serve` takes fewer connections than that, not {}", connections),
                    format("ulimit -Hn {} (LimitNOFILE= in a unit)", 2 * connections)});
  if (!machine.port_holder.empty())
    out->push_back({false, format("{} listens on port {}", machine.port_holder, machine.port),
                    "`nibble serve` will not start there",
                    format("stop it, or nibble serve --port {}",
                           machine.port < 65535 ? machine.port + 1 : machine.port - 1)});
}

}  // namespace

std::vector<Finding> findings_of(const Machine& machine) {
  std::vector<Finding> out;
  of_driver(machine, &out);
  if (!machine.gpu_error.empty()) out.push_back({true, machine.gpu_error, kOnCpu, ""});
  for (size_t i = 0; i < machine.nvidia.gpus.size(); ++i) of_gpu(machine, i, &out);
  if (num_usable(machine) > 1)
    out.push_back({false, format("{} GPUs", num_usable(machine)), "nibble computes on one of them",
                   "choose it: CUDA_VISIBLE_DEVICES=1 nibble serve ..."});
  of_host(machine, &out);
  std::stable_sort(out.begin(), out.end(), [](const Finding& a, const Finding& b) {
    return a.is_problem && !b.is_problem;
  });
  return out;
}

}  // namespace nibble::cli
