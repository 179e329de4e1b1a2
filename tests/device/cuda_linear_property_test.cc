// Products on a GPU against the reference: every layout, every path, awkward shapes. Where inputs
// are 16 bits and the output f32, both sides sum the same exact products and differ only in the
// order of the sums, so the bounds are tight.
#include <gtest/gtest.h>

#include <bit>
#include <cstring>

#include "device/cuda/linear.h"
#include "device/cuda/linear_weight.h"
#include "device/cuda_device_tensor.h"
#include "device/ref/ref_ops.h"

namespace nibble {
namespace {

using cuda::LinearPath;
using test::DeviceTensor;
using test::HostTensor;
using test::Prepared;
using test::relative_error;

struct QuantShape {
  int bits;
  int group;  // -1: one per row
  bool zero_points;
  DType scale_type;
};

// A quantized weight in the disk layout, with the nibbles and scales of a hard case: extremes of
// the range, a zero scale.
struct DiskWeight {
  std::vector<int32_t> packed;
  HostTensor scale;
  std::vector<int8_t> zero_point;
  LinearWeight weight;

  DiskWeight(std::mt19937& random, int out, int in, QuantShape shape)
      : packed(static_cast<size_t>(out) * static_cast<size_t>(in * shape.bits / 32)),
        scale(shape.scale_type, {out, shape.group < 0 ? 1 : in / shape.group}) {
    for (int32_t& word : packed) word = static_cast<int32_t>(random());
    const int64_t num_groups = scale.view().shape[1];
    std::vector<float> scales = test::normal_values(random, out * num_groups, 0.02f);
    scales[0] = 0;
    scale = HostTensor(shape.scale_type, {out, num_groups}, scales);
    const int half = 1 << (shape.bits - 1);
    std::uniform_int_distribution<int> any(-half, half - 1);
    if (shape.zero_points)
      for (int64_t i = 0; i < out * num_groups; ++i)
        zero_point.push_back(static_cast<int8_t>(i == 0 ? -half : i == 1 ? half - 1 : any(random)));
    weight.out_features = out;
    weight.in_features = in;
    weight.format = {shape.bits, shape.group, !shape.zero_points};
    weight.packed = {packed.data(), DType::kI32, {out, in * shape.bits / 32}};
    weight.scale = scale;
    if (shape.zero_points) weight.zero_point = {zero_point.data(), DType::kI8, {out, num_groups}};
  }
};

class CudaLinear : public testing::Test {
 protected:
  void SetUp() override {
    if (test::gpu() == nullptr) GTEST_SKIP() << "no GPU";
    workspace_ = std::make_unique<test::TestWorkspace>();
  }
  int pick(int low, int high) { return std::uniform_int_distribution(low, high)(random_); }
  HostTensor normal(DType dtype, Shape shape, float scale = 1) {
    return {dtype, shape, test::normal_values(random_, shape.num_elements(), scale)};
  }
  static cuda::Scalar scalar(DType dtype) {
    return dtype == DType::kF32   ? cuda::Scalar::kF32
           : dtype == DType::kF16 ? cuda::Scalar::kF16
                                  : cuda::Scalar::kBF16;
  }
  std::vector<float> run(const DeviceTensor& x, const Prepared& prepared, DType out_type,
                         LinearPath path) {
    const int64_t rows = x.view().shape[0];
    const DeviceTensor out(out_type, {rows, prepared.weight.out_features});
    cuda::launch_linear({x.view().data, scalar(x.view().dtype), cuda::weight_of(prepared.weight),
                         out.view().data, scalar(out_type), rows, path},
                        *workspace_, nullptr);
    NB_CUDA(cudaDeviceSynchronize());
    return out.floats();
  }
  void expect_equal(const LinearWeight& weight, DType x_type, int num_tokens, LinearPath path,
                    DenseStorage storage = DenseStorage::kPlain) {
    SCOPED_TRACE("[" + std::to_string(weight.out_features) + ", " +
                 std::to_string(weight.in_features) + "] x " + std::to_string(num_tokens) + " " +
                 std::string(dtype_name(x_type)) + " path " +
                 std::to_string(static_cast<int>(path)));
    const HostTensor x = normal(x_type, {num_tokens, weight.in_features});
    const HostTensor expected(DType::kF32, {num_tokens, weight.out_features});
    const bool fixed = takes_fixed_rows(weight, x_type, num_tokens, path);
    if (fixed) {
      const HostTensor scale(DType::kF32, weight.scale.shape);
      to_float(weight.scale, scale.view().as<float>());
      LinearWeight unrounded = weight;
      unrounded.scale = scale;
      reference_->ops().linear(x, unrounded, expected);
    } else {
      reference_->ops().linear(x, weight, expected);
    }
    const Prepared prepared(weight, storage);
    const DeviceTensor device_x(x);
    // What 14 bits beside the largest of 128 leave of activations of 8 and of 11 bits.
    const double exact = !fixed ? 1e-5 : x_type == DType::kBF16 ? 6e-5 : 3e-4;
    EXPECT_LE(relative_error(run(device_x, prepared, DType::kF32, path), expected.floats()), exact);
    if (x_type == DType::kF32) return;
    const double bound = x_type == DType::kBF16 ? 3e-3 : 4e-4;
    const std::vector<float> narrow = run(device_x, prepared, x_type, path);
    EXPECT_LE(relative_error(narrow, expected.floats()), bound);
    EXPECT_EQ(narrow, run(device_x, prepared, x_type, path)) << "depends on timing";
  }

