// /health speaks for the engine, not for the thread that answers.
#include "server/heartbeat.h"

#include <gtest/gtest.h>

namespace nibble {
namespace {

using std::chrono::seconds;

EngineStats at(int64_t num_steps, int num_running) {
  EngineStats stats;
  stats.num_steps = num_steps;
  stats.num_running = num_running;
  return stats;
}

TEST(Heartbeat, AStepThatDoesNotEndIsDeath) {
  Heartbeat heart(seconds(60));
  const Heartbeat::Clock::time_point start;
  EXPECT_TRUE(heart.alive(at(5, 1), start));
  EXPECT_TRUE(heart.alive(at(5, 1), start + seconds(59)));
  EXPECT_FALSE(heart.alive(at(5, 1), start + seconds(60)));
  EXPECT_TRUE(heart.alive(at(6, 1), start + seconds(61)));  // it was only slow
}

TEST(Heartbeat, AnIdleEngineLives) {
  Heartbeat heart(seconds(60));
  const Heartbeat::Clock::time_point start;
  EXPECT_TRUE(heart.alive(at(5, 0), start));
  EXPECT_TRUE(heart.alive(at(5, 0), start + seconds(600)));
  EXPECT_TRUE(heart.alive(at(5, 1), start + seconds(601)));  // work began a second ago
  EXPECT_FALSE(heart.alive(at(5, 1), start + seconds(661)));
}

TEST(Heartbeat, LooksFarApartProveNothingWhileStepsEnd) {
  Heartbeat heart(seconds(60));
  const Heartbeat::Clock::time_point start;
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(heart.alive(at(i, 4), start + seconds(500 * i)));
}

}  // namespace
}  // namespace nibble
