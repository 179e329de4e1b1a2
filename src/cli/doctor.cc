// nibble doctor: what this machine offers, what is wrong with it, what that means, what to do.
#include <cstdio>

#include "base/format.h"
#include "base/json.h"
#include "base/text.h"
#include "cli/command.h"
#include "cli/findings.h"
#include "cli/machine.h"

namespace nibble::cli {
namespace {

constexpr int kExitProblem = 4;  // validation failed
constexpr size_t kWidth = 80;
constexpr size_t kIndent = 10;

struct DoctorFlags {
  int port = 8000;
  bool json = false;

  template <class V>
  void visit(V& v) {
    v.option("port", &port, "that a server would listen on", {.low = 1, .high = 65535});
    v.option("json", &json, "print JSON");
  }
};

// `text` at column kIndent; `head` before its first line.
void print_line(std::string_view head, std::string_view text) {
  std::printf("%s%s\n", format("{:<{}}", head, kIndent).c_str(),
              wrapped(text, kWidth - kIndent, kIndent).c_str());
}

std::string describe(const GpuFacts& gpu) {
  std::string text = gpu.name;
  if (gpu.memory_total > 0)
    text +=
        format(", {}, {} free", format_bytes(gpu.memory_total), format_bytes(gpu.memory_free()));
  if (gpu.capability > 0)
    text += format(", compute capability {}.{}", gpu.capability / 10, gpu.capability % 10);
  if (gpu.pcie_lanes > 0) text += format(", PCIe {} x{}", gpu.pcie_generation, gpu.pcie_lanes);
  return text;
}

std::string describe_cpu(const Machine& machine) {
  std::string text = machine.cpu.empty() ? "unknown" : machine.cpu;
  text += format(", {} threads", machine.num_threads);
  if (machine.has_avx512) {
    text += ", AVX-512";
  } else if (machine.has_avx2) {
    text += ", AVX2";
  }
  return text;
}

void print(const Machine& machine, const std::vector<Finding>& findings) {
  print_line("CPU", describe_cpu(machine));
  print_line("memory", format("{}, {} free", format_bytes(machine.limits.memory.total),
                              format_bytes(machine.limits.memory.free)));
  const GpuInventory& nvidia = machine.nvidia;
  if (nvidia.gpus.empty()) print_line("GPU", "none that can be used: nibble computes on the CPU");
  for (size_t i = 0; i < nvidia.gpus.size(); ++i)
    print_line(format("GPU {}", i), describe(nvidia.gpus[i]));
  if (!nvidia.driver.empty())
    print_line("driver", format("{}, for CUDA up to {}.{}", nvidia.driver, nvidia.cuda / 1000,
                                nvidia.cuda % 1000 / 10));
  if (!machine.gpu.empty())
    print_line("opened", format("{}, in {:.1f} s", machine.gpu, machine.gpu_seconds));
  int problems = 0;
  for (const Finding& finding : findings) {
    std::puts("");
    print_line(finding.is_problem ? "problem" : "note", finding.found);
    print_line("  so", finding.consequence);
    if (!finding.fix.empty()) print_line("  fix", finding.fix);
    problems += finding.is_problem;
  }
  std::printf("\n%s\n", problems == 0   ? "No problem found."
                        : problems == 1 ? "1 problem found."
                                        : format("{} problems found.", problems).c_str());
}

Json as_json(const Machine& machine, const std::vector<Finding>& findings) {
  Json gpus = Json::array();
  for (const GpuFacts& gpu : machine.nvidia.gpus) {
    Json processes = Json::array();
    for (const GpuProcess& process : gpu.processes)
      processes.push_back({{"pid", process.pid}, {"bytes", process.bytes}});
    gpus.push_back({{"name", gpu.name},
                    {"pci_bus_id", gpu.pci_bus_id},
                    {"compute_capability", gpu.capability},
                    {"memory_bytes", gpu.memory_total},
                    {"memory_used_bytes", gpu.memory_used},
                    {"pcie_generation", gpu.pcie_generation},
                    {"pcie_lanes", gpu.pcie_lanes},
                    {"processes", std::move(processes)}});
  }
  Json list = Json::array();
  for (const Finding& finding : findings)
    list.push_back({{"level", finding.is_problem ? "problem" : "note"},
                    {"found", finding.found},
                    {"consequence", finding.consequence},
                    {"fix", finding.fix}});
  return {{"cpu",
           {{"name", machine.cpu},
            {"threads", machine.num_threads},
            {"usable_threads", machine.usable_threads},
            {"avx2", machine.has_avx2},
            {"avx512", machine.has_avx512}}},
          {"memory_bytes", machine.limits.memory.total},
          {"memory_free_bytes", machine.limits.memory.free},
          {"driver", machine.nvidia.driver},
          {"gpus", std::move(gpus)},
          {"opened", machine.gpu},
          {"findings", std::move(list)}};
}

}  // namespace

int doctor(Arguments arguments) {
  DoctorFlags flags;
  OptionSet set("nibble doctor", "what this machine offers, and what is wrong with it");
  if (const Parsed parsed = parse(set, flags, arguments); !parsed.ok) return parsed.exit;
  Machine machine = look_at_machine("/", flags.port);
  open_gpu(&machine);
  const std::vector<Finding> findings = findings_of(machine);
  if (flags.json) {
    std::fputs(dump_json_pretty(as_json(machine, findings)).c_str(), stdout);
  } else {
    print(machine, findings);
  }
  return !findings.empty() && findings[0].is_problem ? kExitProblem : 0;
}

}  // namespace nibble::cli