  // Whether linear_fixed.cu serves the product: its weights are not rounded to 16 bits.
  static bool takes_fixed_rows(const LinearWeight& weight, DType x_type, int num_tokens,
                               LinearPath path) {
    if (!weight.quantized() || weight.format.num_bits != 4 || weight.scale.dtype != x_type ||
        dtype_size(x_type) != 2 || num_tokens > cuda::kFixedTokens ||
        (path != LinearPath::kAuto && path != LinearPath::kSkinny) ||
        weight.in_features % cuda::kFixedGroup != 0 || cuda::code_capability() < 80)
      return false;
    const int64_t group = weight.in_features / weight.scale.shape[1];
    if (group == 32 || group == 64) return num_tokens <= cuda::kFixedPartTokens;
    return weight.scale.shape[1] == 1 ||
           (group % 128 == 0 && std::has_single_bit(static_cast<uint64_t>(group / 64)));
  }

  std::mt19937 random_{test::test_seed()};
  std::unique_ptr<Device> reference_ = open_device(Backend::kReference).value();
  std::unique_ptr<test::TestWorkspace> workspace_;
};

constexpr LinearPath kPaths[] = {LinearPath::kAuto,  LinearPath::kSimple, LinearPath::kPre80,
                                 LinearPath::kQuads, LinearPath::kSkinny, LinearPath::kTiles,
                                 LinearPath::kDense};

TEST_F(CudaLinear, PreparedWeightsHoldTheValuesOfTheDiskLayout) {
  for (const QuantShape shape :
       {QuantShape{4, 32, true, DType::kBF16}, QuantShape{4, 64, true, DType::kF16},
        QuantShape{4, 128, true, DType::kBF16}, QuantShape{4, 128, false, DType::kF16},
        QuantShape{4, -1, false, DType::kBF16}, QuantShape{4, 128, true, DType::kF32},
        QuantShape{4, 96, true, DType::kBF16}, QuantShape{8, 128, true, DType::kBF16},
        QuantShape{8, -1, false, DType::kF16}}) {
    const int out = pick(1, 90);
    const int in = shape.group == 96 ? 192 : 128 * pick(1, 4);
    SCOPED_TRACE(std::to_string(shape.bits) + " bits, groups of " + std::to_string(shape.group));
    const DiskWeight disk(random_, out, in, shape);
    const Prepared prepared(disk.weight);
    const DeviceTensor values(shape.scale_type, {out, in});
    cuda::launch_dequantize(cuda::weight_of(prepared.weight), 0, out, values.view().data,
                            scalar(shape.scale_type), nullptr);
    NB_CUDA(cudaDeviceSynchronize());
    std::vector<float> expected(static_cast<size_t>(out * in));
    for (int row = 0; row < out; ++row)
      ref::dequantize_row(disk.weight, row, expected.data() + row * in);
    EXPECT_EQ(values.floats(), expected);
  }
}

TEST_F(CudaLinear, DenseWeights) {
  for (const LinearPath path : kPaths) {
    for (int trial = 0; trial < 12; ++trial) {
      const DType type = trial % 3 == 0 ? DType::kF32 : trial % 3 == 1 ? DType::kBF16 : DType::kF16;
      const int in = trial % 2 == 0 ? 64 * pick(1, 20) : pick(1, 300);
      const int out = trial % 4 == 0 ? 8 * pick(1, 60) : pick(1, 400);
      const HostTensor values = normal(type, {out, in}, 0.1f);
      LinearWeight weight;
      weight.out_features = out;
      weight.in_features = in;
      weight.dense = values;
      expect_equal(weight, type, trial < 6 ? pick(1, 9) : pick(10, 150), path);
      expect_equal(weight, DType::kF32, pick(1, 20), path);
    }
  }
}

// Weights as training leaves them, with what a window of exponents cannot hold: zeros of both
// signs, numbers below the normal range, outliers and, unless they shall be tame, infinities.
HostTensor hard_bfloats(std::mt19937& random, int out, int in, bool tame) {
  HostTensor values(DType::kBF16, {out, in}, test::normal_values(random, int64_t{out} * in, 0.02f));
  auto* bits = values.view().as<uint16_t>();
  const uint16_t hard[] = {0x0000, 0x8000, 0x0001, 0x807f, 0x0080, 0xc0a0,
                           0x2f80, 0xb31c, 0x4640, 0x7f80, 0xff80, 0x7fc0};
  const int kinds = tame ? 8 : 12;
  // One in 512 of the weights; half of what there is room for.
  for (int64_t i = 0; i < int64_t{out} * in / 512; ++i)
    bits[random() % (static_cast<uint64_t>(out) * static_cast<uint64_t>(in))] =
        hard[random() % static_cast<uint64_t>(kinds)];
  return values;
}

TEST_F(CudaLinear, CompactWeightsHoldTheBitsOfTheDisk) {
  if (cuda::code_capability() < 80) GTEST_SKIP() << "12-bit weights need sm_80";
  for (int trial = 0; trial < 8; ++trial) {
    const int out = trial == 0 ? 16 : pick(16, 20000 / (trial * trial));
    const int in = 64 * pick(1, 24);
    SCOPED_TRACE("[" + std::to_string(out) + ", " + std::to_string(in) + "]");
    const HostTensor values = hard_bfloats(random_, out, in, false);
    LinearWeight weight;
    weight.out_features = out;
    weight.in_features = in;
    weight.dense = values;
    const Prepared prepared(weight, DenseStorage::kCompact);
    ASSERT_TRUE(prepared.weight.compacted());
    if (out >= 256) {
      EXPECT_LT(prepared.weight.num_bytes(), values.view().num_bytes() * 4 / 5);
    }
    const int begin = pick(0, (out - 1) / 16) * 16;
    const int end = pick(begin + 1, out);
    const DeviceTensor all(DType::kBF16, {out, in});
    const DeviceTensor some(DType::kBF16, {end - begin, in});
    const cuda::Weight view = cuda::weight_of(prepared.weight);
    cuda::launch_dequantize(view, 0, out, all.view().data, cuda::Scalar::kBF16, nullptr);
    cuda::launch_dequantize(view, begin, end, some.view().data, cuda::Scalar::kBF16, nullptr);
    NB_CUDA(cudaDeviceSynchronize());
    const auto same = [](const Tensor& a, const Tensor& b) {
      return a.num_bytes() == b.num_bytes() && std::memcmp(a.data, b.data, a.num_bytes()) == 0;
    };
    EXPECT_TRUE(same(all.host().view(), values.view()));
    EXPECT_TRUE(same(some.host().view(), values.view().rows(begin, end)));
  }
}

TEST_F(CudaLinear, CompactWeights) {
  if (cuda::code_capability() < 80) GTEST_SKIP() << "12-bit weights need sm_80";
  for (const LinearPath path : kPaths) {
    for (const int num_tokens : {1, 4, 5, 8, 9, 16, 17, 33, 64, 65, 150}) {
      const int in = 64 * pick(1, 30);
      const int out = num_tokens % 2 == 0 ? 16 * pick(1, 40) : pick(16, 600);
      const HostTensor values = hard_bfloats(random_, out, in, true);
      LinearWeight weight;
      weight.out_features = out;
      weight.in_features = in;
      weight.dense = values;
      expect_equal(weight, DType::kBF16, num_tokens, path, DenseStorage::kCompact);
      if (num_tokens < 9)
        expect_equal(weight, DType::kF32, num_tokens, path, DenseStorage::kCompact);
    }
  }
}

// Where no weight lies outside the windows the sums are those of the plain weights, bit for bit.
TEST_F(CudaLinear, CompactWeightsSumAsPlainOnes) {
  if (cuda::code_capability() < 80) GTEST_SKIP() << "12-bit weights need sm_80";
  const HostTensor values = normal(DType::kBF16, {700, 640}, 0.02f);
  auto* bits = values.view().as<uint16_t>();
  for (int64_t i = 0; i < values.view().num_elements(); ++i)
    bits[i] = static_cast<uint16_t>((bits[i] & 0x807f) | (0x70 + (bits[i] >> 7 & 15)) << 7);
  LinearWeight weight;
  weight.out_features = 700;
  weight.in_features = 640;
  weight.dense = values;
  const Prepared plain(weight);
  const Prepared compact(weight, DenseStorage::kCompact);
  ASSERT_TRUE(compact.weight.compacted());
  for (const int num_tokens : {1, 8, 16}) {
    const DeviceTensor x(normal(DType::kBF16, {num_tokens, 640}));
    EXPECT_EQ(run(x, compact, DType::kF32, LinearPath::kSkinny),
              run(x, plain, DType::kF32, LinearPath::kSkinny));
  }
}

// Half of the weights are zero: no room to list them. They stay as they are, in memory of their
// own.
TEST_F(CudaLinear, WeightsWithoutACompactFormStayPlain) {
  if (cuda::code_capability() < 80) GTEST_SKIP() << "12-bit weights need sm_80";
  const HostTensor values = normal(DType::kBF16, {64, 256}, 0.02f);
  for (int64_t i = 0; i < values.view().num_elements(); i += 2) values.view().as<uint16_t>()[i] = 0;
  LinearWeight weight;
  weight.out_features = 64;
  weight.in_features = 256;
  weight.dense = values;
  const Prepared prepared(weight, DenseStorage::kCompact);
  EXPECT_FALSE(prepared.weight.compacted());
  expect_equal(weight, DType::kBF16, 3, LinearPath::kAuto, DenseStorage::kCompact);
}

TEST_F(CudaLinear, QuantizedWeights) {
  for (const LinearPath path : kPaths) {
    for (int trial = 0; trial < 24; ++trial) {
      const int groups[] = {32, 64, 128, -1};
      const DType type = trial % 2 == 0 ? DType::kBF16 : DType::kF16;
      const QuantShape shape{trial % 6 == 5 ? 8 : 4, groups[trial % 4], trial % 3 != 0, type};
      const int in = 128 * pick(1, 12);
      const int out = trial % 4 == 0 ? 16 * pick(1, 40) : pick(1, 500);
      const DiskWeight disk(random_, out, in, shape);
      const int tokens[] = {1, 8, 9, 16, 17, 33, 64, 65};
      expect_equal(disk.weight, type, tokens[trial % 8], path);
    }
  }
}

// The path of GPUs before sm_80, which any card runs; with the instructions of sm_70 only those.
TEST_F(CudaLinear, FewTokensBeforeSm80) {
  const auto expect_served = [&](const LinearWeight& weight, int tokens) {
    const Prepared prepared(weight, DenseStorage::kPlain);
    const DeviceTensor x(normal(DType::kF16, {tokens, weight.in_features}));
    const DeviceTensor out(DType::kF16, {tokens, weight.out_features});
    for (const LinearPath path : {LinearPath::kPre80, LinearPath::kQuads}) {
      EXPECT_TRUE(cuda::launch_linear_pre80(
          {x.view().data, cuda::Scalar::kF16, cuda::weight_of(prepared.weight), out.view().data,
           cuda::Scalar::kF16, tokens, path},
          *workspace_, nullptr));
      expect_equal(weight, DType::kF16, tokens, path);
    }
  };
  for (const int group : {32, 64, 128, 384, -1})
    for (const int tokens : {1, 2, 7, 8, 9, 16, 17, 33, 64}) {
      const int in = group > 0 ? 384 * pick(1, 4) : 64 * pick(1, 20);
      const DiskWeight disk(random_, pick(1, 200), in, {4, group, tokens % 2 == 0, DType::kF16});
      expect_served(disk.weight, tokens);
    }
  for (const int tokens : {1, 3, 5, 8}) {
    LinearWeight weight;
    weight.out_features = pick(1, 200);
    weight.in_features = int64_t{64} * pick(1, 20);
    const HostTensor values = normal(DType::kF16, {weight.out_features, weight.in_features}, 0.1f);
    weight.dense = values;
    expect_served(weight, tokens);
  }
}

// A prepared weight in one type meets activations of another: the values stay those of the disk.
TEST_F(CudaLinear, MixedTypes) {
  for (const DType scale_type : {DType::kF32, DType::kBF16, DType::kF16})
    for (const DType x_type : {DType::kF32, DType::kBF16, DType::kF16}) {
      const DiskWeight disk(random_, pick(1, 60), 256, {4, 128, true, scale_type});
      expect_equal(disk.weight, x_type, pick(1, 20), LinearPath::kAuto);
    }
}

// Tokens of several tiles, tiles of several thread blocks, last row blocks that are not full,
// groups of one scale and of several; with an odd number of units another path serves.
TEST_F(CudaLinear, TilesOfManyTokens) {
  for (const auto& [out, in, group] :
       {std::tuple(40, 17408, 128), std::tuple(4099, 1024, 256), std::tuple(8205, 384, 64),
        std::tuple(270, 640, 32), std::tuple(513, 512, -1), std::tuple(300, 320, 64)})
    for (const int num_tokens : {17, 40, 100, 290}) {
      const DType type = num_tokens == 40 ? DType::kF16 : DType::kBF16;
      const DiskWeight disk(random_, out, in, {4, group, true, type});
      expect_equal(disk.weight, type, num_tokens, LinearPath::kTiles);
    }
  if (cuda::code_capability() < 80) return;
  for (const int num_tokens : {17, 100, 290}) {
    const HostTensor values = hard_bfloats(random_, 2051, 896, true);
    LinearWeight weight;
    weight.out_features = 2051;
    weight.in_features = 896;
    weight.dense = values;
    expect_equal(weight, DType::kBF16, num_tokens, LinearPath::kTiles, DenseStorage::kCompact);
  }
}

// Several weights in one launch have the sums they have alone, but for where thread blocks divide
// them.
TEST_F(CudaLinear, SeveralWeightsInOneLaunch) {
  struct Case {
    DType type;
    int num_tokens;
    std::vector<int> outs;
  };
  const std::vector<int> mixed = {1030, 48, 300};
  std::vector<Case> cases;
  for (const int num_tokens : {20, 70, 130}) cases.push_back({DType::kBF16, num_tokens, mixed});
  for (const int num_tokens : {1, 3, 4, 5, 8, 9, 16, 32})
    for (const DType type : {DType::kF16, DType::kBF16})
      for (const std::vector<int>& outs : {mixed, {8100, 7990}, {9001, 1024, 520}, {3000, 100}})
        cases.push_back({type, num_tokens, outs});
  for (const auto& [type, num_tokens, outs] : cases) {
    SCOPED_TRACE(std::to_string(num_tokens) + " tokens of " + std::string(dtype_name(type)) +
                 ", first of " + std::to_string(outs[0]) + " outputs");
    const int in = num_tokens > 16 ? 1280 : 640;
    const DeviceTensor x(normal(type, {num_tokens, in}));
    std::vector<Prepared> weights;
    std::vector<DeviceTensor> results;
    std::vector<cuda::LinearLaunch> launches;
    for (const int out : outs) {
      const DiskWeight disk(random_, out, in, {4, 128, true, type});
      weights.emplace_back(disk.weight);
      results.emplace_back(DType::kF32, Shape{num_tokens, out});
      launches.push_back({x.view().data, scalar(type), cuda::weight_of(weights.back().weight),
                          results.back().view().data, cuda::Scalar::kF32, num_tokens});
    }
    cuda::launch_linear_group(launches.data(), static_cast<int>(outs.size()), *workspace_, nullptr);
    NB_CUDA(cudaDeviceSynchronize());
    for (size_t i = 0; i < outs.size(); ++i)
      EXPECT_LE(
          relative_error(results[i].floats(), run(x, weights[i], DType::kF32, LinearPath::kAuto)),
          1e-5);
  }
}

// Long rows and many row blocks: thread blocks share rows and hand their sums over. Few rows, many
// and very many are cut up differently.
TEST_F(CudaLinear, SharedRowsOfLargeWeights) {
  for (const auto& [out, in] :
       {std::pair(20, 2176), std::pair(40, 17408), std::pair(75, 2176), std::pair(4099, 1024),
        std::pair(8205, 384), std::pair(130, 64), std::pair(16053, 256), std::pair(34829, 256)}) {
    for (const int num_tokens : {1, 5, 11, 16, 31, 64}) {
      const DiskWeight disk(random_, out, in, {4, in == 64 ? 64 : 128, true, DType::kBF16});
      expect_equal(disk.weight, DType::kBF16, num_tokens, LinearPath::kSkinny);
    }
    for (const int group_size : {32, 64})
      for (const int num_tokens : {1, 3, 8}) {
        const DType type = num_tokens == 3 ? DType::kF16 : DType::kBF16;
        const DiskWeight disk(random_, out, in, {4, group_size, true, type});
        expect_equal(disk.weight, type, num_tokens, LinearPath::kSkinny);
      }
  }
}

TEST_F(CudaLinear, NoTokensTouchNothing) {
  const DiskWeight disk(random_, 32, 128, {4, 128, true, DType::kBF16});
  const Prepared prepared(disk.weight);
  for (const LinearPath path : kPaths) {
    const HostTensor none(DType::kBF16, {0, 128});
    EXPECT_TRUE(run(DeviceTensor(none), prepared, DType::kF32, path).empty());
  }
}

}  // namespace
}  // namespace nibble
