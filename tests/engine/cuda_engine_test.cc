// The whole engine on a GPU: the bundled model's replies against the CPU's, recorded steps against
// plain ones, no allocation after readiness, planned against held memory. Without a GPU every test
// is skipped, and the program says so.
#include <gtest/gtest.h>

#include "device/cuda_device_tensor.h"
#include "engine/engine.h"
#include "engine/model_runner.h"
#include "engine/rehearsal.h"
#include "support/golden_file.h"

namespace nibble {
namespace {

class CudaEngine : public testing::Test {
 protected:
  void SetUp() override {
    if (test::gpu() == nullptr) GTEST_SKIP() << "no GPU";
  }
  CudaEngine()
      : dir_(ModelDir::open(test::bundled_model("nibble-demo-14m")).value()),
        prompts_(test::load_json(test::golden("demo/prompts.json"))) {}

  static EngineOptions on(const char* device) {
    EngineOptions options;
    options.device = device;
    options.dtype = "bfloat16";
    options.max_model_len = 2048;
    return options;
  }
  Request request(size_t prompt, float temperature = 0) const {
    Request request;
    request.prompt = prompts_[prompt]["prompt_ids"].get<std::vector<int32_t>>();
    request.max_tokens = static_cast<int>(prompts_[prompt]["float32"]["ids"].size());
    request.ignore_eos = true;
    request.sampling.temperature = temperature;
    return request;
  }
  // All prompts at once, or one after the other.
  std::vector<std::vector<int32_t>> replies(Engine& engine, bool at_once) const {
    std::vector<std::unique_ptr<RequestHandle>> handles;
    std::vector<std::vector<int32_t>> replies;
    const auto collect = [&] {
      for (const auto& handle : handles) {
        replies.emplace_back();
        for (TokenEvent event; event.finish == FinishReason::kNone;) {
          event = handle->next();
          EXPECT_EQ(event.error, "");
          if (event.token >= 0) replies.back().push_back(event.token);
        }
      }
      handles.clear();
    };
    for (size_t i = 0; i < prompts_.size(); ++i) {
      handles.push_back(engine.submit(request(i)).value());
      if (!at_once) collect();
    }
    collect();
    return replies;
  }
  static int equal(const std::vector<std::vector<int32_t>>& a,
                   const std::vector<std::vector<int32_t>>& b) {
    int count = 0;
    for (size_t i = 0; i < a.size(); ++i) count += a[i] == b[i];
    return count;
  }

  ModelDir dir_;
  Json prompts_;
};

TEST_F(CudaEngine, GreedyRepliesOfTheDemoModelAreTheCpus) {
  const auto gpu = Engine::start(dir_, on("cuda")).value();
  const auto cpu = Engine::start(dir_, on("cpu")).value();
  const int same = equal(replies(*gpu, false), replies(*cpu, false));
  RecordProperty("same", same);
  std::fprintf(stderr, "demo model, bf16, greedy: %d of %zu replies equal the CPU's\n", same,
               prompts_.size());
  EXPECT_GE(same, 38);
}

TEST_F(CudaEngine, RecordedStepsGiveTheTokensOfPlainOnes) {
  EngineOptions options = on("cuda");
  options.max_num_seqs = 7;  // 7, 6, 5 and 3 are padded
  options.cudagraph_capture_sizes = {1, 4, 7};
  const auto recorded = Engine::start(dir_, options).value();
  options.enforce_eager = true;
  const auto plain = Engine::start(dir_, options).value();
  EXPECT_EQ(equal(replies(*recorded, false), replies(*plain, false)), 40);
  // In a crowd, sums may be cut otherwise than alone; nearly all replies survive that.
  EXPECT_GE(equal(replies(*recorded, true), replies(*plain, true)), 36);
}

TEST_F(CudaEngine, NothingIsAllocatedAfterReadiness) {
  EngineOptions options = on("cuda");
  options.kv_cache_dtype = "fp8_e5m2";
  const auto engine = Engine::start(dir_, options).value();
  replies(*engine, true);
  std::vector<std::unique_ptr<RequestHandle>> handles;
  for (size_t i = 0; i < 8; ++i) {
    Request sampled = request(i, 0.8f);
    sampled.sampling.num_logprobs = 3;
    handles.push_back(engine->submit(std::move(sampled)).value());
  }
  for (const auto& handle : handles)
    while (handle->next().finish == FinishReason::kNone) {
    }
  const EngineStats stats = engine->stats();
  EXPECT_GT(stats.num_steps, 100);
  EXPECT_EQ(stats.num_allocations_after_ready, 0);
}

TEST_F(CudaEngine, HeldMemoryIsThePlannedWithinTwoPercent) {
  const auto device = open_device(Backend::kCuda).value();
  if (device->held_by_this_process() == 0) GTEST_SKIP() << "the driver does not tell";
  EngineOptions options = on("cuda");
  options.kv_cache_bytes = size_t{8} << 30;
  options.max_num_seqs = 64;
  const DeviceMemoryInfo before = device->memory();
  const size_t elsewhere = device->held_by_this_process() - before.held;  // other tests' device
  const Model model = Model::load(dir_, *device, DType::kBF16).value();
  const MemoryPlan plan = plan_memory(model, options, memory_target(*device, before)).value();
  ModelRunner runner = ModelRunner::create(model, *device, plan).value();
  ASSERT_TRUE(rehearse(runner, model, plan, before.is_host));
  runner.record(capture_sizes(options));
  EXPECT_GT(runner.num_recordings(), 8);
  const auto planned = static_cast<double>(plan.total_bytes() - plan.margin_bytes);
  const auto held = static_cast<double>(device->held_by_this_process() - elsewhere);
  std::fprintf(stderr, "memory: planned %.1f MiB, held %.1f MiB, %d recorded steps\n",
               planned / (1 << 20), held / (1 << 20), runner.num_recordings());
  for (const MemoryTerm& term : plan.terms())
    if (term.bytes > 0)
      std::fprintf(stderr, "  %s %.1f MiB\n", term.name.c_str(),
                   static_cast<double>(term.bytes) / (1 << 20));
  EXPECT_NEAR(held / planned, 1.0, 0.02);
}

}  // namespace
}  // namespace nibble
