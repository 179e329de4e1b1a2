// The quantizer's arithmetic on a GPU against the host's: equal in every bit where the contract
// names each rounding, near where it is a sum. Without a GPU every test is skipped.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "device/cuda_device_tensor.h"
#include "quant/host_quant_ops.h"
#include "quant/observer.h"

namespace nibble {
namespace {

using test::DeviceTensor;
using test::HostTensor;

class CudaQuantProperty : public testing::Test {
 protected:
  void SetUp() override {
    if (test::gpu() == nullptr) GTEST_SKIP() << "no GPU";
  }
  QuantOps& gpu() { return *test::gpu()->quant_ops(); }
  QuantOps& host() { return host_; }
  int pick(int low, int high) { return std::uniform_int_distribution(low, high)(random_); }
  // Weights of a few magnitudes, some of them zero, some columns large.
  HostTensor weight(DType dtype, Shape shape) {
    std::vector<float> values = test::normal_values(random_, shape.num_elements(), 0.05f);
    for (size_t i = 0; i < values.size(); ++i) {
      if (pick(0, 50) == 0) values[i] = 0;
      if (i % static_cast<size_t>(shape[1]) % 37 == 5) values[i] *= 20;
    }
    return {dtype, shape, values};
  }
  std::vector<double> positive(int64_t count) {
    std::vector<double> values(static_cast<size_t>(count));
    for (double& value : values) value = std::exp(std::normal_distribution<double>()(random_));
    return values;
  }
  // Of inputs that share a few directions and never reach some columns.
  HostTensor gram_of_correlated(int64_t columns) {
    const int64_t tokens = 2 * columns;
    const std::vector<float> shared = test::normal_values(random_, columns, 1);
    std::vector<float> x = test::normal_values(random_, tokens * columns, 1);
    for (int64_t t = 0; t < tokens; ++t) {
      const auto common = static_cast<float>(pick(-3, 3));
      for (int64_t c = 0; c < columns; ++c) {
        float& value = x[static_cast<size_t>(t * columns + c)];
        value = c % 41 == 7 ? 0 : value + common * shared[static_cast<size_t>(c)];
      }
    }
    const HostTensor gram(DType::kF32, {columns, columns});
    host().add_gram(HostTensor(DType::kF32, {tokens, columns}, x).view(), gram.view());
    return gram;
  }
  // In as much memory as it asks for.
  Result<RoundedWeight> on_gpu_compensated(const Tensor& weight, const Tensor& gram,
                                           const QuantFormat& grid, const RangeSearch& search,
                                           std::span<const float> shares,
                                           Compensation compensation) {
    const DeviceMemory room =
        test::gpu()
            ->allocate(gpu().compensation_bytes(weight.shape[0], weight.shape[1], grid), "test")
            .value();
    compensation.room = room.data();
    return gpu().compensate(weight, gram, grid, search, shares, compensation);
  }
  QuantFormat format() {
    constexpr int kGroups[] = {32, 64, 128, -1};
    return {.num_bits = pick(0, 3) == 0 ? 8 : 4,
            .group_size = kGroups[pick(0, 3)],
            .symmetric = pick(0, 2) == 0};
  }
  Shape shape(const QuantFormat& format) {
    // With one group a row its length may be anything.
    return {pick(1, 40), format.group_size < 0 ? pick(1, 700) : format.group_size * pick(1, 6)};
  }

