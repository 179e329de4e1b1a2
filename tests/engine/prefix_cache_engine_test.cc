// Kept prefixes on a real, tiny hybrid model: whatever the cache, the chunks, the company or a
// restart, the tokens are those of the sequence alone.
#include <gtest/gtest.h>

#include <fstream>
#include <random>

#include "engine/engine.h"
#include "support/golden_file.h"
#include "support/temp_dir.h"

namespace nibble {
namespace {

class PrefixCacheEngineTest : public testing::Test {
 protected:
  PrefixCacheEngineTest() : dir_(ModelDir::open(test::golden("fixtures/qwen3_5-dense")).value()) {}

  std::unique_ptr<Engine> start(EngineOptions options) {
    if (options.max_model_len == 0) options.max_model_len = 512;
    return Engine::start(dir_, options).value();
  }
  static std::vector<int32_t> random_tokens(size_t count, uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<int32_t> tokens(count);
    for (int32_t& id : tokens) id = static_cast<int32_t>(random() % 512);
    return tokens;
  }
  static Request greedy(std::vector<int32_t> prompt, int max_tokens = 12) {
    Request request;
    request.prompt = std::move(prompt);
    request.max_tokens = max_tokens;
    request.sampling.temperature = 0;
    return request;
  }
  struct Reply {
    std::vector<int32_t> ids;
    int num_cached = 0;
    TokenEvent first, last;
  };
  static Reply collect(RequestHandle& handle) {
    Reply reply;
    while (true) {
      TokenEvent event = handle.next();
      if (event.token >= 0) reply.ids.push_back(event.token);
      if (reply.ids.size() == 1 && event.token >= 0) {
        reply.num_cached = event.num_cached_tokens;
        reply.first = event;
      }
      if (event.finish == FinishReason::kNone) continue;
      reply.last = std::move(event);
      return reply;
    }
  }
  static Reply run(Engine& engine, Request request) {
    return collect(*engine.submit(std::move(request)).value());
  }
  std::vector<int32_t> alone(const std::vector<int32_t>& prompt, int max_tokens = 12) {
    const auto engine = start({.max_num_seqs = 1, .enable_prefix_caching = false});
    return run(*engine, greedy(prompt, max_tokens)).ids;
  }

