// The simple operations on a GPU against the reference, over random and awkward shapes: odd widths,
// one row, none. Without a GPU every test is skipped, and the program says so.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "device/cuda_device_tensor.h"

namespace nibble {
namespace {

using test::DeviceArray;
using test::DeviceTensor;
using test::HostTensor;
using test::OwnedBatch;
using test::relative_error;

constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kF16};

// One rounding apart at most: both sides compute in f32 and round where the contract says, but sums
// and exponentials differ in their last bit.
double tolerance(DType dtype) {
  return dtype == DType::kF32 ? 2e-6 : dtype == DType::kBF16 ? 2e-3 : 3e-4;
}

TEST(CudaDevice, WithoutAGpuItSaysWhatIsMissingAndWhatToDo) {
  const auto opened = open_device(Backend::kCuda);
  if (opened) GTEST_SKIP() << "there is a GPU";
  EXPECT_EQ(opened.error().code, ErrorCode::kUnsupported);
  EXPECT_NE(opened.error().message.find("cuda: "), std::string::npos);
  EXPECT_NE(opened.error().message.find("CPU backend"), std::string::npos);
}

class CudaOpsProperty : public testing::Test {
 protected:
  void SetUp() override {
    if (test::gpu() == nullptr) GTEST_SKIP() << "no GPU";
  }
  Ops& gpu() { return test::gpu()->ops(); }
  Ops& reference() { return reference_->ops(); }
  int pick(int low, int high) { return std::uniform_int_distribution(low, high)(random_); }
  HostTensor normal(DType dtype, Shape shape, float scale = 1) {
    return {dtype, shape, test::normal_values(random_, shape.num_elements(), scale)};
  }
  DType any_type() { return kTypes[pick(0, 2)]; }
  int some_rows(int trial) { return trial == 0 ? 0 : trial == 1 ? 1 : pick(2, 70); }

  std::mt19937 random_{test::test_seed()};
  std::unique_ptr<Device> reference_ = open_device(Backend::kReference).value();
};

TEST_F(CudaOpsProperty, MemoryIsZeroedAndCopiesArrive) {
  Device& device = *test::gpu();
  const DeviceMemory memory = device.allocate(1000, "test").value();
  const DeviceMemory host = device.allocate_host(1000, "test").value();
  auto* bytes = static_cast<unsigned char*>(host.data());
  bytes[999] = 7;
  device.download(bytes, memory.data(), 1000);
  device.synchronize();
  EXPECT_TRUE(std::all_of(bytes, bytes + 1000, [](unsigned char b) { return b == 0; }));
  std::iota(bytes, bytes + 1000, static_cast<unsigned char>(1));
  device.upload(memory.data(), bytes, 500);
  device.copy(static_cast<std::byte*>(memory.data()) + 500, memory.data(), 500);
  const DeviceMemory back = device.allocate_host(1000, "test").value();
  device.download(back.data(), memory.data(), 1000);
  device.synchronize();
  EXPECT_EQ(std::memcmp(back.data(), bytes, 500), 0);
  EXPECT_EQ(std::memcmp(static_cast<std::byte*>(back.data()) + 500, bytes, 500), 0);
  EXPECT_GT(device.memory().free, size_t{0});
  EXPECT_LE(device.memory().free, device.memory().total);
}

TEST_F(CudaOpsProperty, AskingForTooMuchIsAnErrorThatNamesTheAsker) {
  const auto refused = test::gpu()->allocate(size_t{1} << 50, "the moon");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kOutOfMemory);
  EXPECT_NE(refused.error().message.find("the moon"), std::string::npos);
  EXPECT_TRUE(test::gpu()->allocate(1 << 20, "afterwards"));
}

