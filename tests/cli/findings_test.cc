// What `nibble doctor` concludes from the facts about a machine.
#include "cli/findings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace nibble::cli {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::Field;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr size_t kGiB = size_t{1} << 30;

// A machine without a GPU and without anything to say.
Machine plain() {
  Machine machine;
  machine.cpu = "some processor";
  machine.has_avx2 = true;
  machine.num_threads = machine.usable_threads = 8;
  machine.most_open_files = 1 << 20;
  machine.port = 8000;
  machine.built_with_cuda = true;
  return machine;
}

Machine with_gpu() {
  Machine machine = plain();
  machine.has_kernel_module = true;
  machine.pci_gpus = {"0000:01:00.0"};
  machine.nvidia.has_library = true;
  GpuFacts gpu;
  gpu.name = "NVIDIA H200";
  gpu.capability = 90;
  gpu.memory_total = 140 * kGiB;
  gpu.memory_used = kGiB / 2;
  gpu.pcie_generation = 5;
  gpu.pcie_lanes = gpu.most_pcie_lanes = 16;
  gpu.persistent = true;
  machine.nvidia.gpus = {gpu};
  return machine;
}

auto problem(const std::string& found, const std::string& fix) {
  return AllOf(Field(&Finding::is_problem, true), Field(&Finding::found, HasSubstr(found)),
               Field(&Finding::consequence, HasSubstr("on the CPU")),
               Field(&Finding::fix, HasSubstr(fix)));
}
auto note(const std::string& found, const std::string& consequence, const std::string& fix) {
  return AllOf(Field(&Finding::is_problem, false), Field(&Finding::found, HasSubstr(found)),
               Field(&Finding::consequence, HasSubstr(consequence)),
               Field(&Finding::fix, HasSubstr(fix)));
}

TEST(Findings, NoneWhereAllIsWell) {
  EXPECT_THAT(findings_of(plain()), IsEmpty());
  EXPECT_THAT(findings_of(with_gpu()), IsEmpty());
}

TEST(Findings, AGpuThatCannotBeUsedIsAProblemWithItsWayOut) {
  Machine no_driver = plain();
  no_driver.pci_gpus = {"0000:01:00.0"};
  EXPECT_THAT(findings_of(no_driver), ElementsAre(problem("slot 0000:01:00.0", "nvidia-driver")));

  Machine container = no_driver;
  container.has_kernel_module = true;
  EXPECT_THAT(findings_of(container), ElementsAre(problem("libraries are not here", "--gpus all")));

  Machine silent = container;
  silent.nvidia.has_library = true;
  silent.nvidia.error = 18;
  EXPECT_THAT(findings_of(silent), ElementsAre(problem("NVML error 18", "reboot")));
  silent.nvidia.error = 0;
  EXPECT_THAT(findings_of(silent), ElementsAre(problem("shows no GPU", "--gpus all")));

  Machine without_cuda = with_gpu();
  without_cuda.built_with_cuda = false;
  EXPECT_THAT(findings_of(without_cuda), ElementsAre(problem("without CUDA", "make build")));

  Machine old_driver = with_gpu();
  old_driver.gpu_error = "cuda: driver for CUDA 12.0, built with 13.0; update the driver";
  EXPECT_THAT(findings_of(old_driver), ElementsAre(problem("update the driver", "")));
}

TEST(Findings, WhatMakesAGpuLessThanItIsSoldAs) {
  Machine shared = with_gpu();
  shared.nvidia.gpus[0].memory_used = 100 * kGiB;
  shared.nvidia.gpus[0].processes = {{4711, 99 * kGiB, "python3"}, {4712, 0, ""}};
  EXPECT_THAT(findings_of(shared), ElementsAre(note("by pid 4711 (python3) 99.0 GiB, pid 4712",
                                                    "40.0 GiB of 140.0 GiB", "stop it")));
  Machine narrow = with_gpu();
  narrow.nvidia.gpus[0].pcie_lanes = 1;
  EXPECT_THAT(findings_of(narrow),
              ElementsAre(note("1 of 16 PCIe lanes", "take 5 s to load at best, not 0", "slot")));
  Machine old = with_gpu();
  old.nvidia.gpus[0].capability = 75;
  old.nvidia.gpus[0].persistent = false;
  EXPECT_THAT(findings_of(old), ElementsAre(note("7.5", "float16", ""),
                                            note("persistence", "each start", "nvidia-smi -pm 1")));
}

TEST(Findings, SeveralGpusAndThoseTooOld) {
  Machine two = with_gpu();
  two.nvidia.gpus.push_back(two.nvidia.gpus[0]);
  EXPECT_THAT(findings_of(two), ElementsAre(note("2 GPUs", "one of them", "CUDA_VISIBLE_DEVICES")));
  two.nvidia.gpus[1].capability = 61;
  EXPECT_THAT(findings_of(two), ElementsAre(note("6.1", "no kernels", "7.0")));
  Machine old = with_gpu();
  old.nvidia.gpus[0].capability = 61;
  ASSERT_EQ(findings_of(old).size(), 1u);
  EXPECT_TRUE(findings_of(old)[0].is_problem);
}

TEST(Findings, LimitsOfTheHost) {
  Machine limited = plain();
  limited.has_avx2 = false;
  limited.usable_threads = 2;
  limited.limits.memory_is_limit = true;
  limited.limits.memory.total = 4 * kGiB;
  limited.most_open_files = 1024;
  limited.port_holder = "pid 99 (python3)";
  EXPECT_THAT(
      findings_of(limited),
      ElementsAre(note("no AVX2", "slower", ""), note("2 of 8 threads", "longer", "--cpus"),
                  note("4.0 GiB of memory", "ends the process", "--memory"),
                  note("1024 open files", "connections", "ulimit"),
                  note("pid 99 (python3) listens on port 8000", "will not start", "--port 8001")));
  limited.port = 65535;
  EXPECT_THAT(findings_of(limited).back().fix, HasSubstr("--port 65534"));
}

TEST(Findings, ProblemsComeFirst) {
  Machine machine = plain();
  machine.port_holder = "pid 99 (python3)";
  machine.pci_gpus = {"0000:01:00.0"};
  const std::vector<Finding> findings = findings_of(machine);
  ASSERT_EQ(findings.size(), 2u);
  EXPECT_TRUE(findings[0].is_problem);
  EXPECT_FALSE(findings[1].is_problem);
}

}  // namespace
}  // namespace nibble::cli
