// The engine thread from outside: the same greedy tokens alone, in a crowd, under preemption and
// any step budget; cancellation; admission.
#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>

#include "engine/engine.h"
#include "support/golden_file.h"

namespace nibble {
namespace {

class EngineTest : public testing::Test {
 protected:
  EngineTest()
      : dir_(ModelDir::open(test::golden("fixtures/qwen3_5-dense")).value()),
        goldens_(test::golden("fixtures/qwen3_5-dense/goldens.safetensors")) {}

  std::unique_ptr<Engine> start(EngineOptions options) {
    return Engine::start(dir_, options).value();
  }
  static Request greedy(std::vector<int32_t> prompt, int max_tokens) {
    Request request;
    request.prompt = std::move(prompt);
    request.max_tokens = max_tokens;
    request.sampling.temperature = 0;
    return request;
  }
  static std::vector<int32_t> collect(RequestHandle& handle, FinishReason* reason = nullptr) {
    std::vector<int32_t> ids;
    while (true) {
      const TokenEvent event = handle.next();
      if (event.token >= 0) ids.push_back(event.token);
      if (event.finish == FinishReason::kNone) continue;
      if (reason != nullptr) *reason = event.finish;
      return ids;
    }
  }
  std::vector<int32_t> run(Engine& engine, Request request) {
    return collect(*engine.submit(std::move(request)).value());
  }

