// AWQ and GPTQ: the arithmetic on small numbers, and the whole pass on the demo model.
#include "quant/calibrated.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <random>

#include "base/format.h"
#include "checkpoint/writer.h"
#include "model/architectures.h"
#include "quant/pipeline.h"
#include "quant/refine.h"
#include "quant/rtn.h"
#include "support/golden_file.h"
#include "support/model_harness.h"
#include "support/random.h"
#include "support/temp_dir.h"

namespace nibble {
namespace {

std::vector<float> normal_values(std::mt19937& random, int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

TEST(Awq, CandidatesInUpstreamsOrder) {
  const auto on = awq_candidates({20, DuoScaling::kOn, {}});
  ASSERT_EQ(on.size(), 20u);
  EXPECT_FALSE(on[0].duo);
  EXPECT_EQ(on[0].ratio, 0);
  EXPECT_EQ(on[1].ratio, 0);
  EXPECT_TRUE(on[1].duo);
  EXPECT_DOUBLE_EQ(on[2].ratio, 1.0 / 18);
  EXPECT_EQ(on[19].ratio, 1);
  EXPECT_EQ(awq_candidates({10, DuoScaling::kOff, {}}).size(), 10u);
  const auto both = awq_candidates({30, DuoScaling::kBoth, {}});
  EXPECT_EQ(std::ranges::count_if(both, &AwqCandidate::duo), 15);
  EXPECT_EQ(both.size(), 30u);
}

TEST(Awq, ScalesAreNormalisedAndTheIdentityIsOne) {
  const std::vector<float> x_mean = {0.5f, 2.0f, 0.1f, 1.0f};
  const std::vector<double> w_mean = {0.3, 0.2, 0.4, 0.3};
  EXPECT_EQ(awq_scales({0, false}, x_mean, w_mean, false), std::vector<double>(4, 1.0));
  const std::vector<double> scales = awq_scales({0.5, true}, x_mean, w_mean, false);
  const auto [low, high] = std::ranges::minmax(scales);
  EXPECT_NEAR(low * high, 1.0, 1e-12);
  EXPECT_NEAR(scales[1] / scales[0],
              std::sqrt(2.0 / 0.5) * (std::sqrt(0.3) + 1e-4) / (std::sqrt(0.2) + 1e-4), 1e-6);
}

TEST(Awq, ADeadChannelMovesNoOther) {
  const std::vector<float> x_mean = {0.0f, 2.0f, 0.5f};
  const std::vector<double> w_mean = {0.3, 0.3, 0.3};
  const std::vector<double> spared = awq_scales({0.5, true}, x_mean, w_mean, true);
  EXPECT_EQ(spared[0], 1);
  EXPECT_NEAR(spared[1] * spared[2], 1.0, 1e-12);
  EXPECT_GT(awq_scales({0.5, true}, x_mean, w_mean, false)[2], 10);
}

TEST(Gptq, LowersTheOutputErrorOfCorrelatedInputs) {
  std::mt19937 random(test::test_seed());
  constexpr int64_t kRows = 40;
  constexpr int64_t kColumns = 64;
  constexpr int64_t kTokens = 256;
  // Inputs share a few directions.
  const std::vector<float> mix = normal_values(random, 8 * kColumns);
  const std::vector<float> parts = normal_values(random, kTokens * 8);
  std::vector<float> x = normal_values(random, kTokens * kColumns);
  for (int64_t t = 0; t < kTokens; ++t)
    for (int64_t c = 0; c < kColumns; ++c)
      for (int64_t i = 0; i < 8; ++i)
        x[static_cast<size_t>(t * kColumns + c)] +=
            3 * parts[static_cast<size_t>(t * 8 + i)] * mix[static_cast<size_t>(i * kColumns + c)];
  std::vector<float> gram(static_cast<size_t>(kColumns * kColumns));
  for (int64_t t = 0; t < kTokens; ++t)
    for (int64_t i = 0; i < kColumns; ++i)
      for (int64_t k = 0; k < kColumns; ++k)
        gram[static_cast<size_t>(i * kColumns + k)] +=
            x[static_cast<size_t>(t * kColumns + i)] * x[static_cast<size_t>(t * kColumns + k)];
  std::vector<float> w = normal_values(random, kRows * kColumns);
  const Tensor weight{w.data(), DType::kF32, {kRows, kColumns}};
  const Tensor hessian{gram.data(), DType::kF32, {kColumns, kColumns}};
  const QuantFormat format{.num_bits = 4, .group_size = 32, .symmetric = false};
  const auto observer = make_observer("memoryless_minmax").value();
  const RangeSearch search = observer.range_search(weight.dtype);
  ThreadPool pool(2);
  const auto output_error = [&](const QuantizedWeight& quantized) {
    OwnedTensor values(DType::kF32, weight.shape);
    dequantize_weight(quantized, format, values.view(), pool);
    const float* v = values.view().as<const float>();
    double sum = 0;
    for (int64_t t = 0; t < kTokens; ++t)
      for (int64_t r = 0; r < kRows; ++r) {
        double difference = 0;
        for (int64_t c = 0; c < kColumns; ++c)
          difference +=
              static_cast<double>(x[static_cast<size_t>(t * kColumns + c)]) *
              static_cast<double>(w[static_cast<size_t>(r * kColumns + c)] - v[r * kColumns + c]);
        sum += difference * difference;
      }
    return sum;
  };
  const double nearest = output_error(round_to_nearest(weight, format, observer, {}, pool).value());
  for (const bool act_order : {false, true}) {
    const auto rounded = gptq(weight, hessian, format, search, {}, {0.01f, act_order}, pool);
    ASSERT_TRUE(rounded) << rounded.error().message;
    EXPECT_LT(output_error(*rounded), 0.5 * nearest) << act_order;
  }
  // Refinement only ever lowers the output error, from a good start and from a poor one.
  for (QuantizedWeight start : {round_to_nearest(weight, format, observer, {}, pool).value(),
                                gptq(weight, hessian, format, search, {}, {}, pool).value()}) {
    const double before = output_error(start);
    RefineSettings exact;
    exact.dampening = 0;
    const RefineResult claimed = refine(weight, hessian, format, exact, start, pool);
    const double after = output_error(start);
    EXPECT_LT(after, 0.98 * before);
    EXPECT_NEAR(claimed.error_before / before, 1, 1e-3);
    EXPECT_NEAR(claimed.error_after / after, 1, 1e-3);
  }
  // Uncorrelated inputs leave nothing to make good: the same integers as rounding to nearest.
  std::ranges::fill(gram, 0.0f);
  for (int64_t i = 0; i < kColumns; ++i) gram[static_cast<size_t>(i * kColumns + i)] = 2;
  EXPECT_EQ(gptq(weight, hessian, format, search, {}, {0.01f, false}, pool)->integers,
            round_to_nearest(weight, format, observer, {}, pool)->integers);
  gram[0] = NAN;
  EXPECT_FALSE(gptq(weight, hessian, format, search, {}, {}, pool));
}

TEST(Imatrix, WhatMattersIsRoundedBetter) {
  std::mt19937 random(test::test_seed());
  constexpr int64_t kRows = 64;
  constexpr int64_t kColumns = 128;
  std::vector<float> w = normal_values(random, kRows * kColumns);
  std::vector<float> importance(kColumns, 0.01f);
  for (size_t c = 0; c < importance.size(); c += 8) importance[c] = 10;
  // What does not matter has outliers, which a plain range has to reach.
  for (int64_t r = 0; r < kRows; ++r) w[static_cast<size_t>(r * kColumns + 1)] = 12;
  const Tensor weight{w.data(), DType::kF32, {kRows, kColumns}};
  const QuantFormat format{.num_bits = 4, .group_size = 128, .symmetric = false};
  ThreadPool pool(2);
  const auto weighted_error = [&](const std::string& name) {
    const auto observer = make_observer(name).value();
    const auto rounded = round_to_nearest(weight, format, observer, importance, pool).value();
    OwnedTensor values(DType::kF32, weight.shape);
    dequantize_weight(rounded, format, values.view(), pool);
    double sum = 0;
    for (size_t i = 0; i < w.size(); ++i)
      sum += static_cast<double>(importance[i % kColumns]) *
             std::pow(static_cast<double>(w[i] - values.view().as<float>()[i]), 2);
    return sum;
  };
  EXPECT_TRUE(make_observer("imatrix_mse").value().needs_importance());
  EXPECT_LT(weighted_error("imatrix_mse"), 0.7 * weighted_error("memoryless_minmax"));
}

TEST(Smoothing, MappingsOfARecipeAreResolvedOrRefused) {
  const ModelDir dir = ModelDir::open(test::bundled_model("nibble-demo-14m")).value();
  const ModelSpec spec = parse_model_config(dir.config()).value();
  const auto resolved = resolve_mappings(
      spec, {{"re:.*layers\\.(3|7|11)\\.input_layernorm$",
              {"re:.*self_attn.q_proj$", "re:.*self_attn.k_proj$", "re:.*self_attn.v_proj$"}},
             {"re:.*up_proj$", {"re:.*down_proj$"}}});
  ASSERT_TRUE(resolved) << resolved.error().message;
  EXPECT_EQ((*resolved)[0].size(), 1u);
  ASSERT_EQ((*resolved)[3].size(), 2u);
  EXPECT_EQ((*resolved)[3][0].balance.size(), 3u);
  EXPECT_EQ((*resolved)[3][0].parent, SmoothingParent::kMixer);
  // k_proj reads the norm too: smoothing without it would change the model.
  EXPECT_FALSE(
      resolve_mappings(spec, {{"re:.*layers.3.input_layernorm$", {"re:.*self_attn.q_proj$"}}}));
  EXPECT_FALSE(resolve_mappings(spec, {{"re:.*no_such_norm$", {"re:.*up_proj$"}}}));
}

TEST(Smoothing, AHybridModelHasTheMappingsOfItsLayerKinds) {
  const ModelDir dir = ModelDir::open(test::bundled_model("nibble-demo-14m")).value();
  const ModelSpec spec = parse_model_config(dir.config()).value();
  const auto linear = smoothing_mappings(spec, 0);
  ASSERT_EQ(linear.size(), 3u);
  EXPECT_EQ(linear[0].balance.size(), 4u);
  const auto full = smoothing_mappings(spec, 3);
  ASSERT_EQ(full.size(), 3u);  // no v_proj -> o_proj
  EXPECT_EQ(full[0].balance.size(), 3u);
  EXPECT_EQ(full[2].smooth, "model.layers.3.mlp.up_proj");
}

// Scales that are powers of two round nothing: up and down undo each other to the bit.
TEST(Smoothing, UpAndDownUndoEachOther) {
  std::mt19937 random(test::test_seed());
  std::vector<double> scales(8);
  for (double& scale : scales) scale = std::ldexp(1.0, static_cast<int>(random() % 7) - 3);
  const SmoothingMapping mapping{"up", false, {"down"}, SmoothingParent::kLinear};
  SmoothingPlan plan(NormRounding::kOnce, 0);
  plan.add(mapping, scales);
  EXPECT_TRUE(plan.touches("up.weight"));
  EXPECT_FALSE(plan.touches("gate.weight"));
  std::vector<float> up = normal_values(random, 8 * 5);
  std::vector<float> down = normal_values(random, 3 * 8);
  const auto product = [&](int64_t i, int64_t c, int64_t k) {
    return up[static_cast<size_t>(k * 5 + c)] * down[static_cast<size_t>(i * 8 + k)];
  };
  const float before = product(2, 4, 7);
  plan.apply("up.weight", {up.data(), DType::kF32, {8, 5}});
  plan.apply("down.weight", {down.data(), DType::kF32, {3, 8}});
  EXPECT_EQ(product(2, 4, 7), before);
}

TEST(Smoothing, TheUpstreamNormRoundTripRoundsThreeTimes) {
  BFloat16 once[] = {BFloat16(0.171875f), BFloat16(-0.3f)};
  BFloat16 upstream[] = {once[0], once[1]};
  SmoothingPlan ours(NormRounding::kOnce, 1);
  SmoothingPlan theirs(NormRounding::kUpstream, 1);
  EXPECT_FALSE(ours.touches("model.norm.weight"));
  EXPECT_TRUE(theirs.touches("model.norm.weight"));
  EXPECT_FALSE(theirs.touches("model.layers.0.linear_attn.norm.weight"));
  ours.apply("model.norm.weight", {once, DType::kBF16, {2}});
  theirs.apply("model.norm.weight", {upstream, DType::kBF16, {2}});
  EXPECT_EQ(once[1].bits, BFloat16(-0.3f).bits);
  EXPECT_EQ(upstream[1].bits, BFloat16(round_bf16(1 + float(BFloat16(-0.3f))) - 1).bits);
}

TEST(Calibrated, AwqWithGptqEndsCloserToItsParentThanRounding) {
  test::TempDir dir;
  const fs::path model = test::bundled_model("nibble-demo-14m");
  const auto recipe_of = [&](const std::string& name) {
    const fs::path path = fs::path(NIBBLE_SOURCE_DIR) / "recipes" / name;
    return parse_recipe(read_file(path).value(), name).value();
  };
  std::mt19937 random(test::test_seed());
  QuantizeOptions options;
  options.num_threads = 2;
  options.recipe = recipe_of("w4a16-awq-gptq.yaml");
  options.recipe.awq->num_candidates = 3;
  options.recipe.groups[0].observer = "memoryless_minmax";
  EXPECT_FALSE(quantize_checkpoint(model, dir.path() / "none", options));
  EXPECT_FALSE(fs::exists(dir.path() / "none"));
  for (int sample = 0; sample < 4; ++sample) {
    std::vector<int32_t> ids(96);
    for (int32_t& id : ids) id = static_cast<int32_t>(random() % 2000);
    options.calibration.push_back(ids);
  }
  const auto calibrated = quantize_checkpoint(model, dir.path() / "gptq", options);
  ASSERT_TRUE(calibrated) << calibrated.error().message;
  EXPECT_EQ(calibrated->details["algorithm"], "awq+gptq");
  EXPECT_GT(calibrated->details["mappings"].size(), 0u);
  QuantizeOptions plain;
  plain.recipe = recipe_of("w4a16-rtn.yaml");
  const auto rounded = quantize_checkpoint(model, dir.path() / "rtn", plain);
  ASSERT_TRUE(rounded);
  EXPECT_EQ(calibrated->output_bytes, rounded->output_bytes);

  // The same ids through all three: GPTQ's logits are nearer.
  const std::vector<int32_t>& ids = options.calibration[0];
  const auto logits = [&](const fs::path& path) {
    test::ModelHarness harness(path, Backend::kCpu);
    return harness.run({{0, ids}});
  };
  const std::vector<float> parent = logits(model);
  const auto distance = [&](const std::vector<float>& other) {
    double sum = 0;
    for (size_t i = 0; i < parent.size(); ++i)
      sum += std::pow(static_cast<double>(parent[i]) - static_cast<double>(other[i]), 2);
    return sum;
  };
  EXPECT_LT(distance(logits(dir.path() / "gptq")), 0.8 * distance(logits(dir.path() / "rtn")));
}

TEST(Calibrated, TheGatedNormTakesOneScaleForAllHeads) {
  test::TempDir dir;
  const fs::path model = test::bundled_model("nibble-demo-14m");
  const ModelSpec spec = parse_model_config(ModelDir::open(model)->config()).value();
  EXPECT_TRUE(gated_norm_mappings(spec, 3).empty());
  ASSERT_EQ(gated_norm_mappings(spec, 0).size(), 1u);
  EXPECT_EQ(gated_norm_mappings(spec, 0)[0].num_scales, spec.delta_net.head_v_dim);

  RecipeParts parts;
  parts.observer = "memoryless_minmax";
  QuantizeOptions options;
  options.num_threads = 2;
  options.recipe = parse_recipe(recipe_text(parts), "test").value();
  options.recipe.groups[0].targets = {"re:.*linear_attn.out_proj$"};
  options.recipe.ignore.clear();
  options.recipe.awq->num_candidates = 5;
  std::mt19937 random(3);
  options.calibration.emplace_back(48);
  for (int32_t& id : options.calibration[0]) id = static_cast<int32_t>(random() % 2000);
  const auto report = quantize_checkpoint(model, dir.path() / "best", options);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(report->details["mappings"].size(), 9u);
  bool any_smoothed = false;
  for (const Json& mapping : report->details["mappings"]) {
    EXPECT_THAT(mapping["smooth"].get<std::string>(), testing::EndsWith("linear_attn.norm"));
    any_smoothed |= mapping["largest_scale"] > 1.0;
  }
  EXPECT_TRUE(any_smoothed);
  // What smoothing alone does to each layer is rounding: the scales fold exactly.
  for (const Json& layer : report->details["layers"])
    EXPECT_LT(layer["smoothing_check"].get<double>(), 0x1p-7);
  options.calibrated.mode = CalibrationMode::reference();
  const auto upstream = quantize_checkpoint(model, dir.path() / "reference", options);
  ASSERT_TRUE(upstream) << upstream.error().message;
  EXPECT_TRUE(upstream->details["mappings"].empty());
}

TEST(CalibrationMode, PartsAreLeftOutByName) {
  CalibrationMode mode = CalibrationMode::best();
  EXPECT_EQ(mode.text(), "best");
  ASSERT_TRUE(mode.leave_out("refinement"));
  EXPECT_FALSE(mode.has(Improvement::kRefinement));
  EXPECT_TRUE(mode.has(Improvement::kShortlist));
  EXPECT_EQ(mode.text(), "best without refinement");
  EXPECT_THAT(mode.leave_out("refinment").error().message, testing::HasSubstr("\"refinement\"?"));
  for (const std::string_view name : improvement_names()) ASSERT_TRUE(mode.leave_out(name));
  EXPECT_EQ(mode.text(), "reference");
  EXPECT_EQ(CalibrationMode::reference().text(), "reference");
}

// A mixture of experts, its experts stored one by one or stacked, as Hugging Face stacks them.
TEST(Calibrated, MixturesOfExpertsAreQuantizedFromEitherLayout) {
  test::TempDir dir;
  const fs::path model = test::golden("fixtures/qwen3_5_moe");
  const ModelDir split = ModelDir::open(model).value();
  const ModelSpec spec = parse_model_config(split.config()).value();
  const auto mappings = smoothing_mappings(spec, 0);
  const auto norm = std::ranges::find_if(mappings, [](const SmoothingMapping& mapping) {
    return mapping.parent == SmoothingParent::kMlp;
  });
  ASSERT_NE(norm, mappings.end());
  EXPECT_EQ(norm->balance.size(), 1u + 2 * 8 + 2 + 1);  // router, experts, shared expert, its gate

  // The same checkpoint with the experts of a layer in two stacks.
  const fs::path stacked = dir.path() / "stacked";
  CheckpointWriter writer = CheckpointWriter::create(stacked).value();
  for (const std::string& name : split.tensor_names()) {
    if (name.find(".experts.") != name.npos) continue;
    ASSERT_TRUE(writer.add(name, split.tensor(name).value()));
  }
  for (size_t layer = 0; layer < spec.layers.size(); ++layer) {
    const std::string prefix = format("{}layers.{}.mlp.experts.", spec.weight_prefix, layer);
    std::vector<std::byte> gate_up;
    std::vector<std::byte> down;
    DType dtype = DType::kF32;
    const auto append = [&](std::vector<std::byte>& to, int expert, const char* which) {
      const Tensor weight = split.tensor(format("{}{}.{}.weight", prefix, expert, which)).value();
      const auto* bytes = static_cast<const std::byte*>(weight.data);
      to.insert(to.end(), bytes, bytes + weight.num_bytes());
      dtype = weight.dtype;
    };
    for (int e = 0; e < spec.moe.num_experts; ++e) {
      append(gate_up, e, "gate_proj");
      append(gate_up, e, "up_proj");
      append(down, e, "down_proj");
    }
    const int64_t inner = spec.moe.moe_intermediate_size;
    const int64_t experts = spec.moe.num_experts;
    ASSERT_TRUE(writer.add(prefix + "gate_up_proj",
                           {gate_up.data(), dtype, {experts, 2 * inner, spec.hidden_size}}));
    ASSERT_TRUE(
        writer.add(prefix + "down_proj", {down.data(), dtype, {experts, spec.hidden_size, inner}}));
  }
  ASSERT_TRUE(writer.add_file("config.json", dump_json_pretty(split.config())));
  ASSERT_TRUE(writer.finish());

  RecipeParts parts;
  QuantizeOptions options;
  options.num_threads = 2;
  options.recipe = parse_recipe(recipe_text(parts), "test").value();
  options.recipe.awq->num_candidates = 4;
  std::mt19937 random(test::test_seed());
  options.calibration.emplace_back(48);
  for (int32_t& id : options.calibration[0]) id = static_cast<int32_t>(random() % 500);
  for (const bool all_experts : {false, true}) {
    options.calibrated.all_experts = all_experts;
    const fs::path a = dir.path() / format("a{}", all_experts);
    const fs::path b = dir.path() / format("b{}", all_experts);
    const auto from_split = quantize_checkpoint(model, a, options);
    ASSERT_TRUE(from_split) << from_split.error().message;
    const auto from_stacks = quantize_checkpoint(stacked, b, options);
    ASSERT_TRUE(from_stacks) << from_stacks.error().message;
    for (const Json& layer : from_split->details["layers"])
      EXPECT_LT(layer["smoothing_check"].get<double>(), 0x1p-7);
    const ModelDir x = ModelDir::open(a).value();
    const ModelDir y = ModelDir::open(b).value();
    ASSERT_EQ(x.tensor_names(), y.tensor_names());
    EXPECT_TRUE(x.has("model.layers.0.mlp.experts.3.down_proj.weight_packed"));
    for (const std::string& name : x.tensor_names()) {
      const Tensor p = x.tensor(name).value();
      ASSERT_EQ(std::memcmp(p.data, y.tensor(name)->data, p.num_bytes()), 0) << name;
    }
    test::ModelHarness quantized(a, Backend::kCpu);
    test::ModelHarness parent(model, Backend::kCpu);
    const std::vector<float> expected = parent.run({{0, options.calibration[0]}});
    const std::vector<float> found = quantized.run({{0, options.calibration[0]}});
    double error = 0;
    double total = 0;
    for (size_t i = 0; i < found.size(); ++i) {
      error += std::pow(static_cast<double>(found[i] - expected[i]), 2);
      total += std::pow(static_cast<double>(expected[i]), 2);
    }
    EXPECT_LT(std::sqrt(error / total), 0.1);
  }
}

// A layer may still be on its way to disk when the next one begins: a run that is killed behind any
// but the first and then resumed ends in the bytes of one that was not.
TEST(Calibrated, AResumedRunEndsInTheSameBytes) {
  test::TempDir dir;
  const fs::path model = test::bundled_model("nibble-demo-14m");
  QuantizeOptions options;
  options.num_threads = 2;
  const fs::path recipe = fs::path(NIBBLE_SOURCE_DIR) / "recipes" / "w4a16-awq-gptq.yaml";
  options.recipe = parse_recipe(read_file(recipe).value(), "w4a16-awq-gptq.yaml").value();
  options.recipe.awq->num_candidates = 2;
  options.calibrated.spill.memory_limit = 1;  // the activations live on disk
  std::mt19937 random(7);
  options.calibration.emplace_back(64);
  for (int32_t& id : options.calibration[0]) id = static_cast<int32_t>(random() % 2000);
  ASSERT_TRUE(quantize_checkpoint(model, dir.path() / "whole", options));
  EXPECT_FALSE(fs::exists(dir.path() / "whole.calibration"));

  const fs::path cut = dir.path() / "cut";
  for (const int last_layer : {1, 5}) {
    const pid_t child = ::fork();
    if (child == 0) {
      options.calibrated.progress = [&](const LayerSummary& layer) {
        if (layer.layer == last_layer) ::kill(::getpid(), SIGKILL);
      };
      (void)quantize_checkpoint(model, cut, options);
      ::_exit(0);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
    EXPECT_FALSE(fs::exists(cut));
  }
  QuantizeOptions other = options;
  other.calibration[0][0] += 1;
  const auto changed = quantize_checkpoint(model, cut, other);
  ASSERT_FALSE(changed);
  EXPECT_NE(changed.error().message.find("the calibration set"), std::string::npos)
      << changed.error().message;
  const auto resumed = quantize_checkpoint(model, cut, options);
  ASSERT_TRUE(resumed) << resumed.error().message;
  for (const auto& entry : fs::directory_iterator(dir.path() / "whole"))
    EXPECT_EQ(read_file(entry.path()).value(), read_file(cut / entry.path().filename()).value())
        << entry.path();
}

}  // namespace
}  // namespace nibble
