// Keys and values in every storage type: what a write may lose, and that both backends read the
// same values from the same bytes.
#include <gtest/gtest.h>

#include "device/device.h"
#include "device/host_tensor.h"
#include "device/wrap/checked_ops.h"

namespace nibble {
namespace {

using test::HostTensor;
using test::OwnedBatch;

struct Row {
  DType dtype;
  // A stored value differs by at most relative * |value| + absolute: half a unit in the last place,
  // and half the subnormal grid.
  float relative;
  float absolute;
};
constexpr Row kFormats[] = {
    {DType::kF32, 0, 0},
    {DType::kF16, 0x1p-11f, 0x1p-25f},
    {DType::kBF16, 0x1p-8f, 0},  // 2^-9 and a margin: ties
    {DType::kF8E4M3, 0x1p-4f, 0x1p-10f},
    {DType::kF8E5M2, 0x1p-3f, 0x1p-17f},
};

class KvFormats : public testing::Test {
 protected:
  std::unique_ptr<Device> reference_ = open_device(Backend::kReference).value();
  std::unique_ptr<Device> cpu_ = open_device(Backend::kCpu, 2).value();
  std::mt19937 random_{test::test_seed()};
  int pick(int low, int high) { return std::uniform_int_distribution(low, high)(random_); }
  HostTensor normal(DType dtype, Shape shape, float scale = 1) {
    return {dtype, shape, test::normal_values(random_, shape.num_elements(), scale)};
  }
};

TEST_F(KvFormats, AWriteLosesHalfAUnitInTheLastPlaceAtMost) {
  for (const Row& row : kFormats) {
    SCOPED_TRACE(std::string(dtype_name(row.dtype)));
    for (Device* device : {reference_.get(), cpu_.get()}) {
      const OwnedBatch batch({37});
      const HostTensor k = normal(DType::kF32, {37, 2, 16}, 3);
      const HostTensor v = normal(DType::kF32, {37, 2, 16}, 0.01f);
      const Shape shape{batch.num_blocks(), 16, 2, 16};
      const HostTensor keys(row.dtype, shape);
      const HostTensor values(row.dtype, shape);
      CheckedOps checked(device->ops());
      checked.kv_append(k, v, batch.view(), {keys, values, {row.dtype}});
      for (const auto& [stored, original] : {std::pair(&keys, &k), std::pair(&values, &v)}) {
        const std::vector<float> got = stored->floats();
        const std::vector<float> sent = original->floats();
        for (size_t i = 0; i < sent.size(); ++i)
          ASSERT_LE(std::fabs(got[i] - sent[i]), std::fabs(sent[i]) * row.relative + row.absolute)
              << sent[i];
      }
    }
  }
}

TEST_F(KvFormats, BothBackendsWriteTheSameBytes) {
  for (const Row& row : kFormats) {
    for (const DType activation : {DType::kF32, DType::kBF16, DType::kF16}) {
      OwnedBatch batch({pick(1, 20), pick(1, 20)}, {pick(0, 30), pick(0, 30)});
      std::shuffle(batch.table().begin(), batch.table().end(), random_);
      const HostTensor k = normal(activation, {batch.view().num_tokens, 2, 24}, 100);
      const HostTensor v = normal(activation, {batch.view().num_tokens, 2, 24}, 1e-4f);
      const Shape shape{batch.num_blocks(), 16, 2, 24};
      const HostTensor first[2] = {{row.dtype, shape}, {row.dtype, shape}};
      const HostTensor second[2] = {{row.dtype, shape}, {row.dtype, shape}};
      reference_->ops().kv_append(k, v, batch.view(), {first[0], first[1], {row.dtype}});
      cpu_->ops().kv_append(k, v, batch.view(), {second[0], second[1], {row.dtype}});
      EXPECT_EQ(first[0].bytes(), second[0].bytes());
      EXPECT_EQ(first[1].bytes(), second[1].bytes());
    }
  }
}

// The cache holds arbitrary codes; attention over it must equal attention over an F32 cache with
// the same values.
TEST_F(KvFormats, AttentionReadsExactlyWhatIsStored) {
  for (const Row& row : kFormats) {
    SCOPED_TRACE(std::string(dtype_name(row.dtype)));
    for (int trial = 0; trial < 8; ++trial) {
      const int num_kv_heads = pick(1, 3);
      const int num_heads = num_kv_heads * pick(1, 4);
      const int head_dim = 4 * pick(1, 20);  // tails of every vector width
      OwnedBatch batch({pick(1, 20), 1, pick(1, 3)}, {pick(0, 60), pick(0, 60), 0});
      std::shuffle(batch.table().begin(), batch.table().end(), random_);
      const int32_t num_tokens = batch.view().num_tokens;
      const HostTensor q = normal(DType::kF32, {num_tokens, num_heads, head_dim});
      const Shape shape{batch.num_blocks(), 16, num_kv_heads, head_dim};
      const HostTensor stored_k(row.dtype, shape);
      const HostTensor stored_v(row.dtype, shape);
      // Fill every position through kv_append itself.
      const OwnedBatch filler({batch.num_blocks() * 16});
      const Shape rows{filler.view().num_tokens, num_kv_heads, head_dim};
      reference_->ops().kv_append(normal(DType::kF32, rows), normal(DType::kF32, rows),
                                  filler.view(), {stored_k, stored_v, {row.dtype}});
      const HostTensor wide_k(DType::kF32, shape, stored_k.floats());
      const HostTensor wide_v(DType::kF32, shape, stored_v.floats());

      const float scale = 1 / std::sqrt(static_cast<float>(head_dim));
      const auto attend = [&](Device& device, const Tensor& k, const Tensor& v, DType dtype) {
        const HostTensor out(DType::kF32, q.view().shape);
        CheckedOps checked(device.ops());
        checked.attention({q, out, {k, v, {dtype}}, num_kv_heads, scale}, batch.view());
        return out.floats();
      };
      const std::vector<float> expected = attend(*reference_, wide_k, wide_v, DType::kF32);
      const std::vector<float> cpu_wide = attend(*cpu_, wide_k, wide_v, DType::kF32);
      EXPECT_EQ(attend(*reference_, stored_k, stored_v, row.dtype), expected);
      EXPECT_EQ(attend(*cpu_, stored_k, stored_v, row.dtype), cpu_wide) << "bit for bit";
      EXPECT_LT(test::largest_difference(cpu_wide, expected), 1e-5f);
    }
  }
}

}  // namespace
}  // namespace nibble
