// From a checkpoint to a 4-bit checkpoint and back through the loader that serving uses.
#include "quant/pipeline.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "base/hash.h"
#include "support/golden_file.h"
#include "support/model_harness.h"
#include "support/paths.h"
#include "support/temp_dir.h"

namespace nibble {
namespace {

Recipe bundled_recipe() {
  const fs::path path = fs::path(NIBBLE_SOURCE_DIR) / "recipes/w4a16-rtn.yaml";
  return parse_recipe(read_file(path).value(), "w4a16-rtn.yaml").value();
}

class Pipeline : public testing::Test {
 protected:
  static constexpr const char* kModel = "nibble-demo-14m";
  Result<QuantizeReport> quantize(const fs::path& out, size_t max_shard_bytes = size_t{1} << 40,
                                  int num_threads = 2) {
    QuantizeOptions options;
    options.recipe = bundled_recipe();
    options.num_threads = num_threads;
    options.max_shard_bytes = max_shard_bytes;
    return quantize_checkpoint(test::bundled_model(kModel), out, options);
  }
  test::TempDir dir_;
};

int32_t best_token(std::span<const float> logits) {
  return static_cast<int32_t>(std::ranges::max_element(logits) - logits.begin());
}

TEST_F(Pipeline, EveryWeightLoadsBackWithinHalfAStepOfItsParent) {
  const fs::path out = dir_.path() / "out";
  const Result<QuantizeReport> report = quantize(out);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_GT(report->num_quantized, 0);
  const Json& hashes = report->details["source_sha256"];
  ASSERT_FALSE(hashes.empty());
  for (const auto& [file, hash] : hashes.items())
    EXPECT_EQ(hash, sha256_file(test::bundled_model(kModel) / file).value());
  const ModelDir parent = ModelDir::open(test::bundled_model(kModel)).value();
  const Result<ModelDir> quantized = ModelDir::open(out);
  ASSERT_TRUE(quantized) << quantized.error().message;
  ASSERT_TRUE(quantized->quantization().has_value());
  int num_packed = 0;
  for (const std::string& name : parent.tensor_names()) {
    if (quantized->has(name)) {  // kept: the same bytes
      const Tensor a = parent.tensor(name).value();
      const Tensor b = quantized->tensor(name).value();
      ASSERT_EQ(a.shape, b.shape);
      ASSERT_EQ(std::memcmp(a.data, b.data, a.num_bytes()), 0) << name;
      continue;
    }
    ASSERT_TRUE(name.ends_with(".weight")) << name;
    ++num_packed;
    const Tensor original = parent.tensor(name).value();
    const int64_t rows = original.shape[0];
    const int64_t columns = original.shape[1];
    const Result<LinearWeight> loaded =
        quantized->linear(name.substr(0, name.size() - 7), rows, columns);
    ASSERT_TRUE(loaded) << loaded.error().message;
    ASSERT_TRUE(loaded->quantized());
    std::vector<float> values(static_cast<size_t>(rows * columns));
    to_float(original, values.data());
    std::vector<float> scales(static_cast<size_t>(loaded->scale.num_elements()));
    to_float(loaded->scale, scales.data());
    std::vector<int8_t> codes(values.size());
    unpack_rows(
        {loaded->packed.as<const int32_t>(), static_cast<size_t>(loaded->packed.num_elements())},
        rows, columns, loaded->format.num_bits, codes);
    const int64_t num_groups = loaded->scale.shape[1];
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        const int64_t group = r * num_groups + c / loaded->format.group_size;
        const float scale = scales[static_cast<size_t>(group)];
        const int zero = loaded->zero_point.as<const int8_t>()[group];
        const float back =
            static_cast<float>(codes[static_cast<size_t>(r * columns + c)] - zero) * scale;
        // Half a step, plus six BF16 roundings at up to 16 steps: of the range, the scale, the
        // zero point before and after its shift, value / scale, and its sum with the zero point.
        ASSERT_LE(std::fabs(back - values[static_cast<size_t>(r * columns + c)]),
                  (0.5f + 6 / 32.0f) * scale)
            << name << " [" << r << ", " << c << "]";
      }
    }
  }
  EXPECT_EQ(num_packed, report->num_quantized);
}

TEST_F(Pipeline, TheResultPredictsLikeItsParentOnBothBackends) {
  const fs::path out = dir_.path() / "out";
  ASSERT_TRUE(quantize(out));
  const Json prompts = test::load_json(test::golden("demo/prompts.json"));
  const auto ids = prompts[0]["prompt_ids"].get<std::vector<int32_t>>();
  test::ModelHarness parent(test::bundled_model(kModel));
  test::ModelHarness reference(out, Backend::kReference);
  test::ModelHarness cpu(out, Backend::kCpu);
  const std::vector<float> expected = parent.run({{0, ids}});
  const std::vector<float> by_reference = reference.run({{0, ids}});
  const std::vector<float> by_cpu = cpu.run({{0, ids}});
  EXPECT_LT(test::max_abs_diff(by_cpu, by_reference), 2e-3f);
  const size_t vocab_size = expected.size() / ids.size();
  size_t num_same = 0;
  for (size_t t = 0; t < ids.size(); ++t) {
    const auto row = [&](const std::vector<float>& logits) {
      return std::span(logits).subspan(t * vocab_size, vocab_size);
    };
    num_same += best_token(row(by_reference)) == best_token(row(expected));
  }
  EXPECT_GT(num_same, ids.size() * 8 / 10) << "of " << ids.size();
}

TEST_F(Pipeline, ShardsAndThreadsChangeNoTensor) {
  const fs::path one = dir_.path() / "one";
  const fs::path many = dir_.path() / "many";
  ASSERT_TRUE(quantize(one, size_t{1} << 40, 1));
  ASSERT_TRUE(quantize(many, size_t{2} << 20, 2));
  const ModelDir a = ModelDir::open(one).value();
  const ModelDir b = ModelDir::open(many).value();
  EXPECT_EQ(a.shards().size(), 1u);
  EXPECT_GT(b.shards().size(), 3u);
  ASSERT_EQ(a.tensor_names(), b.tensor_names());
  for (const std::string& name : a.tensor_names()) {
    const Tensor x = a.tensor(name).value();
    const Tensor y = b.tensor(name).value();
    ASSERT_EQ(x.num_bytes(), y.num_bytes());
    ASSERT_EQ(std::memcmp(x.data, y.data, x.num_bytes()), 0) << name;
  }
}

TEST_F(Pipeline, AQuantizedCheckpointIsNotQuantizedAgain) {
  const fs::path out = dir_.path() / "out";
  ASSERT_TRUE(quantize(out));
  QuantizeOptions options;
  options.recipe = bundled_recipe();
  const auto again = quantize_checkpoint(out, dir_.path() / "twice", options);
  ASSERT_FALSE(again);
  EXPECT_NE(again.error().message.find("already quantized"), std::string::npos);
  EXPECT_FALSE(fs::exists(dir_.path() / "twice"));
}

}  // namespace
}  // namespace nibble
