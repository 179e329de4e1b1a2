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

}  // namespace
}  // namespace nibble
