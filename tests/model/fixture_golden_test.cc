// The tiny random models: logits, layer outputs and states against Hugging Face transformers, for
// the reference and the CPU backend.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "support/bf16_noise.h"
#include "support/golden_file.h"
#include "support/model_harness.h"

namespace nibble {
namespace {

using test::GoldenFile;
using test::max_abs_diff;
using test::ModelHarness;

struct Case {
  std::string fixture;
  Backend backend;
};

class Fixture : public testing::TestWithParam<Case> {
 protected:
  fs::path folder() const { return test::golden("fixtures/" + GetParam().fixture); }
  GoldenFile goldens() const { return GoldenFile(folder() / "goldens.safetensors"); }
  float tolerance() const {
    return test::load_json(
               folder() /
               "manifest.json")["tolerance"]["float32_implementation"]["logits_max_abs_diff"]
        .get<float>();
  }
  ModelHarness harness() const { return ModelHarness(folder(), GetParam().backend); }

  // The states the model holds for sequence 0 against goldens named PREFIX.layerN.*.
  void expect_states(const ModelHarness& model, const GoldenFile& goldens,
                     const std::string& prefix, float tolerance) const {
    for (size_t layer = 0; layer < model.spec().layers.size(); ++layer) {
      const std::string name = prefix + ".layer" + std::to_string(layer) + ".";
      SCOPED_TRACE(name);
      if (model.spec().layers[layer].mixer == MixerKind::kGatedDeltaNet) {
        const GatedDeltaNetSpec& d = model.spec().delta_net;
        // The golden keeps the last `kernel` inputs; the next step needs the newest kernel - 1.
        const std::vector<float> wide = goldens.floats(name + "conv_state");
        std::vector<float> newest;
        for (int c = 0; c < d.conv_dim(); ++c)
          for (int i = 1; i < d.conv_kernel; ++i)
            newest.push_back(wide[static_cast<size_t>(c * d.conv_kernel + i)]);
        std::vector<float> conv = model.floats(model.caches().conv_state[layer]);
        conv.resize(newest.size());  // slot 0
        EXPECT_LE(max_abs_diff(newest, conv), tolerance);
        const std::vector<float> state = goldens.floats(name + "recurrent_state");
        std::vector<float> ours = model.floats(model.caches().recurrent_state[layer]);
        ours.resize(state.size());
        EXPECT_LE(max_abs_diff(state, ours), tolerance);
        continue;
      }
      const AttentionSpec& a = model.spec().attention;
      for (const bool keys : {true, false}) {
        const Tensor& cache = keys ? model.caches().kv[layer].k : model.caches().kv[layer].v;
        const std::vector<float> cached = model.floats(cache);
        std::vector<float> ours;  // [kv heads, tokens, head dim]
        for (int h = 0; h < a.num_kv_heads; ++h)
          for (int p = 0; p < model.length(0); ++p) {
            const int block = model.blocks(0)[static_cast<size_t>(p / model.block_size())];
            const int row = block * model.block_size() + p % model.block_size();
            const float* from = cached.data() + (row * a.num_kv_heads + h) * a.head_dim;
            ours.insert(ours.end(), from, from + a.head_dim);
          }
        EXPECT_LE(max_abs_diff(goldens.floats(name + (keys ? "keys" : "values")), ours), tolerance);
      }
    }
  }
};

TEST_P(Fixture, LogitsOfWholePromptsMatch) {
  ModelHarness model = harness();
  const GoldenFile golden = goldens();
  for (const char* prompt : {"prompt1", "prompt5", "prompt65", "prompt200"}) {
    model.reset(0);
    const std::vector<float> logits =
        model.run({{0, golden.ints(prompt + std::string(".input_ids"))}});
    EXPECT_LE(max_abs_diff(golden.floats(prompt + std::string(".logits")), logits), tolerance())
        << prompt;
    EXPECT_EQ(model.peak_scratch(), model.planned_scratch());
  }
}

TEST_P(Fixture, EveryLayerOutputMatches) {
  ModelHarness model = harness();
  const GoldenFile golden = goldens();
  std::map<std::string, int> seen;
  const auto observe = [&](const char* what, int layer, const Tensor& value) {
    const std::string kind = what;
    const std::string name = kind == "embed"  ? "hidden65.embed"
                             : kind == "norm" ? "hidden65.final_norm"
                                              : "hidden65.layer" + std::to_string(layer) +
                                                    (kind == "layer" ? ".out" : "." + kind);
    if (!golden.has(name)) return;
    ++seen[kind];
    const float* ours = value.as<const float>();
    const std::vector<float> expected = golden.floats(name);
    EXPECT_LE(max_abs_diff(expected, {ours, ours + value.num_elements()}), tolerance()) << name;
  };
  model.run({{0, golden.ints("prompt65.input_ids")}}, observe);
  EXPECT_EQ(seen["layer"], static_cast<int>(model.spec().layers.size()));
  EXPECT_EQ(seen["embed"], 1);
  EXPECT_EQ(seen["norm"], 1);
}

TEST_P(Fixture, StatesAfterPrefillMatch) {
  ModelHarness model = harness();
  const GoldenFile golden = goldens();
  model.run({{0, golden.ints("prompt65.input_ids")}});
  expect_states(model, golden, "state65", tolerance());
}

TEST_P(Fixture, PrefillAndStepwiseDecodeMatch) {
  ModelHarness model = harness();
  const GoldenFile golden = goldens();
  const std::vector<int32_t> ids = golden.ints("decode.input_ids");
  const size_t vocab = static_cast<size_t>(model.spec().vocab_size);
  const std::vector<float> expected = golden.floats("decode.logits");
  const size_t num_steps = expected.size() / vocab;
  const size_t num_prefill = 37;
  std::vector<float> logits = model.run({{0, {ids.begin(), ids.begin() + num_prefill}}});
  // Row 0 is the last prompt position, row i follows the i-th single token.
  std::vector<float> ours(logits.end() - static_cast<ptrdiff_t>(vocab), logits.end());
  for (size_t i = num_prefill; i < ids.size(); ++i) {
    logits = model.run({{0, {ids[i]}}});
    ours.insert(ours.end(), logits.begin(), logits.end());
  }
  if (num_steps + 1 == ours.size() / vocab)
    ours.erase(ours.begin(), ours.begin() + static_cast<ptrdiff_t>(vocab));
  EXPECT_LE(max_abs_diff(expected, ours), tolerance());
  expect_states(model, golden, "decode", tolerance());
}

TEST_P(Fixture, PrefillInAnyChunksEqualsTheWhole) {
  ModelHarness model = harness();
  const GoldenFile golden = goldens();
  const std::vector<int32_t> ids = golden.ints("prompt200.input_ids");
  const std::vector<float> whole = golden.floats("prompt200.logits");
  for (const std::vector<size_t>& sizes : {std::vector<size_t>{20, 17, 28, 135},
                                           {64, 64, 72},
                                           {1, 1, 198},
                                           {199, 1},
                                           {63, 65, 72},
                                           {7, 50, 1, 142}}) {
    model.reset(0);
    std::vector<float> logits;
    size_t at = 0;
    for (const size_t size : sizes) {
      const std::vector<float> part =
          model.run({{0,
                      {ids.begin() + static_cast<ptrdiff_t>(at),
                       ids.begin() + static_cast<ptrdiff_t>(at + size)}}});
      logits.insert(logits.end(), part.begin(), part.end());
      at += size;
    }
    EXPECT_LE(max_abs_diff(whole, logits), tolerance());
  }
}

TEST_P(Fixture, GreedyDecodingGivesTheSameTokens) {
  ModelHarness model = harness();
  const GoldenFile golden = goldens();
  const std::vector<int32_t> expected = golden.ints("greedy.new_ids");
  const std::vector<float> margin = golden.floats("greedy.margin");
  const size_t vocab = static_cast<size_t>(model.spec().vocab_size);
  std::vector<int32_t> next = golden.ints("prompt5.input_ids");
  for (size_t i = 0; i < expected.size(); ++i) {
    const std::vector<float> logits = model.run({{0, next}});
    const auto last = logits.end() - static_cast<ptrdiff_t>(vocab);
    const auto best = static_cast<int32_t>(std::max_element(last, logits.end()) - last);
    if (best != expected[i]) {
      // Where the two best are closer than the noise either is right, but the texts part here.
      EXPECT_LT(margin[i], tolerance()) << "token " << i;
      return;
    }
    next = {best};
  }
}

TEST_P(Fixture, ABatchOfSequencesEqualsEachAlone) {
  ModelHarness model = harness();
  const GoldenFile golden = goldens();
  const std::vector<int32_t> a = golden.ints("prompt65.input_ids");
  const std::vector<int32_t> b = golden.ints("prompt5.input_ids");
  const std::vector<int32_t> c = golden.ints("prompt200.input_ids");
  std::vector<float> alone;
  for (const auto& ids : {a, b, c}) {
    model.reset(0);
    const std::vector<float> part = model.run({{0, ids}});
    alone.insert(alone.end(), part.begin(), part.end());
  }
  model.reset(0);
  const std::vector<float> together = model.run({{3, a}, {0, b}, {5, c}});
  EXPECT_EQ(alone, together) << "not bitwise equal";
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const char* fixture :
       {"qwen3_5-dense", "qwen3_5-dense-tied", "qwen3_5_moe", "qwen3-dense", "llama-dense"})
    for (const Backend backend : {Backend::kReference, Backend::kCpu})
      all.push_back({fixture, backend});
  return all;
}

TEST_P(Fixture, Bf16IsAtMostTwiceAsFarAsTransformersOwn) {
  const test::Bf16Noise noise = test::bf16_noise(GetParam().fixture, GetParam().backend);
  EXPECT_LE(noise.ours, 2 * noise.transformers);
  RecordProperty("max_kl", std::to_string(noise.ours));
}

INSTANTIATE_TEST_SUITE_P(Models, Fixture, testing::ValuesIn(cases()), [](const auto& info) {
  std::string name =
      info.param.fixture + (info.param.backend == Backend::kCpu ? "_cpu" : "_reference");
  std::ranges::replace(name, '-', '_');
  return name;
});

}  // namespace
}  // namespace nibble