  ModelDir dir_;
  test::GoldenFile goldens_;
};

TEST_F(EngineTest, GreedyTokensEqualTheGolden) {
  const auto engine = start({.max_model_len = 256});
  EXPECT_EQ(run(*engine, greedy(goldens_.ints("prompt5.input_ids"), 24)),
            goldens_.ints("greedy.new_ids"));
}

TEST_F(EngineTest, ACrowdUnderPreemptionGetsTheSameTokensAsEachAlone) {
  std::mt19937 random(7);
  std::vector<std::vector<int32_t>> prompts;
  for (int i = 0; i < 12; ++i) {
    std::vector<int32_t> prompt(1 + random() % 60);
    for (int32_t& id : prompt) id = static_cast<int32_t>(random() % 512);
    prompts.push_back(std::move(prompt));
  }
  std::vector<std::vector<int32_t>> alone;
  {
    const auto engine =
        start({.max_model_len = 256, .max_num_seqs = 1, .max_num_batched_tokens = 512});
    for (const auto& prompt : prompts) alone.push_back(run(*engine, greedy(prompt, 20)));
  }
  // Room for little more than two full sequences: the crowd must preempt.
  const size_t bytes_per_block = size_t{16} * 2 * 2 * 64 * sizeof(float);
  const auto engine = start({.max_model_len = 96,
                             .max_num_seqs = 6,
                             .max_num_batched_tokens = 24,
                             .kv_cache_bytes = 13 * bytes_per_block});
  std::vector<std::unique_ptr<RequestHandle>> handles;
  for (const auto& prompt : prompts) handles.push_back(engine->submit(greedy(prompt, 20)).value());
  for (size_t i = 0; i < handles.size(); ++i) EXPECT_EQ(collect(*handles[i]), alone[i]) << i;
  EXPECT_GT(engine->stats().num_preemptions, 0);
  EXPECT_EQ(engine->stats().generated_tokens, 12 * 20);
}

TEST_F(EngineTest, StopTokensEndARequestAndAreReported) {
  const auto engine = start({.max_model_len = 256});
  Request request = greedy(goldens_.ints("prompt5.input_ids"), 24);
  const std::vector<int32_t> expected = goldens_.ints("greedy.new_ids");
  request.stop_token_ids = {expected[3]};
  FinishReason reason = FinishReason::kNone;
  const auto handle = engine->submit(std::move(request)).value();
  const std::vector<int32_t> ids = collect(*handle, &reason);
  const auto first = std::ranges::find(expected, expected[3]);
  EXPECT_EQ(ids, std::vector<int32_t>(expected.begin(), first + 1));
  EXPECT_EQ(reason, FinishReason::kStop);
}

TEST_F(EngineTest, ACancelledRequestEndsAndFreesItsSlots) {
  const auto engine = start({.max_model_len = 4096});
  const auto handle = engine->submit(greedy({1, 2, 3}, 4000)).value();
  handle->next();
  handle->cancel();
  FinishReason reason = FinishReason::kNone;
  collect(*handle, &reason);
  EXPECT_EQ(reason, FinishReason::kAbort);
  // The engine is free again: another request runs, and afterwards nothing is held.
  run(*engine, greedy({4, 5}, 3));
  for (int i = 0; i < 200 && engine->stats().num_running > 0; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(engine->stats().num_running, 0);
  EXPECT_EQ(engine->stats().kv_usage, 0.0);
}

TEST_F(EngineTest, DestroyingTheEngineEndsOpenRequests) {
  auto engine = start({.max_model_len = 4096});
  const auto handle = engine->submit(greedy({1, 2, 3}, 4000)).value();
  std::jthread ender([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    engine.reset();
  });
  FinishReason reason = FinishReason::kNone;
  collect(*handle, &reason);
  EXPECT_EQ(reason, FinishReason::kAbort);
}

TEST_F(EngineTest, ARequestThatCanNeverFitIsRefusedWithTheNumbers) {
  const auto engine = start({.max_model_len = 64});
  const auto refused = engine->submit(greedy(std::vector<int32_t>(60, 1), 5));
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(refused.error().message.find("maximum context length is 64 tokens"), std::string::npos);
  EXPECT_FALSE(engine->submit(greedy({}, 5)).has_value());
  EXPECT_FALSE(engine->submit(greedy({512}, 5)).has_value()) << "id outside the vocabulary";
  EXPECT_TRUE(engine->submit(greedy(std::vector<int32_t>(59, 1), 5)).has_value());
}

TEST_F(EngineTest, AFullQueueIsOverloaded) {
  const auto engine = start({.max_model_len = 4096, .max_num_seqs = 1, .max_queue = 2});
  std::vector<std::unique_ptr<RequestHandle>> handles;
  bool overloaded = false;
  for (int i = 0; i < 8; ++i) {
    auto submitted = engine->submit(greedy({1, 2, 3}, 3000));
    if (submitted) {
      handles.push_back(std::move(*submitted));
    } else {
      overloaded = submitted.error().code == ErrorCode::kOverloaded;
    }
  }
  EXPECT_TRUE(overloaded);
  EXPECT_LE(handles.size(), 5u);
}

TEST_F(EngineTest, WhatDoesNotFitSaysSoWithTheNearestFlag) {
  const auto refused = Engine::start(dir_, {.max_model_len = 4096, .kv_cache_bytes = 1 << 20});
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code, ErrorCode::kOutOfMemory);
  EXPECT_NE(refused.error().message.find("--max-model-len 1024"), std::string::npos)
      << refused.error().message;
  const auto too_long = Engine::start(dir_, {.max_model_len = 5000});
  ASSERT_FALSE(too_long.has_value());
  EXPECT_EQ(too_long.error().code, ErrorCode::kInvalidArgument);
}

TEST_F(EngineTest, SeededSamplingIsTheSameInAnyCompany) {
  const auto engine = start({.max_model_len = 256, .max_num_seqs = 4});
  const auto sampled = [&](int64_t seed) {
    Request request = greedy({1, 2, 3}, 16);
    request.sampling.temperature = 1.0f;
    request.sampling.seed = seed;
    return request;
  };
  const std::vector<int32_t> alone = run(*engine, sampled(11));
  const auto a = engine->submit(sampled(5)).value();
  const auto b = engine->submit(sampled(11)).value();
  const auto c = engine->submit(sampled(6)).value();
  EXPECT_EQ(collect(*b), alone);
  EXPECT_NE(collect(*a), alone);
}

// Biased towards one token as far as it goes: it says nothing else.
Request stuck(Request request) {
  request.sampling.logit_bias = {{7, 100.0f}};
  return request;
}

TEST_F(EngineTest, TheLoopGuardEndsARequestThatRepeatsItself) {
  FinishReason reason = FinishReason::kNone;
  {
    const auto engine = start({.max_model_len = 2048});
    const auto free = engine->submit(stuck(greedy({1, 2, 3}, 1000))).value();
    EXPECT_EQ(collect(*free, &reason), std::vector<int32_t>(1000, 7));
    EXPECT_EQ(reason, FinishReason::kLength) << "off unless asked for";
    Request asked = stuck(greedy({1, 2, 3}, 1000));
    asked.repetition = {.max_pattern_size = 4, .min_pattern_size = 1, .min_count = 20};
    const auto own = engine->submit(std::move(asked)).value();
    EXPECT_EQ(collect(*own, &reason).size(), 20u);
    EXPECT_EQ(reason, FinishReason::kRepetition);
  }
  size_t num_until_stopped = 0;
  for (const char* mode : {"stop", "penalize"}) {
    EngineOptions options;
    options.max_model_len = 2048;
    options.loop_guard = mode;
    const auto engine = start(options);
    const auto handle = engine->submit(stuck(greedy({1, 2, 3}, 1000))).value();
    const size_t count = collect(*handle, &reason).size();
    EXPECT_EQ(reason, FinishReason::kRepetition) << mode;
    EXPECT_LT(count, 1000u);
    EXPECT_GT(count, num_until_stopped) << "two raised penalties come before the stop";
    num_until_stopped = count;
    EXPECT_EQ(engine->stats().finished[static_cast<size_t>(FinishReason::kRepetition)], 1);
  }
}

TEST_F(EngineTest, ARaisedPenaltyLetsASequenceOutOfItsLoop) {
  // A bias that wins by little: 5 % are enough to lose.
  EngineOptions options;
  options.max_model_len = 2048;
  options.loop_guard = "penalize";
  const auto engine = start(options);
  float bias = 0;
  std::vector<int32_t> unguarded;
  {
    const auto plain = start({.max_model_len = 2048});
    for (bias = 0; bias < 100; bias += 0.25f) {
      Request request = greedy({1, 2, 3}, 40);
      request.sampling.logit_bias = {{7, bias}};
      unguarded = run(*plain, std::move(request));
      if (unguarded == std::vector<int32_t>(40, 7)) break;
    }
  }
  ASSERT_LT(bias, 100);
  Request request = greedy({1, 2, 3}, 400);
  request.sampling.logit_bias = {{7, bias}};
  const std::vector<int32_t> guarded = run(*engine, std::move(request));
  EXPECT_NE(std::ranges::count(guarded, 7), static_cast<ptrdiff_t>(guarded.size()));
  EXPECT_EQ(guarded.front(), 7);
}

// Every other token of the vocabulary, after a beginning that is free.
class EvenTokens final : public TokenConstraint {
 public:
  bool fill(std::span<uint32_t> allowed) override {
    if (num_accepted < 5) return false;
    std::ranges::fill(allowed, 0x55555555u);
    return true;
  }
  void accept(int32_t token) override {
    ++num_accepted;
    last = token;
  }
  std::atomic<int> num_accepted = 0;
  std::atomic<int32_t> last = -1;
};

TEST_F(EngineTest, AConstraintMasksItsOwnRequestOnly) {
  const auto engine = start({.max_model_len = 256, .max_num_seqs = 4});
  const std::vector<int32_t> prompt = goldens_.ints("prompt5.input_ids");
  const auto constraint = std::make_shared<EvenTokens>();
  Request request = greedy(prompt, 24);
  request.constraint = constraint;
  const auto masked = engine->submit(std::move(request)).value();
  const auto free = engine->submit(greedy(prompt, 24)).value();
  EXPECT_EQ(collect(*free), goldens_.ints("greedy.new_ids"));
  const std::vector<int32_t> ids = collect(*masked);
  const std::vector<int32_t> golden = goldens_.ints("greedy.new_ids");
  EXPECT_TRUE(std::ranges::equal(std::span(ids).first(5), std::span(golden).first(5)));
  for (size_t i = 5; i < ids.size(); ++i) EXPECT_EQ(ids[i] % 2, 0) << i;
  EXPECT_EQ(constraint->num_accepted, 24);
  EXPECT_EQ(constraint->last, ids.back());
}

TEST_F(EngineTest, BatchInvarianceIsAPromiseThatTheCpuKeeps) {
  EXPECT_TRUE(start({.max_model_len = 256, .batch_invariant = true}) != nullptr);
}

}  // namespace
}  // namespace nibble