TEST_F(CudaOpsProperty, EmbedAndGatherRows) {
  for (int trial = 0; trial < 12; ++trial) {
    const int rows = some_rows(trial);
    const int n = pick(1, 700);
    const int vocab = pick(1, 50);
    const HostTensor table = normal(any_type(), {vocab, n});
    std::vector<int32_t> ids;
    for (int i = 0; i < rows; ++i) ids.push_back(pick(0, vocab - 1));
    const DeviceArray<int32_t> device_ids(ids);
    const DType dtype = any_type();
    const HostTensor expected(dtype, {rows, n});
    reference().embed(table, ids.data(), expected);
    const DeviceTensor actual(dtype, {rows, n});
    gpu().embed(DeviceTensor(table), device_ids.data(), actual);
    EXPECT_EQ(actual.host().bytes(), expected.bytes());

    const HostTensor gathered(table.view().dtype, {rows, n});
    reference().gather_rows(table, ids.data(), gathered);
    const DeviceTensor device_gathered(table.view().dtype, {rows, n});
    gpu().gather_rows(DeviceTensor(table), device_ids.data(), device_gathered);
    EXPECT_EQ(device_gathered.host().bytes(), gathered.bytes());
  }
}

TEST_F(CudaOpsProperty, Norms) {
  const int widths[] = {1, 7, 64, 128, 256, 1000, 1024, 1031, 5120, 8192, 9000, 17408};
  for (const DType dtype : kTypes) {
    for (size_t w = 0; w < std::size(widths); ++w) {
      const int n = widths[w];
      const int rows = some_rows(static_cast<int>(w)) % 9;
      SCOPED_TRACE(std::string(dtype_name(dtype)) + " " + std::to_string(n));
      const HostTensor x = normal(dtype, {rows, n});
      const HostTensor weight = normal(any_type(), {n}, 0.3f);
      const HostTensor expected(dtype, {rows, n});
      reference().rms_norm(x, weight, 1e-6f, 1.0f, expected);
      const DeviceTensor in_place(x);
      gpu().rms_norm(in_place, DeviceTensor(weight), 1e-6f, 1.0f, in_place);
      EXPECT_LE(relative_error(in_place.floats(), expected.floats()), tolerance(dtype));

      const HostTensor heads(dtype, {rows, 1, n}, x.floats());
      const HostTensor gate = normal(dtype, {rows, 1, n});
      const HostTensor gated(dtype, {rows, 1, n});
      reference().gated_rms_norm(heads, gate, weight, 1e-6f, gated);
      const DeviceTensor actual(dtype, {rows, 1, n});
      gpu().gated_rms_norm(DeviceTensor(heads), DeviceTensor(gate), DeviceTensor(weight), 1e-6f,
                           actual);
      EXPECT_LE(relative_error(actual.floats(), gated.floats()), tolerance(dtype));
    }
  }
}

TEST_F(CudaOpsProperty, Elementwise) {
  for (int trial = 0; trial < 30; ++trial) {
    const DType dtype = kTypes[trial % 3];
    const int rows = some_rows(trial / 3);
    const int n = trial % 2 == 0 ? 8 * pick(1, 90) : pick(1, 700);
    SCOPED_TRACE(std::string(dtype_name(dtype)) + " " + std::to_string(rows) + " x " +
                 std::to_string(n));
    const HostTensor x = normal(dtype, {rows, n});
    const HostTensor y = normal(dtype, {rows, n});
    const HostTensor per_row = normal(dtype, {rows, 1});
    const auto compare = [&](auto run) {
      const HostTensor expected = x;  // copies
      run(reference(), expected.view(), y.view(), per_row.view());
      const DeviceTensor actual(x);
      run(gpu(), actual.view(), DeviceTensor(y).view(), DeviceTensor(per_row).view());
      EXPECT_LE(relative_error(actual.floats(), expected.floats()), tolerance(dtype));
    };
    using T = const Tensor&;
    compare([](Ops& ops, T a, T b, T) { ops.add(a, b); });
    compare([](Ops& ops, T a, T b, T) { ops.sigmoid_mul(a, b); });
    compare([](Ops& ops, T a, T, T c) { ops.sigmoid_mul(a, c); });
    compare([](Ops& ops, T a, T b, T) { ops.silu_mul(a, b, a); });
  }
}

