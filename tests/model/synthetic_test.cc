// Random checkpoints: the right tensors, the same bytes for the same seed, values a model can bear.
#include <gtest/gtest.h>

#include <cmath>

#include "model/architectures.h"
#include "model/model.h"
#include "model/synthetic_shapes.h"
#include "model/synthetic_weights.h"
#include "support/temp_dir.h"

namespace nibble {
namespace {

Json config_of(std::string_view like, int layers, bool quantized) {
  return synthetic_config(like, {.num_layers = layers, .quantized = quantized}).value();
}

ModelDir write(const fs::path& path, const Json& config, uint64_t seed, int num_threads,
               size_t max_shard_bytes = 20'000'000'000) {
  ThreadPool pool(num_threads);
  CheckpointWriter writer =
      CheckpointWriter::create(path, {.max_shard_bytes = max_shard_bytes, .manifest = false})
          .value();
  EXPECT_TRUE(write_synthetic_checkpoint(config, seed, pool, writer));
  EXPECT_EQ(writer.total_tensor_bytes(), synthetic_bytes(config).value());
  EXPECT_TRUE(writer.finish());
  return ModelDir::open(path).value();
}

std::string bytes_of(const Tensor& tensor) {
  return {static_cast<const char*>(tensor.data), tensor.num_bytes()};
}

// Parameter counts and sizes as published for the 27B and as its layers add up for the 40B.
TEST(Synthetic, ShapesHaveThePublishedNumbersOfBytes) {
  EXPECT_EQ(synthetic_bytes(config_of("qwen3.6-40b", 0, false)).value(), 2 * 39'072'596'736u);
  const size_t packed = 28'185'722'880;  // weights in attention and MLP Linears
  EXPECT_EQ(
      synthetic_bytes(config_of("qwen3.6-40b", 0, true)).value(),
      packed / 2 + packed / 128 * 2 + packed / 128 / 2 + 384 * 16 + 2 * (39'072'596'736u - packed));
  EXPECT_EQ(synthetic_bytes(config_of("llama-8b", 0, false)).value(), 2 * 8'030'261'248u);
}

TEST(Synthetic, BytesDependOnTheSeedAndNotOnThreadsOrShards) {
  const test::TempDir dir;
  const Json config = config_of("demo", 4, true);
  const ModelDir one = write(dir.path() / "one", config, 7, 1);
  const ModelDir three = write(dir.path() / "three", config, 7, 3, 1'000'000);
  const ModelDir other = write(dir.path() / "other", config, 8, 1);
  EXPECT_GT(three.shards().size(), one.shards().size());
  ASSERT_EQ(one.tensor_names(), three.tensor_names());
  int num_different = 0;
  for (const std::string& name : one.tensor_names()) {
    const std::string bytes = bytes_of(one.tensor(name).value());
    EXPECT_EQ(bytes, bytes_of(three.tensor(name).value())) << name;
    num_different += bytes != bytes_of(other.tensor(name).value());
  }
  // All but the 16 constant shapes of quantized modules.
  EXPECT_EQ(num_different, static_cast<int>(one.tensor_names().size()) - 16);
}

TEST(Synthetic, WeightsInMemoryAreThoseOfTheFiles) {
  const test::TempDir dir;
  const Json config = config_of("demo", 4, true);
  const ModelDir files = write(dir.path() / "files", config, 7, 2);
  const ModelSpec spec = parse_model_config(config).value();
  ThreadPool pool(2);
  const SyntheticWeights memory =
      SyntheticWeights::make(spec, files.quantization(), 7, false, pool).value();
  for (const LinearModule& module : linear_modules(spec)) {
    if (module.name == "lm_head") continue;  // the embedding
    const LinearWeight a =
        files.linear(module.name, module.out_features, module.in_features).value();
    const LinearWeight b =
        memory.linear(module.name, module.out_features, module.in_features).value();
    ASSERT_EQ(a.quantized(), b.quantized()) << module.name;
    if (!a.quantized()) {
      EXPECT_EQ(bytes_of(a.dense), bytes_of(b.dense)) << module.name;
      continue;
    }
    EXPECT_EQ(bytes_of(a.packed), bytes_of(b.packed)) << module.name;
    EXPECT_EQ(bytes_of(a.scale), bytes_of(b.scale)) << module.name;
    EXPECT_EQ(bytes_of(a.zero_point), bytes_of(b.zero_point)) << module.name;
  }
}

// Shared buffers grow as larger tensors ask; what was handed out before stays as it was.
TEST(Synthetic, SharedWeightsStayWhereTheyAre) {
  const Json config = config_of("llama-8b", 1, true);
  const ModelSpec spec = parse_model_config(config).value();
  ThreadPool pool(2);
  const SyntheticWeights source =
      SyntheticWeights::make(spec, parse_quantization_config(config).value(), 1, true, pool)
          .value();
  const LinearWeight small = source.linear("model.layers.0.self_attn.k_proj", 64, 4096).value();
  const std::string before = bytes_of(small.packed) + bytes_of(small.scale);
  const LinearWeight large = source.linear("model.layers.0.mlp.up_proj", 640, 4096).value();
  EXPECT_NE(small.packed.data, large.packed.data);
  EXPECT_EQ(before, bytes_of(small.packed) + bytes_of(small.scale));
  const LinearWeight again = source.linear("model.layers.0.self_attn.q_proj", 512, 4096).value();
  EXPECT_EQ(again.packed.data, large.packed.data);
}

struct Moments {
  double mean = 0;
  double deviation = 0;
};
Moments moments(const Tensor& tensor) {
  std::vector<float> values(static_cast<size_t>(tensor.num_elements()));
  to_float(tensor, values.data());
  Moments m;
  for (const float value : values) m.mean += value;
  m.mean /= static_cast<double>(values.size());
  for (const float value : values) m.deviation += (value - m.mean) * (value - m.mean);
  m.deviation = std::sqrt(m.deviation / static_cast<double>(values.size()));
  return m;
}

TEST(Synthetic, MatricesHaveTheDeviationThatKeepsActivationsInSize) {
  const test::TempDir dir;
  const ModelDir dense = write(dir.path() / "dense", config_of("demo", 4, false), 3, 2);
  const ModelDir packed = write(dir.path() / "packed", config_of("demo", 4, true), 3, 2);
  const std::string name = "model.layers.0.mlp.down_proj";
  const double wanted = 1 / std::sqrt(768.0);
  const Moments plain = moments(dense.tensor(name + ".weight").value());
  EXPECT_NEAR(plain.mean, 0, 0.01 * wanted);
  EXPECT_NEAR(plain.deviation, wanted, 0.01 * wanted);

  const LinearWeight weight = packed.linear(name, 256, 768).value();
  std::vector<int8_t> codes(256 * 768);
  unpack_rows({weight.packed.as<int32_t>(), codes.size() / 8}, 256, 768, 4, codes);
  std::vector<float> values(codes.size());
  std::vector<float> scale(256 * 6);
  to_float(weight.scale, scale.data());
  for (size_t i = 0; i < codes.size(); ++i)
    values[i] =
        static_cast<float>(codes[i] - weight.zero_point.as<int8_t>()[i / 128]) * scale[i / 128];
  const Moments unpacked = moments({values.data(), DType::kF32, {256, 768}});
  EXPECT_NEAR(unpacked.mean, 0, 0.02 * wanted);
  EXPECT_NEAR(unpacked.deviation, wanted, 0.05 * wanted);

  // Decay: exp(A_log) in [1, 16), softplus(dt_bias) in [0.001, 0.1).
  std::vector<float> a_log(8);
  std::vector<float> dt_bias(8);
  to_float(dense.tensor("model.layers.0.linear_attn.A_log").value(), a_log.data());
  to_float(dense.tensor("model.layers.0.linear_attn.dt_bias").value(), dt_bias.data());
  for (size_t i = 0; i < 8; ++i) {
    EXPECT_GE(std::exp(a_log[i]), 0.99);
    EXPECT_LE(std::exp(a_log[i]), 16.1);
    const double step = std::log1p(std::exp(dt_bias[i]));
    EXPECT_GE(step, 0.00099);
    EXPECT_LE(step, 0.101);
  }
}

TEST(Synthetic, AnUnknownShapeNamesTheNearestAndTooManyLayersNameTheMost) {
  const auto unknown = synthetic_config("qwen3.6-40", {});
  ASSERT_FALSE(unknown);
  EXPECT_NE(unknown.error().message.find("did you mean qwen3.6-40b?"), std::string::npos)
      << unknown.error().message;
  const auto many = synthetic_config("demo", {.num_layers = 13});
  ASSERT_FALSE(many);
  EXPECT_NE(many.error().message.find("demo has 12 layers"), std::string::npos);
}

}  // namespace
}  // namespace nibble