  std::mt19937 random_{test::test_seed()};
  std::unique_ptr<Device> cpu_ = open_device(Backend::kCpu, 2).value();
  ThreadPool pool_{2};
  HostQuantOps host_{cpu_->ops(), pool_};
};

void expect_same_bytes(const HostTensor& found, const HostTensor& expected, const char* what) {
  ASSERT_EQ(found.bytes().size(), expected.bytes().size()) << what;
  EXPECT_EQ(std::memcmp(found.view().data, expected.view().data, expected.view().num_bytes()), 0)
      << what;
}

TEST_F(CudaQuantProperty, RoundingAndTrialsAreTheSameInEveryBit) {
  constexpr const char* kObservers[] = {"memoryless_minmax", "mse", "imatrix_mse"};
  for (int trial = 0; trial < 120; ++trial) {
    const DType dtype = trial % 2 == 0 ? DType::kBF16 : DType::kF16;
    const QuantFormat grid = format();
    const HostTensor w = weight(dtype, shape(grid));
    const int64_t columns = w.view().shape[1];
    const Observer observer = make_observer(kObservers[trial % 3]).value();
    const RangeSearch search = observer.range_search(dtype);
    std::vector<float> importance;
    for (const double value : positive(columns)) importance.push_back(static_cast<float>(value));
    const std::vector<float> shares = observer.shares(importance, columns);
    SCOPED_TRACE(kObservers[trial % 3] + std::string(" of ") + w.view().shape.to_string() +
                 " in groups of " + std::to_string(grid.group_size));

    const DeviceTensor on_gpu(w);
    const HostTensor values(dtype, w.view().shape);
    const DeviceTensor values_on_gpu(w);
    std::memcpy(values.view().data, w.view().data, w.view().num_bytes());
    RoundedWeight expected;
    RoundedWeight found;
    host().round(values.view(), grid, search, shares, &expected);
    gpu().round(values_on_gpu, grid, search, shares, &found);
    EXPECT_EQ(found.packed, expected.packed);
    EXPECT_EQ(found.parameters.scale, expected.parameters.scale);
    EXPECT_EQ(found.parameters.zero_point, expected.parameters.zero_point);
    EXPECT_NEAR(found.squared_error, expected.squared_error, 1e-9 * expected.squared_error);
    EXPECT_NEAR(found.squared_sum, expected.squared_sum, 1e-9 * expected.squared_sum);
    expect_same_bytes(values_on_gpu.host(), values, "rounded");

    const std::vector<double> scales = positive(columns);
    const std::vector<double> factors = positive(columns);
    ASSERT_TRUE(
        host().trial_weight(w.view(), scales, factors, grid, search, shares, values.view()));
    ASSERT_TRUE(gpu().trial_weight(on_gpu, scales, factors, grid, search, shares, values_on_gpu));
    expect_same_bytes(values_on_gpu.host(), values, "trial");
  }
}

TEST_F(CudaQuantProperty, CompensationIsTheSameInEveryBit) {
  constexpr const char* kObservers[] = {"memoryless_minmax", "mse", "imatrix_mse"};
  for (int trial = 0; trial < 40; ++trial) {
    const DType dtype = trial % 2 == 0 ? DType::kBF16 : DType::kF16;
    QuantFormat grid = format();
    const int64_t columns = trial % 5 == 4        ? 130 + pick(1, 200)
                            : grid.group_size < 0 ? pick(1, 140)
                                                  : grid.group_size * pick(1, 5);
    if (trial % 5 == 4) grid.group_size = -1;
    const HostTensor w = weight(dtype, {pick(1, 150), columns});
    const Observer observer = make_observer(kObservers[trial % 3]).value();
    const RangeSearch search = observer.range_search(dtype);
    std::vector<float> importance;
    for (const double value : positive(columns)) importance.push_back(static_cast<float>(value));
    const std::vector<float> shares = observer.shares(importance, columns);
    Compensation compensation;
    compensation.gptq.act_order = trial % 4 < 2;
    if (trial % 3 != 0) compensation.refinement = {.sweeps = pick(0, 4), .dampening = 0.02f};
    SCOPED_TRACE(kObservers[trial % 3] + std::string(" of ") + w.view().shape.to_string() +
                 " in groups of " + std::to_string(grid.group_size) + ", trial " +
                 std::to_string(trial));

    const HostTensor gram = gram_of_correlated(columns);
    const DeviceTensor gram_on_gpu(gram);
    const std::vector<double> factors = positive(columns);
    host().scale_gram(gram.view(), factors);
    gpu().scale_gram(gram_on_gpu, factors);
    expect_same_bytes(gram_on_gpu.host(), gram, "gram");

    const DeviceTensor on_gpu(w);
    const Result<RoundedWeight> found =
        on_gpu_compensated(on_gpu, gram_on_gpu, grid, search, shares, compensation);
    const Result<RoundedWeight> expected =
        host().compensate(w.view(), gram.view(), grid, search, shares, compensation);
    ASSERT_TRUE(expected) << expected.error().message;
    ASSERT_TRUE(found) << found.error().message;
    EXPECT_EQ(found->packed, expected->packed);
    EXPECT_EQ(found->parameters.scale, expected->parameters.scale);
    EXPECT_EQ(found->parameters.zero_point, expected->parameters.zero_point);
    EXPECT_NEAR(found->squared_error, expected->squared_error, 1e-9 * expected->squared_error);
    expect_same_bytes(on_gpu.host(), w, "compensated");
  }
}

TEST_F(CudaQuantProperty, DampeningGoesAsFarAsOnTheHost) {
  const auto pairs = [](float beside) {
    std::vector<float> gram(size_t{64} * 64);
    for (size_t i = 0; i < 64; ++i) {
      gram[i * 64 + i] = 1;
      gram[i * 64 + (i ^ 1)] = beside;
    }
    return HostTensor(DType::kF32, {64, 64}, gram);
  };
  const QuantFormat grid{.num_bits = 4, .group_size = 32, .symmetric = false};
  const HostTensor w = weight(DType::kBF16, {20, 64});
  for (const float beside : {1.5f, 100.0f, NAN}) {
    HostTensor gram = pairs(beside);
    if (std::isnan(beside)) gram.view().as<float>()[0] = NAN;
    const HostTensor values(DType::kBF16, w.view().shape, w.floats());
    const DeviceTensor on_gpu(w);
    const auto found = on_gpu_compensated(on_gpu, DeviceTensor(gram), grid, {}, {}, {});
    const auto expected = host().compensate(values.view(), gram.view(), grid, {}, {}, {});
    ASSERT_EQ(bool(found), bool(expected)) << beside;
    EXPECT_EQ(bool(found), beside == 1.5f);
    if (found) {
      EXPECT_EQ(found->packed, expected->packed);
    } else {
      EXPECT_EQ(found.error().message, expected.error().message);
    }
    expect_same_bytes(on_gpu.host(), values, "weight");
  }
}

// The exponent 2.4 of an F32 error is a library's: ranges of equal worth may be told apart
// otherwise.
TEST_F(CudaQuantProperty, F32WeightsAreRoundedAsWell) {
  for (const char* name : {"memoryless_minmax", "mse", "imatrix_mse"}) {
    const QuantFormat grid{.num_bits = 4, .group_size = 128, .symmetric = false};
    const HostTensor w = weight(DType::kF32, {64, 512});
    const Observer observer = make_observer(name).value();
    const RangeSearch search = observer.range_search(DType::kF32);
    const std::vector<float> shares(observer.needs_importance() ? 512 : 0, 1.0f);
    const DeviceTensor on_gpu(w);
    RoundedWeight expected;
    RoundedWeight found;
    host().round(w.view(), grid, search, shares, &expected);
    gpu().round(on_gpu, grid, search, shares, &found);
    size_t different = 0;
    for (size_t g = 0; g < expected.parameters.scale.size(); ++g)
      different += found.parameters.scale[g] != expected.parameters.scale[g];
    EXPECT_LE(different, name == std::string("mse") ? 2u : 0u) << name;
  }
}

TEST_F(CudaQuantProperty, ScalesFoldTheSameWay) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    const HostTensor w = weight(dtype, {pick(2, 50), pick(1, 300)});
    const std::vector<double> columns = positive(w.view().shape[1]);
    const std::vector<double> rows = positive(pick(1, static_cast<int>(w.view().shape[0])));
    const DeviceTensor on_gpu(w);
    gpu().scale_columns(on_gpu, columns);
    gpu().divide_last_rows(on_gpu, rows);
    host().scale_columns(w.view(), columns);
    host().divide_last_rows(w.view(), rows);
    expect_same_bytes(on_gpu.host(), w, "smoothed");
  }
}