TEST_F(CudaOpsProperty, CopiesOfParts) {
  for (int trial = 0; trial < 20; ++trial) {
    const DType dtype = kTypes[trial % 3];
    const int rows = some_rows(trial);
    const int heads = pick(1, 5);
    const int n = trial % 2 == 0 ? 8 * pick(1, 32) : pick(1, 65);
    const HostTensor pairs = normal(dtype, {rows, heads, 2, n});
    const HostTensor first(dtype, {rows, heads, n});
    const HostTensor second(dtype, {rows, heads, n});
    reference().split_pairs(pairs, first, second);
    const DeviceTensor device_first(dtype, {rows, heads, n});
    const DeviceTensor device_second(dtype, {rows, heads, n});
    gpu().split_pairs(DeviceTensor(pairs), device_first, device_second);
    EXPECT_EQ(device_first.host().bytes(), first.bytes());
    EXPECT_EQ(device_second.host().bytes(), second.bytes());

    const HostTensor x = normal(dtype, {rows, 2 * heads * n});
    const int width = pick(1, heads * n);
    const int begin = pick(0, heads * n);
    const HostTensor part(dtype, {rows, width});
    reference().slice_columns(x, begin, part);
    const DeviceTensor device_part(dtype, {rows, width});
    gpu().slice_columns(DeviceTensor(x), begin, device_part);
    EXPECT_EQ(device_part.host().bytes(), part.bytes());
  }
}

TEST_F(CudaOpsProperty, RotaryEmbedding) {
  for (int trial = 0; trial < 20; ++trial) {
    const DType dtype = kTypes[trial % 3];
    const int rows = some_rows(trial);
    const int heads = pick(1, 24);
    const int head_dim = 2 * pick(2, 128);
    const int rotary_dim = 2 * pick(1, head_dim / 2);
    std::vector<float> inv_freq;
    for (int i = 0; i < rotary_dim / 2; ++i)
      inv_freq.push_back(static_cast<float>(std::pow(1e7, -2.0 * i / rotary_dim)));
    std::vector<int32_t> positions;
    for (int i = 0; i < 3 * rows; ++i) positions.push_back(pick(0, 260000));
    const DeviceArray<int32_t> device_positions(positions);
    const HostTensor x = normal(dtype, {rows, heads, head_dim});
    const HostTensor expected = x;
    const DeviceTensor actual(x);
    RopeArgs args{expected, positions.data(), inv_freq.data(), rotary_dim, {3, 3, 2}, 1.1f};
    reference().rope(args);
    args.x = actual;
    args.positions = device_positions.data();
    gpu().rope(args);
    // Sines of angles far outside the first turn: the two libraries differ in the last bits.
    EXPECT_LE(relative_error(actual.floats(), expected.floats()), 3 * tolerance(dtype));
  }
}

class CudaKvAppend : public CudaOpsProperty {
 protected:
  // Appends k, v of a ragged batch with a shuffled table; returns the caches' bytes.
  struct Appended {
    HostTensor k;
    HostTensor v;
  };
  Appended append(const HostTensor& k, const HostTensor& v, const OwnedBatch& batch, DType type,
                  Shape shape) {
    HostTensor zeros(type, shape);
    const DeviceTensor cache_k(zeros);
    const DeviceTensor cache_v(zeros);
    const RaggedBatch host = batch.view();
    const auto array = [](const int32_t* from, int64_t count) {
      return DeviceArray<int32_t>(std::vector<int32_t>(from, from + count));
    };
    const auto starts = array(host.query_start, host.num_seqs + 1);
    const auto context = array(host.context_len, host.num_seqs);
    const auto table = array(host.block_table, host.num_seqs * host.max_blocks);
    RaggedBatch device = host;
    device.query_start = starts.data();
    device.context_len = context.data();
    device.block_table = table.data();
    gpu().kv_append(DeviceTensor(k), DeviceTensor(v), device, {cache_k, cache_v, {type}});
    return {cache_k.host(), cache_v.host()};
  }
  OwnedBatch ragged() {
    std::vector<int32_t> counts;
    std::vector<int32_t> context;
    for (int s = pick(1, 6); s > 0; --s) {
      counts.push_back(pick(0, 2) == 0 ? 0 : pick(1, 40));
      context.push_back(pick(0, 60));
    }
    OwnedBatch batch(counts, context);
    std::shuffle(batch.table().begin(), batch.table().end(), random_);
    return batch;
  }
};

