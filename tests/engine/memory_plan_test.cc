// The plan against placement on real models, and against arithmetic by hand on the 40B shape.
#include "engine/memory_plan.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstdio>
#include <fstream>
#include <random>

#include "device/planning_device.h"
#include "engine/engine.h"
#include "engine/model_runner.h"
#include "engine/rehearsal.h"
#include "model/architectures.h"
#include "model/sharding.h"
#include "support/golden_file.h"
#include "support/random.h"

namespace nibble {
namespace {

constexpr double kGiB = 1024.0 * 1024 * 1024;

// A model of shapes, one rank's share, from config.json alone.
Model shapes_of(const std::string& golden, int world_size = 1, DType activation = DType::kF16,
                DenseStorage storage = DenseStorage::kPlain) {
  const Json config = read_model_config(test::golden(golden)).value();
  const ModelSpec spec = shard(parse_model_config(config).value(), world_size).value();
  PlanningDevice device("planned", {});
  return Model::shapes(spec, parse_quantization_config(config).value(), device, activation, storage)
      .value();
}

// The published rows: two 32 GB cards, W4A16, 8-bit keys and values.
EngineOptions two_cards(int max_model_len, float share, int max_num_seqs) {
  EngineOptions options;
  options.max_model_len = max_model_len;
  options.gpu_memory_utilization = share;
  options.max_num_seqs = max_num_seqs;
  options.max_num_batched_tokens = 2048;
  options.kv_cache_dtype = "fp8_e5m2";
  options.tensor_parallel_size = 2;
  return options;
}

size_t term(const MemoryPlan& plan, const std::string& name) {
  for (const MemoryTerm& candidate : plan.terms())
    if (candidate.name == name) return candidate.bytes;
  ADD_FAILURE() << "no term " << name;
  return 0;
}

TEST(MemoryPlan, PlannedBytesArePlacedBytesOnEveryFixture) {
  for (const char* name :
       {"fixtures/qwen3_5-dense", "fixtures/qwen3_5-dense-tied", "fixtures/qwen3_5_moe",
        "fixtures/qwen3-dense", "fixtures/llama-dense"}) {
    for (const char* kv : {"auto", "float16", "fp8_e5m2"}) {
      SCOPED_TRACE(std::string(name) + " " + kv);
      const ModelDir dir = ModelDir::open(test::golden(name)).value();
      const std::unique_ptr<Device> device = open_device(Backend::kCpu, 1).value();
      const Model model = Model::load(dir, *device, DType::kF32).value();
      EngineOptions options;
      options.max_model_len = 512;
      options.max_num_seqs = 5;
      options.max_num_batched_tokens = 70;
      options.kv_cache_dtype = kv;
      options.kv_offloading_size = 0.01f;
      const MemoryTarget target = memory_target(*device, device->memory());
      const MemoryPlan plan = plan_memory(model, options, target).value();
      ModelRunner runner = ModelRunner::create(model, *device, plan).value();
      const size_t elsewhere = plan.weights.total() + plan.operation_bytes + plan.margin_bytes;
      EXPECT_GT(runner.placed_host_bytes(), size_t{1} << 20) << "the second tier is there";
      EXPECT_EQ(plan.total_bytes() - elsewhere,
                runner.placed_bytes() + plan.staging_bytes + plan.tier_bytes);
      // Alignment between the two staged parts is not counted.
      EXPECT_LE(plan.staging_bytes + plan.tier_bytes, runner.placed_host_bytes());
      EXPECT_LT(runner.placed_host_bytes() - plan.staging_bytes - plan.tier_bytes, 1024);
      // And the largest step takes exactly the scratch that was planned for it.
      const Rehearsal rehearsal = rehearse(runner, model, plan, true, 1e18).value();
      EXPECT_TRUE(rehearsal.whole);
      EXPECT_EQ(rehearsal.num_sequences, 5);
      EXPECT_EQ(rehearsal.num_tokens, 70);
      EXPECT_EQ(rehearsal.longest_context, 512);
      EXPECT_EQ(runner.peak_scratch_bytes(), plan.activation_bytes);
    }
  }
}

TEST(MemoryPlan, ShapesFromTheConfigHaveTheBytesOfTheCheckpoint) {
  for (const char* name : {"fixtures/qwen3_5-dense", "fixtures/qwen3_5_moe", "fixtures/qwen3-dense",
                           "fixtures/llama-dense"}) {
    SCOPED_TRACE(name);
    const ModelDir dir = ModelDir::open(test::golden(name)).value();
    size_t on_disk = 0;
    for (const SafetensorsFile& shard : dir.shards())
      for (const TensorInfo& info : shard.tensors()) on_disk += info.num_bytes;
    const Model shapes = shapes_of(name);
    // A device with its own memory holds a tied head in the layout of its linears, beside the
    // table.
    const WeightBytes planned = shapes.weight_bytes();
    const size_t tied = shapes.spec().tie_word_embeddings ? planned.lm_head : 0;
    EXPECT_EQ(planned.total() - tied, on_disk);
    const std::unique_ptr<Device> device = open_device(Backend::kCpu, 1).value();
    EXPECT_EQ(Model::load(dir, *device, DType::kF32).value().weight_bytes().total(), on_disk);
  }
}

TEST(MemoryPlan, TheHybrid40BByHand) {
  const Model model = shapes_of("plan/hybrid-40b");
  const WeightBytes weights = model.weight_bytes();
  // MLP 25.67 G and attention 2.52 G parameters in 4 bits, a 16-bit scale and bias for 128 of them.
  const double packed = 96.0 * 3 * 5120 * 17408 + 24.0 * 5120 * 256 * (48 + 4 + 4 + 24);
  EXPECT_EQ(static_cast<double>(weights.quantized), packed / 2 + packed / 128 * 4);
  // Linear attention in 16 bits: qkv 10240, z 6144, a and b 48 each, out 6144.
  const double dense = 72.0 * 5120 * (10240 + 6144 + 48 + 48 + 6144);
  EXPECT_EQ(static_cast<double>(weights.dense), dense * 2);
  EXPECT_EQ(weights.lm_head, size_t{248320} * 5120 * 2);
  EXPECT_EQ(weights.embeddings, size_t{248320} * 5120 * 2);

  const MemoryTarget target =
      memory_target({1, {.name = "x", .memory_bytes = size_t{80} << 30}}, model);
  EngineOptions options = two_cards(262144, 0.9f, 4);
  options.tensor_parallel_size = 1;
  const MemoryPlan plan = count_memory(model, options, target).value();
  EXPECT_EQ(plan.kv_bytes_per_token, 49152u);
  EXPECT_EQ(262144.0 * static_cast<double>(plan.kv_bytes_per_token) / kGiB, 12.0);
  // 72 x 48 heads x 128 x 128 x 4 bytes, and 72 x 10240 channels x 3 x 2 bytes.
  EXPECT_EQ(plan.state_bytes_per_seq, size_t{72} * 48 * 128 * 128 * 4 + size_t{72} * 10240 * 3 * 2);
}

TEST(MemoryPlan, SixteenBitLinearsInTwelve) {
  const Model model = shapes_of("plan/hybrid-40b", 1, DType::kBF16, DenseStorage::kCompact);
  const WeightBytes plain = shapes_of("plan/hybrid-40b").weight_bytes();
  // 12 bits, 4 bytes for 256 weights and 4 more, 16 bytes a row.
  const auto bytes = [](double out, double in) {
    return out * in * 3 / 2 + out * in / 256 * 4 + 4 + out * 16;
  };
  const double layer =
      bytes(10240, 5120) + bytes(6144, 5120) + 2 * bytes(48, 5120) + bytes(5120, 6144);
  EXPECT_EQ(static_cast<double>(model.weight_bytes().dense), 72 * layer);
  EXPECT_EQ(static_cast<double>(model.weight_bytes().lm_head), bytes(248320, 5120));
  EXPECT_EQ(model.weight_bytes().quantized, plain.quantized);
  EXPECT_EQ(model.weight_bytes().embeddings, plain.embeddings);
  EXPECT_LT(model.arena_bytes(), plain.total());

  // Only where bfloat16 meets bfloat16.
  const Model half = shapes_of("plan/hybrid-40b", 1, DType::kF16, DenseStorage::kCompact);
  EXPECT_EQ(half.weight_bytes().total(), plain.total());
}

TEST(MemoryPlan, CompactWeightsByDefaultForFewSequences) {
  const auto storage = [](const char* wanted, int seqs, int compute_capability) {
    EngineOptions options;
    options.compact_weights = wanted;
    options.max_num_seqs = seqs;
    return dense_storage(options, PlanningDevice("card", {}, compute_capability));
  };
  EXPECT_EQ(storage("auto", 64, 90), DenseStorage::kCompact);
  EXPECT_EQ(storage("auto", 65, 90), DenseStorage::kPlain);
  EXPECT_EQ(storage("auto", 16, 89), DenseStorage::kCompact);
  EXPECT_EQ(storage("auto", 17, 89), DenseStorage::kPlain);
  for (const int without : {0, 70, 75})
    EXPECT_EQ(storage("auto", 1, without), DenseStorage::kPlain);
  EXPECT_EQ(storage("on", 256, 90), DenseStorage::kCompact);
  EXPECT_EQ(storage("off", 1, 90), DenseStorage::kPlain);
}

TEST(MemoryPlan, AnIgnoreListOfPatternsMeansTheSameAsOneOfNames) {
  const WeightBytes names = shapes_of("plan/hybrid-40b").weight_bytes();
  const WeightBytes patterns = shapes_of("plan/hybrid-40b-patterns").weight_bytes();
  EXPECT_EQ(names.quantized, patterns.quantized);
  EXPECT_EQ(names.dense, patterns.dense);
  EXPECT_EQ(names.total(), patterns.total());
}

TEST(MemoryPlan, TwoCardsHalveEverythingThatIsSharded) {
  const Model one = shapes_of("plan/hybrid-40b");
  const Model two = shapes_of("plan/hybrid-40b", 2);
  EXPECT_EQ(two.weight_bytes().quantized * 2, one.weight_bytes().quantized);
  EXPECT_EQ(two.weight_bytes().dense * 2, one.weight_bytes().dense);
  EXPECT_EQ(two.weight_bytes().lm_head * 2, one.weight_bytes().lm_head);
  const CardSet cards = parse_cards("2xV100-32GB").value();
  const MemoryPlan plan =
      count_memory(two, two_cards(262144, 0.89f, 16), memory_target(cards, two)).value();
  EXPECT_EQ(plan.kv_bytes_per_token, 24576u);
  EXPECT_EQ(262144.0 * static_cast<double>(plan.kv_bytes_per_token) / kGiB, 6.0);
  EXPECT_GT(plan.communication_bytes, 0u);
}

TEST(MemoryPlan, ThePublishedRowsFitTwoCardsOf32GB) {
  const Model rank = shapes_of("plan/hybrid-40b", 2);
  const MemoryTarget target = memory_target(parse_cards("2xV100-32GB").value(), rank);
  struct Published {
    int max_model_len;
    float share;
    int max_num_seqs;
  };
  for (const Published& row :
       {Published{200000, 0.85f, 4}, Published{240000, 0.87f, 8}, Published{262144, 0.89f, 16}}) {
    SCOPED_TRACE(row.max_model_len);
    const MemoryPlan plan =
        count_memory(rank, two_cards(row.max_model_len, row.share, row.max_num_seqs), target)
            .value();
    EXPECT_TRUE(plan.fits()) << "short by " << plan.shortfall_bytes;
    EXPECT_LE(plan.total_bytes(), plan.budget_bytes);
    EXPECT_GE(plan.concurrency(), 1.0);
  }
  // In 16 bits the longest row needs twice the cache and no longer fits; the plan says what does.
  EngineOptions wide = two_cards(262144, 0.89f, 16);
  wide.kv_cache_dtype = "auto";
  const MemoryPlan too_wide = count_memory(rank, wide, target).value();
  EXPECT_FALSE(too_wide.fits());
  EXPECT_GT(too_wide.fitting_model_len, 100000);
  wide.max_model_len = static_cast<int>(too_wide.fitting_model_len);
  EXPECT_TRUE(count_memory(rank, wide, target).value().fits());
  wide.max_model_len += wide.block_size;
  EXPECT_FALSE(count_memory(rank, wide, target).value().fits()) << "the longest is the longest";
}

TEST(MemoryPlan, AutoIsTheLargestContextThatFits) {
  const Model rank = shapes_of("plan/hybrid-40b", 2);
  const MemoryTarget target = memory_target(parse_cards("2xV100-32GB").value(), rank);
  EngineOptions options = two_cards(-1, 0.75f, 4);
  const MemoryPlan plan = count_memory(rank, options, target).value();
  ASSERT_TRUE(plan.fits());
  EXPECT_LT(plan.max_model_len, 262144);
  EXPECT_GT(plan.max_model_len, 1000);
  options.max_model_len = plan.max_model_len + options.block_size;
  EXPECT_FALSE(count_memory(rank, options, target).value().fits());
}

TEST(MemoryPlan, TheFlagsMeanWhatTheySay) {
  const Model rank = shapes_of("plan/hybrid-40b", 2);
  const MemoryTarget target = memory_target(parse_cards("2xA100-80GB").value(), rank);
  EngineOptions options = two_cards(32768, 0.9f, 4);
  const MemoryPlan trimmed = count_memory(rank, options, target).value();
  EXPECT_EQ(trimmed.kv_tokens(), static_cast<int64_t>(std::ceil(2048 * 4 * 1.05f)) * 16);
  options.kv_cache_auto_trim_ratio = 0.5f;  // below 1 counts as 1
  EXPECT_EQ(count_memory(rank, options, target).value().kv_tokens(), 4 * 32768);
  options.kv_cache_auto_trim_ratio = 0;
  const MemoryPlan whole = count_memory(rank, options, target).value();
  EXPECT_GT(whole.kv_tokens(), trimmed.kv_tokens());
  EXPECT_LT(whole.headroom_bytes(), 24576u * 16 * 2) << "without a trim the budget is used up";
  options.num_gpu_blocks_override = 5000;
  EXPECT_EQ(count_memory(rank, options, target).value().caches.num_blocks, 5000);
  options.num_gpu_blocks_override = 0;
  options.kv_cache_bytes = size_t{4} << 30;
  EXPECT_LE(count_memory(rank, options, target).value().kv_bytes, size_t{4} << 30);
  EXPECT_GT(count_memory(rank, options, target).value().kv_bytes, (size_t{4} << 30) - 400000);
  options.kv_cache_bytes = 0;
  options.num_state_snapshots = 3;
  EXPECT_EQ(count_memory(rank, options, target).value().snapshot_bytes,
            3 * whole.state_bytes_per_seq);
  // More tokens in a step, more activations; more sequences, more states.
  EngineOptions larger = two_cards(32768, 0.9f, 4);
  larger.max_num_batched_tokens = 8192;
  larger.max_num_seqs = 8;
  const MemoryPlan more = count_memory(rank, larger, target).value();
  EXPECT_GT(more.activation_bytes, 3 * trimmed.activation_bytes);
  EXPECT_EQ(term(more, "states.recurrent"), 2 * term(trimmed, "states.recurrent"));
  for (const float share : {0.0f, 1.5f}) {
    options.gpu_memory_utilization = share;
    EXPECT_FALSE(count_memory(rank, options, target).has_value());
  }
}

TEST(MemoryPlan, ABusyCardIsAnErrorOnlyWithoutTheTrim) {
  const Model rank = shapes_of("plan/hybrid-40b", 2);
  MemoryTarget target = memory_target(parse_cards("2xA100-80GB").value(), rank);
  target.free_bytes = size_t{60} << 30;
  target.holders = "python3 (pid 4711) 19.0 GiB";
  EngineOptions options = two_cards(32768, 0.9f, 4);
  const MemoryPlan plan = count_memory(rank, options, target).value();
  EXPECT_TRUE(plan.fits());
  EXPECT_TRUE(plan.busy);
  EXPECT_EQ(plan.budget_bytes, target.free_bytes);
  options.kv_cache_auto_trim_ratio = 0;
  const Result<MemoryPlan> refused = plan_memory(rank, options, target);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().code, ErrorCode::kOutOfMemory);
  EXPECT_EQ(exit_code(refused.error().code), 3);
  EXPECT_NE(refused.error().message.find("pid 4711"), std::string::npos);
}

TEST(MemoryPlan, CardsAreFoundByTheirNamesAndSizes) {
  EXPECT_EQ(parse_cards("2xV100-32GB").value().count, 2);
  EXPECT_EQ(parse_cards("h200").value().card.sm, 90);
  EXPECT_EQ(parse_cards("RTX 4090").value().card.name, "4090");
  EXPECT_EQ(parse_cards("4x24GiB").value().card.memory_bytes, size_t{24} << 30);
  const auto unknown = parse_cards("2xH20");
  ASSERT_FALSE(unknown.has_value());
  EXPECT_NE(unknown.error().message.find("did you mean H200?"), std::string::npos)
      << unknown.error().message;
}

TEST(Sharding, RefusesWhatDoesNotDivide) {
  const ModelSpec spec =
      parse_model_config(read_model_config(test::golden("plan/hybrid-40b")).value()).value();
  EXPECT_EQ(shard(spec, 8).value().attention.num_kv_heads, 1) << "replicated";
  const auto refused = shard(spec, 5);
  ASSERT_FALSE(refused.has_value());
  EXPECT_EQ(refused.error().message,
            "Total number of attention heads (24) must be divisible by tensor parallel size (5).");
}

TEST(MemoryPlan, HoldsItsLawsForAnyFlags) {
  std::mt19937 random(test::test_seed());
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution(low, high)(random);
  };
  const Model models[] = {shapes_of("plan/hybrid-40b", 2), shapes_of("fixtures/qwen3-dense")};
  int num_fitting = 0;
  for (int trial = 0; trial < 150; ++trial) {
    SCOPED_TRACE(trial);
    const Model& model = models[pick(0, 1)];
    const auto most = static_cast<int>(model.spec().max_position_embeddings);
    MemoryTarget target = memory_target(parse_cards("2xV100-32GB").value(), model);
    target.free_bytes -= static_cast<size_t>(pick(0, 8)) << 30;
    EngineOptions options;
    options.max_model_len = pick(0, 3) == 0 ? -1 : pick(1, most);
    options.max_num_seqs = pick(1, 40);
    options.max_num_batched_tokens = pick(0, 8192);
    options.block_size = 1 << pick(3, 7);
    options.gpu_memory_utilization = static_cast<float>(pick(60, 100)) / 100;
    options.kv_cache_dtype = pick(0, 1) == 0 ? "fp8" : "auto";
    options.kv_cache_auto_trim_ratio = static_cast<float>(pick(0, 3));
    options.num_state_snapshots = pick(-1, 4);
    const MemoryPlan plan = count_memory(model, options, target).value();
    if (plan.fits()) {
      ++num_fitting;
      EXPECT_LE(plan.total_bytes(), plan.budget_bytes);
      EXPECT_GE(plan.fitting_model_len, plan.max_model_len);
      EXPECT_GE(plan.kv_tokens(), plan.max_model_len);
      EXPECT_TRUE(plan_memory(model, options, target).has_value());
    } else {
      const Result<MemoryPlan> refused = plan_memory(model, options, target);
      ASSERT_FALSE(refused.has_value());
      EXPECT_EQ(refused.error().code, ErrorCode::kOutOfMemory);
      EXPECT_EQ(refused.error().message.find('\n'), std::string::npos);
    }
    // What is promised to fit does: the longest context, and each change that is said to suffice.
    if (plan.fitting_model_len >= options.block_size && !(plan.busy && !plan.fits())) {
      EngineOptions longest = options;
      longest.max_model_len = static_cast<int>(plan.fitting_model_len);
      EXPECT_TRUE(count_memory(model, longest, target).value().fits());
      longest.max_model_len += options.block_size;
      if (longest.max_model_len <= most) {
        EXPECT_FALSE(count_memory(model, longest, target).value().fits());
      }
    }
  }
  EXPECT_GT(num_fitting, 20);
  EXPECT_LT(num_fitting, 150);
}

