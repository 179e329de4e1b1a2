// Random arrivals, conversations, cancellations, preemptions, cache hits, moves between tiers and
// restarts against a fake device: everybody gets the tokens of a plain single-sequence loop.
// NIBBLE_SIMULATION_STEPS=1000000 runs the long form (`make soak`).
#include "engine/simulated_engine.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

namespace nibble {
namespace {

uint64_t number_from_environment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
}

TEST(SchedulerSimulation, AnyInterleavingGivesTheTokensOfEachSequenceAlone) {
  const uint64_t first = number_from_environment("NIBBLE_TEST_SEED", 20261124);
  const auto wanted = static_cast<int64_t>(number_from_environment("NIBBLE_SIMULATION_STEPS", 0));
  const uint64_t num_schedules = std::getenv("NIBBLE_TEST_SEED") != nullptr ? 1 : 1000;
  test::SimulationTotals totals;
  for (uint64_t round = 0; round < num_schedules || totals.steps < wanted; ++round) {
    const uint64_t seed = first + round;
    totals += test::Simulation(seed).run(150);
    if (HasFailure()) {
      std::printf("repeat: NIBBLE_TEST_SEED=%llu %s\n", static_cast<unsigned long long>(seed),
                  "engine_tests --gtest_filter='SchedulerSimulation.Any*'");
      return;
    }
  }
  std::printf(
      "%lld steps, %lld requests, %lld cancelled, %lld preemptions, %lld tokens from the device "
      "cache, %lld from tiers, %lld slots from disk, %lld restarts; longest wait %lld steps\n",
      static_cast<long long>(totals.steps), static_cast<long long>(totals.finished),
      static_cast<long long>(totals.cancelled), static_cast<long long>(totals.preemptions),
      static_cast<long long>(totals.device_hits), static_cast<long long>(totals.tier_hits),
      static_cast<long long>(totals.disk_loads), static_cast<long long>(totals.restarts),
      static_cast<long long>(totals.longest_wait));
  if (std::getenv("NIBBLE_TEST_SEED") != nullptr) return;  // one seed need not meet everything
  EXPECT_GT(totals.preemptions, 1000);
  EXPECT_GT(totals.device_hits, 10000);
  EXPECT_GT(totals.tier_hits, 1000);
  EXPECT_GT(totals.disk_loads, 1000);
  EXPECT_GT(totals.restarts, 10);
}

}  // namespace
}  // namespace nibble