TEST_F(CudaKvAppend, EqualsTheReferenceInWideTypes) {
  for (int trial = 0; trial < 18; ++trial) {
    const OwnedBatch batch = ragged();
    const DType dtype = kTypes[trial % 3];
    const DType cache_type = kTypes[trial / 3 % 3];
    const int heads = pick(1, 4);
    const int head_dim = 16 * pick(1, 16);
    const HostTensor k = normal(dtype, {batch.view().num_tokens, heads, head_dim});
    const HostTensor v = normal(dtype, {batch.view().num_tokens, heads, head_dim});
    const Shape shape{batch.num_blocks(), 16, heads, head_dim};
    const HostTensor expected_k(cache_type, shape);
    const HostTensor expected_v(cache_type, shape);
    reference().kv_append(k, v, batch.view(), {expected_k, expected_v, {cache_type}});
    const Appended actual = append(k, v, batch, cache_type, shape);
    EXPECT_EQ(actual.k.bytes(), expected_k.bytes());
    EXPECT_EQ(actual.v.bytes(), expected_v.bytes());
  }
}

// The value of an 8-bit float by the definition of its format; NaN codes give NaN.
float value_of_8_bits(uint8_t code, int mantissa_bits, int bias, bool has_infinity) {
  const int exponent = (code & 0x7f) >> mantissa_bits;
  const int mantissa = code & ((1 << mantissa_bits) - 1);
  const int largest = (1 << (7 - mantissa_bits)) - 1;
  const bool special =
      exponent == largest && (has_infinity || mantissa == (1 << mantissa_bits) - 1);
  if (special) return NAN;
  const float sign = code & 0x80 ? -1.0f : 1.0f;
  const auto fraction = static_cast<float>(mantissa) / static_cast<float>(1 << mantissa_bits);
  return sign * (exponent == 0 ? std::ldexp(fraction, 1 - bias)
                               : std::ldexp(1 + fraction, exponent - bias));
}

TEST_F(CudaKvAppend, EightBitTypesRoundToTheNearestEvenCode) {
  for (const DType type : {DType::kF8E4M3, DType::kF8E5M2}) {
    const int mantissa = type == DType::kF8E4M3 ? 3 : 2;
    const int bias = type == DType::kF8E4M3 ? 7 : 15;
    std::vector<float> codes(256);
    for (int code = 0; code < 256; ++code)
      codes[static_cast<size_t>(code)] =
          value_of_8_bits(static_cast<uint8_t>(code), mantissa, bias, type == DType::kF8E5M2);
    std::vector<float> values;
    for (int code = 0; code < 256; ++code) {
      const float value = codes[static_cast<size_t>(code)];
      if (std::isnan(value)) continue;
      values.push_back(value);
      const float up = code % 128 == 127 ? NAN : codes[static_cast<size_t>(code + 1)];
      if (!std::isnan(up)) {
        values.push_back((value + up) / 2);  // ties, exact in f32
        values.push_back(std::nextafter((value + up) / 2, value));
        values.push_back(std::nextafter((value + up) / 2, up));
      }
    }
    for (const float value : {1e9f, -1e9f, 1e-30f, 449.0f, 464.0f, 60000.0f})
      values.push_back(value);
    for (int i = 0; i < 2000; ++i)
      values.push_back(std::ldexp(test::normal_values(random_, 1)[0], pick(-18, 9)));
    values.resize((values.size() + 63) / 64 * 64);
    const int rows = static_cast<int>(values.size() / 64);
    const OwnedBatch batch({rows});
    const HostTensor x(DType::kF32, {rows, 1, 64}, values);
    const Appended actual = append(x, x, batch, type, {batch.num_blocks(), 16, 1, 64});
    for (size_t i = 0; i < values.size(); ++i) {
      const auto code = static_cast<uint8_t>(actual.k.bytes()[i]);
      const float error = std::fabs(codes[code] - values[i]);
      for (size_t other = 0; other < 256; ++other) {
        if (std::isnan(codes[other])) continue;
        const float distance = std::fabs(codes[other] - values[i]);
        ASSERT_LE(error, distance) << values[i] << " became " << codes[code];
        const bool tie = distance == error && codes[other] != codes[code];
        ASSERT_TRUE(!tie || code % 2 == 0) << values[i] << " is a tie";
      }
      ASSERT_EQ(std::signbit(codes[code]), std::signbit(values[i])) << values[i];
    }
    EXPECT_EQ(actual.k.bytes(), actual.v.bytes());
  }
}

}  // namespace
}  // namespace nibble
