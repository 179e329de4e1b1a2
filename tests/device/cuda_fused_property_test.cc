// The fused forms of Ops on a GPU against the calls they stand for, on the same GPU: the same
// values, bit for bit in 16 bits. And the greedy choice against the reference. Without a GPU every
// test is skipped, and the program says so.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "device/cuda_device_tensor.h"

namespace nibble {
namespace {

using test::DeviceArray;
using test::DeviceTensor;
using test::HostTensor;
using test::OwnedBatch;
using test::Prepared;
using test::relative_error;

class CudaFusedProperty : public testing::Test {
 protected:
  void SetUp() override {
    if (test::gpu() == nullptr) GTEST_SKIP() << "no GPU";
  }
  Ops& gpu() { return test::gpu()->ops(); }
  int pick(int low, int high) { return std::uniform_int_distribution(low, high)(random_); }
  HostTensor normal(DType dtype, Shape shape, float scale = 1) {
    return {dtype, shape, test::normal_values(random_, shape.num_elements(), scale)};
  }
  // In f32 a compiler may contract a product and a sum differently in the two forms.
  static void expect_equal(const DeviceTensor& fused, const DeviceTensor& plain, const char* what) {
    if (plain.view().dtype == DType::kF32) {
      EXPECT_LT(relative_error(fused.floats(), plain.floats()), 2e-6) << what;
    } else {
      EXPECT_EQ(fused.host().bytes(), plain.host().bytes()) << what;
    }
  }
  // A batch with its arrays on the GPU. `padding` rows of no sequence follow.
  struct DeviceBatch {
    explicit DeviceBatch(const OwnedBatch& owned)
        : host(owned.view()),
          query_start(copy(host.query_start, host.num_seqs + 1)),
          context_len(copy(host.context_len, host.num_seqs)),
          table(copy(host.block_table, host.num_seqs * host.max_blocks)),
          slots(copy(host.state_slot, host.num_seqs)),
          fresh(copy(host.state_is_fresh, host.num_seqs)) {}
    RaggedBatch view() const {
      RaggedBatch batch = host;
      batch.query_start = query_start.data();
      batch.context_len = context_len.data();
      batch.block_table = table.data();
      batch.state_slot = slots.data();
      batch.state_is_fresh = fresh.data();
      return batch;
    }
    template <class T>
    static DeviceArray<T> copy(const T* values, int32_t count) {
      return DeviceArray<T>(std::vector<T>(values, values + count));
    }
    RaggedBatch host;
    DeviceArray<int32_t> query_start, context_len, table, slots;
    DeviceArray<uint8_t> fresh;
  };