// A little more address space than is in use already.
[[noreturn]] void start_in_a_narrow_space() {
  const ModelDir dir = ModelDir::open(test::golden("fixtures/qwen3_5-dense")).value();
  size_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  const rlimit limit = {pages * 4096 + (size_t{64} << 20), RLIM_INFINITY};
  setrlimit(RLIMIT_AS, &limit);
  EngineOptions options;
  options.num_threads = 1;
  options.max_model_len = 4096;
  options.kv_cache_bytes = size_t{256} << 20;
  const auto engine = Engine::start(dir, options);
  if (!engine) std::fprintf(stderr, "%s\n", engine.error().message.c_str());
  std::_Exit(engine ? 0 : exit_code(engine.error().code));
}

TEST(Start, ADeviceThatRefusesEndsTheStartWithTheNumbers) {
  EXPECT_EXIT(start_in_a_narrow_space(), testing::ExitedWithCode(3),
              "the engine: cannot reserve .* of host memory: the plan of .*");
}

TEST(AllocationsAfterReady, AreNoneWhileServing) {
  const ModelDir dir = ModelDir::open(test::golden("fixtures/qwen3_5-dense")).value();
  const auto engine = Engine::start(dir, {.max_model_len = 256}).value();
  std::vector<std::unique_ptr<RequestHandle>> handles;
  for (int i = 0; i < 24; ++i) {
    Request request;
    request.prompt.assign(static_cast<size_t>(1 + i * 9 % 200), 7);
    request.max_tokens = 20;
    handles.push_back(engine->submit(std::move(request)).value());
  }
  for (const auto& handle : handles)
    while (handle->next().finish == FinishReason::kNone) {
    }
  EXPECT_EQ(engine->stats().num_allocations_after_ready, 0);
  const std::unique_ptr<Device> device = open_device(Backend::kCpu, 1).value();
  const DeviceMemory memory = device->allocate(4096, "a test").value();
  EXPECT_EQ(engine->stats().num_allocations_after_ready, 1) << "the counter counts";
}

}  // namespace
}  // namespace nibble
