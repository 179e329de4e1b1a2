// When the loop guard speaks up, and when it keeps still.
#include "engine/loop_guard.h"

#include <gtest/gtest.h>

#include <random>

#include "support/random.h"

namespace nibble {
namespace {

// The number of tokens pushed until the guard says something other than kNone; 0: never.
int pushes_until(LoopGuard& guard, const std::vector<int32_t>& pattern, int limit,
                 LoopVerdict* verdict) {
  for (int i = 0; i < limit; ++i) {
    *verdict = guard.push(pattern[static_cast<size_t>(i) % pattern.size()]);
    if (*verdict != LoopVerdict::kNone) return i + 1;
  }
  return 0;
}

TEST(RepetitionDetection, CountsPatternsAsTheRequestAsks) {
  for (const int size : {1, 2, 3, 7}) {
    std::vector<int32_t> pattern;
    for (int i = 0; i < size; ++i) pattern.push_back(100 + i);
    LoopGuard guard(LoopGuardMode::kOff, {.max_pattern_size = 8, .min_count = 3}, 1.0f);
    for (int32_t i = 0; i < 20; ++i) EXPECT_EQ(guard.push(i), LoopVerdict::kNone);
    LoopVerdict verdict{};
    EXPECT_EQ(pushes_until(guard, pattern, 100, &verdict), 3 * size);
    EXPECT_EQ(verdict, LoopVerdict::kStop);
  }
  // Shorter than min_pattern_size is no pattern, unless its multiples are.
  LoopGuard guard(LoopGuardMode::kOff,
                  {.max_pattern_size = 4, .min_pattern_size = 3, .min_count = 2}, 1.0f);
  LoopVerdict verdict{};
  EXPECT_EQ(pushes_until(guard, {5, 6}, 100, &verdict), 8);
}

TEST(RepetitionDetection, FindsWhatAPlainComparisonFinds) {
  std::mt19937 random(test::test_seed());
  for (int round = 0; round < 200; ++round) {
    const int min = 1 + static_cast<int>(random() % 3);
    const int max = min + static_cast<int>(random() % 4);
    const int count = 2 + static_cast<int>(random() % 2);
    LoopGuard guard(LoopGuardMode::kOff,
                    {.max_pattern_size = max, .min_pattern_size = min, .min_count = count}, 1.0f);
    std::vector<int32_t> text;
    for (int i = 0; i < 60; ++i) {
      text.push_back(static_cast<int32_t>(random() % 3));
      bool expected = false;
      for (int p = min; p <= max; ++p) {
        const size_t need = static_cast<size_t>(p * count);
        if (text.size() < need) continue;
        bool all = true;
        for (size_t j = text.size() - need + static_cast<size_t>(p); j < text.size(); ++j)
          all &= text[j] == text[j - static_cast<size_t>(p)];
        expected |= all;
      }
      ASSERT_EQ(guard.push(text.back()) == LoopVerdict::kStop, expected);
    }
  }
}

TEST(LoopGuard, StopsLongCycles) {
  for (const int size : {1, 2, 10, 50, 64}) {
    std::vector<int32_t> pattern;
    for (int i = 0; i < size; ++i) pattern.push_back(i);
    LoopGuard guard(LoopGuardMode::kStop, {}, 1.0f);
    LoopVerdict verdict{};
    const int pushed = pushes_until(guard, pattern, 2000, &verdict);
    EXPECT_EQ(verdict, LoopVerdict::kStop) << size;
    EXPECT_GE(pushed, 96);
    EXPECT_LE(pushed, std::max(96, 4 * size)) << size;
  }
}

TEST(LoopGuard, KeepsStillForTextThatGoesOn) {
  std::mt19937 random(test::test_seed());
  LoopGuard guard(LoopGuardMode::kStop, {}, 1.0f);
  for (int i = 0; i < 20000; ++i) {
    // A table row: the same frame around new cells.
    const int column = i % 12;
    const auto token = static_cast<int32_t>(column < 8 ? column : 100 + random() % 50);
    ASSERT_EQ(guard.push(token), LoopVerdict::kNone) << i;
  }
  // A ruler.
  for (int i = 0; i < 80; ++i) ASSERT_EQ(guard.push(7), LoopVerdict::kNone) << i;
}

TEST(LoopGuard, NoticesOutputThatGoesNowhere) {
  std::mt19937 random(test::test_seed());
  LoopGuard guard(LoopGuardMode::kStop, {}, 1.0f);
  for (int i = 0; i < 2000; ++i) guard.push(static_cast<int32_t>(random() % 1000));
  int pushed = 0;
  while (guard.push(static_cast<int32_t>(random() % 4)) == LoopVerdict::kNone) ++pushed;
  EXPECT_GT(pushed, 200);
  EXPECT_LT(pushed, 260);
}

TEST(LoopGuard, PenalizesTwiceThenStops) {
  LoopGuard guard(LoopGuardMode::kPenalize, {}, 1.0f);
  EXPECT_FLOAT_EQ(guard.repetition_penalty(), 1.0f);
  LoopVerdict verdict{};
  pushes_until(guard, {1, 2, 3}, 1000, &verdict);
  EXPECT_EQ(verdict, LoopVerdict::kPenalize);
  EXPECT_FLOAT_EQ(guard.repetition_penalty(), 1.05f);
  EXPECT_GE(pushes_until(guard, {1, 2, 3}, 1000, &verdict), 90) << "the same loop counts once";
  EXPECT_EQ(verdict, LoopVerdict::kPenalize);
  EXPECT_FLOAT_EQ(guard.repetition_penalty(), 1.10f);
  pushes_until(guard, {1, 2, 3}, 1000, &verdict);
  EXPECT_EQ(verdict, LoopVerdict::kStop);
}

TEST(LoopGuard, NeverLowersTheRequestsPenalty) {
  LoopGuard guard(LoopGuardMode::kPenalize, {}, 1.07f);
  LoopVerdict verdict{};
  pushes_until(guard, {1}, 1000, &verdict);
  EXPECT_FLOAT_EQ(guard.repetition_penalty(), 1.10f);
  LoopGuard strict(LoopGuardMode::kPenalize, {}, 1.3f);
  pushes_until(strict, {1}, 1000, &verdict);
  EXPECT_EQ(verdict, LoopVerdict::kStop);
  EXPECT_FLOAT_EQ(strict.repetition_penalty(), 1.3f);
}

TEST(LoopGuard, ModesHaveNames) {
  EXPECT_EQ(parse_loop_guard_mode("penalize").value(), LoopGuardMode::kPenalize);
  EXPECT_FALSE(parse_loop_guard_mode("on"));
  EXPECT_TRUE(LoopGuard::idle(LoopGuardMode::kOff, {}));
  EXPECT_FALSE(LoopGuard::idle(LoopGuardMode::kOff, {.max_pattern_size = 3}));
}

}  // namespace
}  // namespace nibble