  std::mt19937 random_{test::test_seed()};
};

constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kF16};

TEST_F(CudaFusedProperty, AddAndNorm) {
  for (const DType dtype : kTypes)
    for (const int n : {7, 256, 1024, 5120, 9000})
      for (const int rows : {0, 1, 33}) {
        SCOPED_TRACE(testing::Message() << dtype_name(dtype) << " " << rows << " x " << n);
        const HostTensor x = normal(dtype, {rows, n});
        const DeviceTensor y(normal(dtype, {rows, n}));
        const DeviceTensor weight(normal(DType::kBF16, {n}));
        const DeviceTensor x1(x), x2(x), out1(dtype, {rows, n}), out2(dtype, {rows, n});
        gpu().add_rms_norm(x1, y, weight, 1e-6f, 1.0f, out1);
        gpu().Ops::add_rms_norm(x2, y, weight, 1e-6f, 1.0f, out2);
        expect_equal(x1, x2, "sum");
        expect_equal(out1, out2, "norm");
      }
}

TEST_F(CudaFusedProperty, ProductsOfOneInput) {
  for (const DType dtype : kTypes)
    for (const int rows : {0, 1, 3, 8, 9, 40}) {
      SCOPED_TRACE(testing::Message() << dtype_name(dtype) << " " << rows);
      const int in = 64 * pick(1, 9);
      const DeviceTensor x(normal(dtype, {rows, in}));
      const int outs[] = {pick(1, 400), 48, pick(1, 90)};
      std::vector<DeviceTensor> weights, fused, plain;
      std::vector<LinearWeight> linears(3);
      for (size_t i = 0; i < 3; ++i) {
        weights.emplace_back(normal(dtype, {outs[i], in}, 0.1f));
        linears[i].out_features = outs[i];
        linears[i].in_features = in;
        linears[i].dense = weights[i];
        fused.emplace_back(dtype, Shape{rows, outs[i]});
        plain.emplace_back(dtype, Shape{rows, outs[i]});
        gpu().linear(x, linears[i], plain[i]);
      }
      gpu().linear_group(
          x, {{&linears[0], fused[0]}, {&linears[1], fused[1]}, {&linears[2], fused[2]}});
      for (size_t i = 0; i < 3; ++i) expect_equal(fused[i], plain[i], "product");
    }
}

// A packed weight of `in` inputs on the GPU.
Prepared packed_weight(std::mt19937& random, int64_t out, int64_t in) {
  std::vector<int32_t> packed(static_cast<size_t>(out * in / 8));
  for (int32_t& word : packed) word = static_cast<int32_t>(random());
  const HostTensor scale(DType::kBF16, {out, in / 128},
                         test::normal_values(random, out * in / 128, 0.02f));
  LinearWeight disk;
  disk.out_features = out;
  disk.in_features = in;
  disk.format = {4, 128, true};
  disk.packed = {packed.data(), DType::kI32, {out, in / 8}};
  disk.scale = scale;
  return Prepared(disk);
}

// Operations leave activations of few tokens in fixed point for the product after them, which is to
// be that of the same activations from elsewhere: whoever wrote them, and whatever was written
// since.
TEST_F(CudaFusedProperty, ActivationsInFixedPointAreThoseOfTheTensor) {
  for (const int n : {256, 1024, 5120})
    for (const int rows : {1, 3, 4, 5, 8, 9}) {
      SCOPED_TRACE(testing::Message() << rows << " rows of " << n);
      const Prepared packed = packed_weight(random_, 48, n);
      const DeviceTensor x(normal(DType::kBF16, {rows, n}, 3)), y(normal(DType::kBF16, {rows, n}));
      const DeviceTensor weight(normal(DType::kBF16, {n}));
      const DeviceTensor act(DType::kBF16, {rows, n});
      const auto expect_product = [&](const DeviceTensor& of, const char* what) {
        const DeviceTensor first(DType::kBF16, {rows, 48}), second(DType::kBF16, {rows, 48});
        gpu().linear(of, packed.weight, first);
        gpu().linear(DeviceTensor(of.host()), packed.weight, second);
        expect_equal(first, second, what);
      };
      gpu().rms_norm(x, weight, 1e-6f, 1, act);
      expect_product(act, "norm");
      gpu().add_rms_norm(x, y, weight, 1e-6f, 1, act);
      expect_product(act, "sum and norm");
      gpu().silu_mul(x, y, act);
      expect_product(act, "SwiGLU");
      gpu().sigmoid_mul(act, y);
      expect_product(act, "gate");
      gpu().add(act, x);
      expect_product(act, "written by an operation that leaves none");
      gpu().rms_norm(x, weight, 1e-6f, 1, act);
      gpu().add(act, x);
      expect_product(act, "written again");
      gpu().rms_norm(x, weight, 1e-6f, 1, act);
      test::gpu()->copy(act.view().data, y.view().data, act.view().num_bytes());
      expect_product(act, "copied over");
      gpu().rms_norm(x, weight, 1e-6f, 1, act);
      const DeviceTensor other(DType::kBF16, {rows, 48});
      gpu().linear(y, packed.weight, other);
      expect_product(act, "behind a product of other rows");
      const Prepared square = packed_weight(random_, n, n);
      gpu().rms_norm(x, weight, 1e-6f, 1, act);
      gpu().linear(y, square.weight, act);
      expect_product(act, "written by a product");
    }
}

// What no fixed point can hold comes out as NaN, in the rows it is in.
TEST_F(CudaFusedProperty, FixedPointOfExtremes) {
  constexpr int kIn = 256;
  const Prepared packed = packed_weight(random_, 16, kIn);
  std::vector<float> values(5 * kIn, 0.0f);  // row 0: zeros
  values[kIn + 7] = 3e38f;                   // row 1: beside zeros
  values[2 * kIn + 9] = 1e-38f;
  values[3 * kIn + 1] = std::numeric_limits<float>::infinity();
  values[4 * kIn + 200] = std::numeric_limits<float>::quiet_NaN();
  const DeviceTensor out(DType::kF32, {5, 16});
  gpu().linear(DeviceTensor(HostTensor(DType::kBF16, {5, kIn}, values)), packed.weight, out);
  const std::vector<float> result = out.floats();
  for (size_t n = 0; n < 16; ++n) {
    EXPECT_EQ(result[n], 0.0f);
    EXPECT_FALSE(std::isnan(result[16 + n]));
    EXPECT_LT(std::abs(result[32 + n]), 1e-30f);
    if (cuda::code_capability() >= 80) {
      EXPECT_TRUE(std::isnan(result[48 + n]));
    } else {  // no fixed point there
      EXPECT_FALSE(std::isfinite(result[48 + n]));
    }
    EXPECT_TRUE(std::isnan(result[64 + n]));
  }
}

TEST_F(CudaFusedProperty, DeltaRuleAndItsNorm) {
  for (const DType dtype : kTypes)
    for (const int dim : {128, 64})
      for (const auto& counts : {std::vector<int32_t>{1}, {1, 1, 1}, {3, 0, 2}, {70, 1}, {300}})
        for (const int copies : {1, 40}) {  // of the batch: heads in quarters, heads whole
          std::vector<int32_t> all;
          for (int i = 0; i < copies; ++i) all.insert(all.end(), counts.begin(), counts.end());
          const OwnedBatch owned(all, {}, false);
          const DeviceBatch batch(owned);
          const int32_t tokens = batch.host.num_tokens;
          if (tokens > 3000) continue;
          const int key_heads = 2, heads = 6;
          SCOPED_TRACE(testing::Message() << dtype_name(dtype) << " " << dim << " tokens " << tokens
                                          << " seqs " << batch.host.num_seqs);
          const Shape keys{tokens, key_heads, dim}, values{tokens, heads, dim};
          const DeviceTensor q(normal(dtype, keys)), k(normal(dtype, keys));
          const DeviceTensor v(normal(dtype, values)), z(normal(dtype, values));
          const DeviceTensor decay(
              HostTensor(DType::kF32, {tokens, heads},
                         std::vector<float>(static_cast<size_t>(tokens) * heads, -0.3f)));
          const DeviceTensor beta(
              HostTensor(DType::kF32, {tokens, heads},
                         std::vector<float>(static_cast<size_t>(tokens) * heads, 0.6f)));
          const DeviceTensor weight(normal(DType::kBF16, {dim}));
          const HostTensor state = normal(DType::kF32, {batch.host.num_seqs, heads, dim, dim});
          const DeviceTensor state1(state), state2(state);
          const DeviceTensor out1(dtype, values), out2(dtype, values);
          gpu().gated_delta_net_normed({q, k, v, decay, beta, state1, out1}, batch.view(), z,
                                       weight, 1e-6f);
          gpu().Ops::gated_delta_net_normed({q, k, v, decay, beta, state2, out2}, batch.view(), z,
                                            weight, 1e-6f);
          expect_equal(out1, out2, "out");
          EXPECT_EQ(state1.host().bytes(), state2.host().bytes()) << "state";
        }
}

TEST_F(CudaFusedProperty, DeltaNetInputs) {
  for (const DType dtype : kTypes)
    for (const auto& counts : {std::vector<int32_t>{1, 1, 1}, {5, 0, 200}, {1}}) {
      const OwnedBatch owned(counts);
      const DeviceBatch batch(owned);
      const int32_t tokens = batch.host.num_tokens;
      const int key = 2 * pick(1, 40), value = pick(1, 100), channels = 2 * key + value;
      const DeviceTensor x(normal(dtype, {tokens, channels}));
      const DeviceTensor weight(normal(DType::kBF16, {channels, 4}));
      const HostTensor state = normal(dtype, {batch.host.num_seqs, channels, 3});
      const DeviceTensor state1(state), state2(state), scratch(dtype, {tokens, channels});
      const DeviceTensor q1(dtype, {tokens, 2, key / 2}), q2(dtype, {tokens, 2, key / 2});
      const DeviceTensor k1(dtype, {tokens, 2, key / 2}), k2(dtype, {tokens, 2, key / 2});
      const DeviceTensor v1(dtype, {tokens, 1, value}), v2(dtype, {tokens, 1, value});
      const int heads = pick(1, 60);
      const Shape gates{tokens, heads};
      const DeviceTensor a(normal(dtype, gates, 20)), b(normal(dtype, gates));
      const DeviceTensor a_log(normal(DType::kF32, {heads})), bias(normal(dtype, {heads}));
      const DeviceTensor decay1(DType::kF32, gates), decay2(DType::kF32, gates);
      const DeviceTensor beta1(DType::kF32, gates), beta2(DType::kF32, gates);
      gpu().delta_net_inputs(
          {{x, weight, state1, scratch}, q1, k1, v1, a, b, a_log, bias, decay1, beta1},
          batch.view());
      gpu().Ops::delta_net_inputs(
          {{x, weight, state2, scratch}, q2, k2, v2, a, b, a_log, bias, decay2, beta2},
          batch.view());
      expect_equal(q1, q2, "q");
      expect_equal(k1, k2, "k");
      expect_equal(v1, v2, "v");
      expect_equal(state1, state2, "state");
      expect_equal(decay1, decay2, "decay");
      expect_equal(beta1, beta2, "beta");
    }
}

TEST_F(CudaFusedProperty, AttentionWithItsGate) {
  for (const DType dtype : kTypes)
    for (const int dim : {64, 128, 256})
      for (const int context : {3, 700, 5000})
        for (const auto& counts : {std::vector<int32_t>{1}, {1, 1, 1}, {3}, {20, 1}}) {
          const std::vector<int32_t> contexts(counts.size(), context);
          const OwnedBatch owned(counts, contexts);
          const DeviceBatch batch(owned);
          const int32_t tokens = batch.host.num_tokens;
          const int heads = 6, kv_heads = 2;
          SCOPED_TRACE(testing::Message() << dtype_name(dtype) << " " << dim << " context "
                                          << context << " tokens " << tokens);
          const Prepared packed = packed_weight(random_, 48, heads * dim);
          const DType cache_type = dtype == DType::kF32 ? DType::kF32 : DType::kF8E5M2;
          const Shape cache_shape{batch.host.num_seqs * batch.host.max_blocks,
                                  batch.host.block_size, kv_heads, dim};
          const DeviceTensor keys(normal(cache_type, cache_shape));
          const DeviceTensor values(normal(cache_type, cache_shape));
          const Shape shape{tokens, heads, dim};
          const DeviceTensor q(normal(dtype, shape)), gate(normal(dtype, shape));
          const DeviceTensor out1(dtype, shape), out2(dtype, shape);
          const auto args = [&](const Tensor& out) {
            return AttentionArgs{q, out, {keys, values, {cache_type}}, kv_heads, 0.1f};
          };
          gpu().attention_gated(args(out1), batch.view(), gate);
          const DeviceTensor first(DType::kBF16, {tokens, 48}), second(DType::kBF16, {tokens, 48});
          if (dtype == DType::kBF16) gpu().linear(out1, packed.weight, first);
          gpu().Ops::attention_gated(args(out2), batch.view(), gate);
          expect_equal(out1, out2, "out");
          if (dtype != DType::kBF16) continue;
          gpu().linear(DeviceTensor(out1.host()), packed.weight, second);
          expect_equal(first, second, "the product after it");
        }
}

TEST_F(CudaFusedProperty, AttentionInputs) {
  for (const DType dtype : kTypes)
    for (const int dim : {64, 128, 256})
      for (const bool gated : {true, false})
        for (const bool normed : {true, false}) {
          SCOPED_TRACE(testing::Message() << dtype_name(dtype) << " " << dim << gated << normed);
          const OwnedBatch owned({1, 7, 1}, {20, 0, 3});
          const DeviceBatch batch(owned);
          const int32_t tokens = batch.host.num_tokens;
          const int heads = 6, kv_heads = 2;
          const Shape q_shape{tokens, heads, dim}, kv_shape{tokens, kv_heads, dim};
          const HostTensor q = normal(dtype, q_shape), k = normal(dtype, kv_shape);
          const DeviceTensor q_and_gate(normal(dtype, {tokens, heads, 2 * dim}));
          const DeviceTensor v(normal(dtype, kv_shape));
          const DeviceTensor q_norm(normal(DType::kBF16, {dim})),
              k_norm(normal(DType::kBF16, {dim}));
          std::vector<int32_t> positions(3 * static_cast<size_t>(tokens));
          for (int32_t& position : positions) position = pick(0, 5000);
          const DeviceArray<int32_t> device_positions(positions);
          std::vector<float> inv_freq;
          for (int i = 0; i < dim / 8; ++i)
            inv_freq.push_back(
                std::pow(1e4f, -8.0f * static_cast<float>(i) / static_cast<float>(dim)));
          const DType cache_type = dtype == DType::kF32 ? DType::kF32 : DType::kF8E4M3;
          const Shape cache_shape{batch.host.num_seqs * batch.host.max_blocks,
                                  batch.host.block_size, kv_heads, dim};
          const DeviceTensor q1(q), q2(q), k1(k), k2(k), gate1(dtype, q_shape),
              gate2(dtype, q_shape);
          const DeviceTensor ck1(cache_type, cache_shape), cv1(cache_type, cache_shape);
          const DeviceTensor ck2(cache_type, cache_shape), cv2(cache_type, cache_shape);
          const auto args = [&](const Tensor& own_q, const Tensor& gate, const Tensor& own_k,
                                const Tensor& ck, const Tensor& cv) {
            AttentionInputsArgs inputs{};
            if (gated) inputs.q_and_gate = q_and_gate;
            if (gated) inputs.gate = gate;
            inputs.q = own_q;
            inputs.k = own_k;
            inputs.v = v;
            if (normed) inputs.q_norm = q_norm;
            if (normed) inputs.k_norm = k_norm;
            inputs.norm_eps = 1e-6f;
            inputs.norm_weight_offset = 1;
            inputs.rope = {own_q, device_positions.data(), inv_freq.data(), dim / 4, {4, 3, 3},
                           1.0f};
            inputs.cache = {ck, cv, {cache_type}};
            return inputs;
          };
          gpu().attention_inputs(args(q1, gate1, k1, ck1, cv1), batch.view());
          gpu().Ops::attention_inputs(args(q2, gate2, k2, ck2, cv2), batch.view());
          expect_equal(q1, q2, "q");
          if (gated) expect_equal(gate1, gate2, "gate");
          // Blocks that nothing wrote hold the same poison.
          EXPECT_EQ(cv1.host().bytes(), cv2.host().bytes());
          if (cache_type == DType::kF32) continue;  // of poison, relative errors are NaN
          EXPECT_EQ(ck1.host().bytes(), ck2.host().bytes());
        }
}

TEST_F(CudaFusedProperty, GreedyChoicesEqualTheReference) {
  const auto reference = open_device(Backend::kReference).value();
  for (const int vocab : {1, 5, 513, 248320})
    for (const int rows : {0, 1, 9}) {
      HostTensor logits = normal(DType::kF32, {rows, vocab});
      float* values = logits.view().as<float>();
      if (rows > 1) {
        values[0] = std::numeric_limits<float>::quiet_NaN();
        for (int i = 0; i < vocab; ++i) values[vocab + i] = -INFINITY;  // nothing to choose
        for (int i = 0; i < vocab; ++i) values[2 * vocab + i] = 3;      // the first of equals
      }
      HostTensor expected(DType::kI32, {rows});
      reference->ops().argmax(logits, expected);
      const DeviceTensor ids(DType::kI32, {rows});
      gpu().argmax(DeviceTensor(logits), ids);
      EXPECT_EQ(ids.host().bytes(), expected.bytes()) << vocab;
    }
}

}  // namespace
}  // namespace nibble
