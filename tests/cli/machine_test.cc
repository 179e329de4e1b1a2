// What `nibble doctor` reads of the kernel's files.
#include "cli/machine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "support/temp_dir.h"

namespace nibble::cli {
namespace {

class MachineFacts : public testing::Test {
 protected:
  void write(const std::string& path, const std::string& text) {
    fs::create_directories((dir_.path() / path).parent_path());
    std::ofstream(dir_.path() / path) << text;
  }
  Machine look() { return look_at_machine(dir_.path(), 8000); }
  test::TempDir dir_;
};

TEST_F(MachineFacts, TheProcessor) {
  write("proc/cpuinfo",
        "processor\t: 0\nmodel name\t: AMD EPYC 9654 96-Core Processor\n"
        "flags\t\t: fpu sse4_2 avx2 avx512f avx512bw\n\nprocessor\t: 1\nflags\t\t: fpu\n");
  const Machine machine = look();
  EXPECT_EQ(machine.cpu, "AMD EPYC 9654 96-Core Processor");
  EXPECT_TRUE(machine.is_x86);
  EXPECT_TRUE(machine.has_avx2);
  EXPECT_TRUE(machine.has_avx512);
  EXPECT_EQ(machine.port, 8000);
  EXPECT_GE(machine.num_threads, 1);
  EXPECT_GT(machine.most_open_files, 0u);
}

TEST_F(MachineFacts, AnArmProcessorLacksNoAvx) {
  write("proc/cpuinfo", "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\n");
  const Machine machine = look();
  EXPECT_FALSE(machine.is_x86);
  EXPECT_EQ(machine.cpu, "");
}

TEST_F(MachineFacts, GpusOnTheBusWithAndWithoutADriver) {
  EXPECT_TRUE(look().pci_gpus.empty());
  const auto device = [&](const std::string& slot, const std::string& vendor,
                          const std::string& kind) {
    write("sys/bus/pci/devices/" + slot + "/vendor", vendor + "\n");
    write("sys/bus/pci/devices/" + slot + "/class", kind + "\n");
  };
  device("0000:41:00.0", "0x10de", "0x030200");
  device("0000:01:00.0", "0x10de", "0x030000");
  device("0000:01:00.1", "0x10de", "0x040300");  // its sound
  device("0000:02:00.0", "0x1002", "0x030000");  // somebody else's
  EXPECT_THAT(look().pci_gpus, testing::ElementsAre("0000:01:00.0", "0000:41:00.0"));
  EXPECT_FALSE(look().has_kernel_module);
  write("proc/driver/nvidia/version", "NVRM version: 580\n");
  EXPECT_TRUE(look().has_kernel_module);
}

}  // namespace
}  // namespace nibble::cli