  ModelDir dir_;
};

TEST_F(PrefixCacheEngineTest, TheSameTokensAloneInACrowdInAnyChunksColdAndCached) {
  const std::vector<int32_t> prompt = random_tokens(150, 1);
  const std::vector<int32_t> expected = alone(prompt);
  for (const int chunk : {1, 7, 64, 512}) {
    SCOPED_TRACE(chunk);
    const auto engine = start(
        {.max_num_seqs = 16, .max_num_batched_tokens = 512, .long_prefill_token_threshold = chunk});
    EXPECT_EQ(run(*engine, greedy(prompt)).ids, expected) << "cold";
    const Reply cached = run(*engine, greedy(prompt));
    EXPECT_EQ(cached.ids, expected) << "cached";
    EXPECT_GT(cached.num_cached, 0);
    std::vector<std::unique_ptr<RequestHandle>> neighbours;
    for (uint32_t i = 0; i < 15; ++i)
      neighbours.push_back(engine->submit(greedy(random_tokens(20 + 9 * i, 50 + i), 20)).value());
    EXPECT_EQ(run(*engine, greedy(prompt)).ids, expected) << "with 15 neighbours";
    for (const auto& neighbour : neighbours) collect(*neighbour);
  }
}

TEST_F(PrefixCacheEngineTest, TheNextTurnOfAConversationResumesNearTheEndOfTheLast) {
  const auto engine = start({});
  std::vector<int32_t> conversation = random_tokens(100, 3);
  for (int turn = 0; turn < 5; ++turn) {
    const Reply reply = run(*engine, greedy(conversation, 30));
    EXPECT_EQ(reply.ids, alone(conversation, 30)) << turn;
    if (turn > 0) {
      EXPECT_GE(reply.num_cached, static_cast<int>(conversation.size()) - 10 - 32) << turn;
    }
    conversation.insert(conversation.end(), reply.ids.begin(), reply.ids.end());
    const std::vector<int32_t> user = random_tokens(10, 100 + static_cast<uint32_t>(turn));
    conversation.insert(conversation.end(), user.begin(), user.end());
  }
  const EngineStats stats = engine->stats();
  EXPECT_GT(stats.prefix_cache_hits, 400);
  EXPECT_EQ(stats.prompt_tokens_computed + stats.prompt_tokens_cached(), stats.prompt_tokens);
  EXPECT_EQ(stats.finished[static_cast<size_t>(FinishReason::kLength)], 5);
  EXPECT_EQ(stats.kv_usage, 0.0);
}

TEST_F(PrefixCacheEngineTest, ASharedSystemPromptIsResumedFromTheThirdRequestOn) {
  const auto engine = start({});
  const std::vector<int32_t> system = random_tokens(64, 5);
  std::vector<int> cached;
  for (uint32_t i = 0; i < 3; ++i) {
    std::vector<int32_t> prompt = system;
    const std::vector<int32_t> user = random_tokens(90, 200 + i);
    prompt.insert(prompt.end(), user.begin(), user.end());
    const Reply reply = run(*engine, greedy(prompt, 4));
    EXPECT_EQ(reply.ids, alone(prompt, 4));
    cached.push_back(reply.num_cached);
  }
  EXPECT_EQ(cached, (std::vector<int>{0, 0, 64}));
}

TEST_F(PrefixCacheEngineTest, SaltsKeepTenantsApart) {
  const auto engine = start({});
  const std::vector<int32_t> prompt = random_tokens(100, 6);
  run(*engine, greedy(prompt));
  Request other = greedy(prompt);
  other.cache_salt = "another tenant";
  EXPECT_EQ(run(*engine, other).num_cached, 0);
  EXPECT_GT(run(*engine, other).num_cached, 0);
}

TEST_F(PrefixCacheEngineTest, AConversationSurvivesARestart) {
  const test::TempDir cache;
  const std::vector<int32_t> prompt = random_tokens(200, 7);
  EngineOptions options;
  options.cache_dir = cache.path().string();
  options.kv_offloading_size = 0.01f;
  const std::vector<int32_t> expected = run(*start(options), greedy(prompt)).ids;
  const auto engine = start(options);
  const Reply reply = run(*engine, greedy(prompt));
  EXPECT_EQ(reply.ids, expected);
  EXPECT_EQ(reply.num_cached, 192);
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.prompt_tokens_from_tiers, 192);
  EXPECT_EQ(stats.num_disk_reads, 12 + 1);
  EXPECT_EQ(stats.num_disk_rejects, 0);
}

TEST_F(PrefixCacheEngineTest, ADamagedOrForeignFileIsIgnoredAndTheTokensStayRight) {
  const test::TempDir cache;
  const std::vector<int32_t> prompt = random_tokens(200, 8);
  EngineOptions options;
  options.cache_dir = cache.path().string();
  options.kv_offloading_size = 0.01f;
  const std::vector<int32_t> expected = run(*start(options), greedy(prompt)).ids;
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(cache.path()))
    if (entry.is_regular_file()) files.push_back(entry.path());
  ASSERT_GE(files.size(), 13u);
  std::ranges::sort(files);
  for (size_t i = 0; i < files.size(); ++i) {
    if (i % 3 == 0) {  // a flipped byte
      std::fstream file(files[i], std::ios::in | std::ios::out | std::ios::binary);
      file.seekg(500);
      const int byte = file.get();
      file.seekp(500);
      file.put(static_cast<char>(byte ^ 1));
    } else if (i % 3 == 1) {  // cut short
      fs::resize_file(files[i], 100);
    } else {  // another prefix's content
      fs::copy_file(files[i - 1], files[i], fs::copy_options::overwrite_existing);
    }
  }
  const auto engine = start(options);
  EXPECT_EQ(run(*engine, greedy(prompt)).ids, expected);
  EXPECT_GT(engine->stats().num_disk_rejects, 0);

  // Another block size is another configuration: its files are not even looked at.
  options.block_size = 32;
  const auto other = start(options);
  EXPECT_EQ(run(*other, greedy(prompt)).ids, expected);
  EXPECT_EQ(other->stats().num_disk_reads, 0);
}