TEST_F(CudaQuantProperty, WhatIsNotFiniteIsSeen) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    std::vector<float> values(size_t{3} * 128, 1.0f);
    EXPECT_TRUE(gpu().all_finite(DeviceTensor(HostTensor(dtype, {3, 128}, values))));
    values[200] = NAN;
    EXPECT_FALSE(gpu().all_finite(DeviceTensor(HostTensor(dtype, {3, 128}, values))));
    values[200] = -INFINITY;
    const DeviceTensor broken(HostTensor(dtype, {3, 128}, values));
    EXPECT_FALSE(gpu().all_finite(broken));
    const std::vector<double> ones(128, 1.0);
    const DeviceTensor out(dtype, {3, 128});
    EXPECT_FALSE(gpu().trial_weight(broken, ones, ones, {}, {}, {}, out));
  }
}

TEST_F(CudaQuantProperty, SumsAreNear) {
  const auto expect_near = [](double found, double expected, double tolerance, const char* what) {
    EXPECT_NEAR(found, expected, tolerance * std::max(std::fabs(expected), 1e-12)) << what;
  };
  for (int trial = 0; trial < 12; ++trial) {
    const DType dtype = trial % 3 == 0 ? DType::kF32 : trial % 3 == 1 ? DType::kBF16 : DType::kF16;
    const int64_t tokens = trial == 0 ? 0 : pick(1, 200);
    const int64_t columns = trial < 3 ? pick(1, 60) : 64 * pick(1, 5);
    const HostTensor x = weight(dtype, {tokens, columns});
    const DeviceTensor x_on_gpu(x);

    const HostTensor sums(DType::kF64, {2, columns});
    const DeviceTensor sums_on_gpu(sums);
    const HostTensor gram(DType::kF32, {columns, columns});
    const DeviceTensor gram_on_gpu(gram);
    for (int again = 0; again < 2; ++again) {
      host().add_moments(x.view(), sums.view());
      gpu().add_moments(x_on_gpu, sums_on_gpu);
      host().add_gram(x.view(), gram.view());
      gpu().add_gram(x_on_gpu, gram_on_gpu);
    }
    const HostTensor found = sums_on_gpu.host();
    for (int64_t i = 0; i < 2 * columns; ++i)
      expect_near(found.view().as<double>()[i], sums.view().as<double>()[i], 1e-12, "moment");
    // F32 inputs may be rounded to 11 bits.
    EXPECT_LE(test::relative_error(gram_on_gpu.floats(), gram.floats()),
              dtype == DType::kF32 ? 1e-3 : 1e-5);

    const HostTensor y = weight(dtype, {tokens, columns});
    double expected = 1;
    double difference = 1;
    host().add_squared_difference(x.view(), y.view(), &expected);
    gpu().add_squared_difference(x_on_gpu, DeviceTensor(y), &difference);
    expect_near(difference, expected, 1e-12, "squared difference");

    const HostTensor w = weight(dtype, {pick(1, 90), columns});
    const HostTensor v = weight(dtype, w.view().shape);
    expect_near(gpu().output_error(DeviceTensor(w), DeviceTensor(v), gram_on_gpu),
                host().output_error(w.view(), v.view(), gram.view()), 2e-3, "output error");

    const QuantFormat grid{.group_size = trial < 3 ? -1 : 64};
    std::vector<double> shares(static_cast<size_t>(columns), 0.5);
    std::vector<double> shares_on_gpu = shares;
    host().add_group_shares(w.view(), grid, shares);
    gpu().add_group_shares(DeviceTensor(w), grid, shares_on_gpu);
    for (size_t c = 0; c < shares.size(); ++c)
      expect_near(shares_on_gpu[c], shares[c], 1e-12, "share");
  }
}

}  // namespace
}  // namespace nibble
