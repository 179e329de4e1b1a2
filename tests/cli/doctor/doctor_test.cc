// `nibble doctor` and the GPUs it lists, over the library of fake_nvml.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/json.h"
#include "cli/command.h"
#include "device/nvml.h"
#include "support/printed.h"

namespace nibble {
namespace {

using testing::HasSubstr;

constexpr size_t kGiB = size_t{1} << 30;

TEST(Nvml, ListsGpusWithWhatTheDriverTells) {
  const GpuInventory inventory = list_gpus();
  EXPECT_TRUE(inventory.has_library);
  EXPECT_EQ(inventory.error, 0);
  EXPECT_EQ(inventory.driver, "550.54.15");
  EXPECT_EQ(inventory.cuda, 12040);
  ASSERT_EQ(inventory.gpus.size(), 2u);
  const GpuFacts& first = inventory.gpus[0];
  EXPECT_EQ(first.name, "Tesla V100-SXM2-32GB");
  EXPECT_EQ(first.pci_bus_id, "00000000:01:00.0");
  EXPECT_EQ(first.capability, 70);
  EXPECT_EQ(first.memory_total, 32 * kGiB);
  EXPECT_EQ(first.memory_used, 12 * kGiB);
  EXPECT_EQ(first.pcie_generation, 3);
  EXPECT_EQ(first.pcie_lanes, 4);
  EXPECT_EQ(first.most_pcie_lanes, 16);
  EXPECT_EQ(first.persistent, false);
  ASSERT_EQ(first.processes.size(), 1u);
  EXPECT_EQ(first.processes[0].pid, 1u);
  EXPECT_EQ(first.processes[0].bytes, 11 * kGiB);
  const GpuFacts& second = inventory.gpus[1];
  EXPECT_EQ(second.capability, 50);
  EXPECT_EQ(second.pcie_lanes, 0);
  EXPECT_EQ(second.persistent, std::nullopt);
  EXPECT_TRUE(second.processes.empty());
}

TEST(Nvml, FindsAGpuByItsPciBusId) {
  const Nvml known("00000000:01:00.0");
  EXPECT_EQ(known.used(), 12 * kGiB);
  EXPECT_EQ(known.processes().size(), 1u);
  const Nvml unknown("00000000:09:00.0");
  EXPECT_EQ(unknown.used(), 0u);
  EXPECT_TRUE(unknown.processes().empty());
}

TEST(Doctor, NamesEachGpuAndWhatIsWrongWithIt) {
  const test::Printed printed = test::call(cli::doctor, {});
  // Where there is no real GPU, opening the listed one is the problem.
  EXPECT_EQ(printed.exit, printed.out.find("problem ") == std::string::npos ? 0 : 4);
  EXPECT_THAT(printed.out, HasSubstr("GPU 0     Tesla V100-SXM2-32GB, 32.0 GiB, 20.0 GiB free, "
                                     "compute capability 7.0,\n          PCIe 3 x4\n"));
  EXPECT_THAT(printed.out, HasSubstr("driver    550.54.15, for CUDA up to 12.4\n"));
  EXPECT_THAT(printed.out, HasSubstr("note      GPU 1 (Quadro K620) has compute capability 5.0\n"
                                     "  so      nibble has no kernels for it\n"
                                     "  fix     use a GPU of 7.0 (V100) or later\n"));
  EXPECT_THAT(printed.out, HasSubstr("12.0 GiB in use by pid 1 ("));
  EXPECT_THAT(printed.out, HasSubstr("  so      20.0 GiB of 32.0 GiB are left for a model\n"));
  EXPECT_THAT(printed.out,
              HasSubstr("  so      20 GiB of weights take 5 s to load at best, not 1\n"));
  EXPECT_EQ(printed.err, "");
  size_t begin = 0;
  for (size_t end; (end = printed.out.find('\n', begin)) != std::string::npos; begin = end + 1)
    EXPECT_LE(end - begin, 80u) << printed.out.substr(begin, end - begin);
}

TEST(Doctor, SaysTheSameInJson) {
  const test::Printed printed = test::call(cli::doctor, {"--json"});
  const Result<Json> json = parse_json(printed.out, "doctor");
  ASSERT_TRUE(json) << json.error().message;
  ASSERT_EQ((*json)["gpus"].size(), 2u);
  EXPECT_EQ((*json)["gpus"][0]["compute_capability"], 70);
  EXPECT_EQ((*json)["gpus"][0]["processes"][0]["pid"], 1);
  EXPECT_GE((*json)["findings"].size(), 4u);
  EXPECT_EQ(printed.exit, (*json)["findings"][0]["level"] == "problem" ? 4 : 0);
}

TEST(Doctor, RefusesAPortThatIsNone) {
  const test::Printed printed = test::call(cli::doctor, {"--port", "70000"});
  EXPECT_EQ(printed.exit, 2);
  EXPECT_THAT(printed.err, HasSubstr("70000"));
}

}  // namespace
}  // namespace nibble