TEST_F(PrefixCacheEngineTest, RandomSchedulesWithEvictionTiersAndCancellationKeepTheTokens) {
  std::vector<std::vector<int32_t>> prompts, expected;
  for (uint32_t i = 0; i < 10; ++i) {
    std::vector<int32_t> prompt = random_tokens(40, 300 + i % 3);
    const std::vector<int32_t> rest = random_tokens(5 + 7 * i, 400 + i);
    prompt.insert(prompt.end(), rest.begin(), rest.end());
    expected.push_back(alone(prompt, 16));
    prompts.push_back(std::move(prompt));
  }
  const size_t bytes_per_block = size_t{16} * 2 * 2 * 64 * sizeof(float);
  for (uint32_t round = 0; round < 24; ++round) {
    SCOPED_TRACE(round);
    std::mt19937 random(round);
    EngineOptions options;
    options.max_model_len = 160;
    options.max_num_seqs = 2 + static_cast<int>(random() % 5);
    options.max_num_batched_tokens = options.max_num_seqs + static_cast<int>(random() % 60);
    options.kv_cache_bytes = (11 + random() % 12) * bytes_per_block;
    options.num_state_snapshots = static_cast<int>(random() % 6);
    options.scheduling_policy = random() % 2 == 0 ? "fcfs" : "priority";
    if (random() % 2 == 0) options.kv_offloading_size = 0.004f;
    const auto engine = start(options);
    std::vector<std::pair<size_t, std::unique_ptr<RequestHandle>>> handles;
    for (int i = 0; i < 14; ++i) {
      const size_t which = random() % prompts.size();
      Request request = greedy(prompts[which], 16);
      request.priority = static_cast<int>(random() % 3);
      request.client = random() % 2 == 0 ? "a" : "b";
      handles.emplace_back(which, engine->submit(std::move(request)).value());
      if (random() % 3 == 0) handles.back().second->next();  // it has started
      if (random() % 4 == 0) handles.back().second->cancel();
    }
    handles.clear();  // cancels what is left
    for (size_t which = 0; which < prompts.size(); ++which)
      EXPECT_EQ(run(*engine, greedy(prompts[which], 16)).ids, expected[which]) << which;
    EXPECT_EQ(engine->stats().kv_usage, 0.0);
  }
}

TEST_F(PrefixCacheEngineTest, PromptLogprobsComeWithTheFirstTokenAndReadNoCache) {
  const auto engine = start({.max_num_seqs = 4});
  const std::vector<int32_t> prompt = random_tokens(50, 9);
  const std::vector<int32_t> expected = run(*engine, greedy(prompt)).ids;
  Request request = greedy(prompt);
  request.sampling.num_prompt_logprobs = 2;
  const Reply reply = run(*engine, request);
  EXPECT_EQ(reply.ids, expected);
  EXPECT_EQ(reply.num_cached, 0);
  ASSERT_EQ(reply.first.prompt_logprobs.size(), prompt.size() - 1);
  for (size_t i = 0; i + 1 < prompt.size(); ++i) {
    const auto& entry = reply.first.prompt_logprobs[i];
    ASSERT_GE(entry.size(), 2u);
    EXPECT_EQ(entry[0].token, prompt[i + 1]);
    EXPECT_LE(entry[0].logprob, entry.size() > 2 ? entry[1].logprob : 0.0f);
  }
}

TEST_F(PrefixCacheEngineTest, ADeadlineEndsARequestAndItsReportAddsUp) {
  const auto engine = start({.max_model_len = 4096});
  Request request = greedy({1, 2, 3}, 4000);
  request.deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(30);
  const Reply late = run(*engine, request);
  EXPECT_EQ(late.last.finish, FinishReason::kTimeout);
  const Reply whole = run(*engine, greedy({1, 2, 3}, 20));
  const RequestReport& report = whole.last.report;
  EXPECT_EQ(report.num_prompt_tokens, 3);
  EXPECT_EQ(report.num_generated_tokens, 20);
  EXPECT_GT(report.decode_seconds, 0);
  EXPECT_NEAR(report.queue_seconds + report.inference_seconds(), report.e2e_seconds, 0.05);
  EXPECT_NEAR(report.queue_seconds + report.prefill_seconds, report.time_to_first_token_seconds,
              1e-9);
}

TEST_F(PrefixCacheEngineTest, ResettingForgetsWhatWasKept) {
  const auto engine = start({});
  const std::vector<int32_t> prompt = random_tokens(100, 11);
  run(*engine, greedy(prompt));
  EXPECT_TRUE(engine->reset_prefix_cache());
  EXPECT_EQ(run(*engine, greedy(prompt)).num_cached, 0);
  EXPECT_GT(run(*engine, greedy(prompt)).num_cached, 0);
}

}  // namespace
}  // namespace nibble
