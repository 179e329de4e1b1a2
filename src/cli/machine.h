// What `nibble doctor` looks at. Facts only; what follows from them is in findings.h.
#pragma once

#include <string>
#include <vector>

#include "base/file.h"
#include "base/host_limits.h"
#include "device/nvml.h"

namespace nibble::cli {

struct Machine {
  std::string cpu;     // "AMD EPYC 9654 96-Core Processor"; "" where the kernel does not tell
  bool is_x86 = true;  // of the two below
  bool has_avx2 = false;
  bool has_avx512 = false;
  int num_threads = 0;     // that the hardware runs at once, of those this process may run on
  int usable_threads = 0;  // of them, what a container's share of processor time pays for
  HostLimits limits;
  size_t most_open_files = 0;  // to which a process may raise its own limit
  int port = 0;
  std::string port_holder;  // "pid 1234 (python3)", "" if nobody visible listens there

  bool built_with_cuda = false;
  bool has_kernel_module = false;     // the NVIDIA driver's
  std::vector<std::string> pci_gpus;  // NVIDIA's: "0000:01:00.0"
  GpuInventory nvidia;                // with the names of its processes

  // Of open_gpu(): one of them is not empty where there was one to try.
  std::string gpu;  // "NVIDIA H200, 132 multiprocessors"
  std::string gpu_error;
  double gpu_seconds = 0;  // opening took
};

// `root` stands for / in tests.
Machine look_at_machine(const fs::path& root, int port);
// Opens the GPU as serving does, if this program holds code for one and the machine has one.
void open_gpu(Machine* machine);

}  // namespace nibble::cli
