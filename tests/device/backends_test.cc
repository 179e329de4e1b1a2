// The reference operations against goldens computed in float64, and the CPU backend against the
// reference on random shapes: ragged batches, chunk borders, 4-bit and 16-bit weights.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "device/device.h"
#include "device/host_tensor.h"
#include "device/wrap/checked_ops.h"
#include "support/golden_file.h"

namespace nibble {
namespace {

using test::HostTensor;
using test::OwnedBatch;

class Backends : public testing::Test {
 protected:
  std::unique_ptr<Device> reference_ = open_device(Backend::kReference).value();
  std::unique_ptr<Device> cpu_ = open_device(Backend::kCpu, 2).value();
  std::mt19937 random_{test::test_seed()};
  int pick(int low, int high) { return std::uniform_int_distribution(low, high)(random_); }
  HostTensor normal(DType dtype, Shape shape, float scale = 1) {
    return {dtype, shape, test::normal_values(random_, shape.num_elements(), scale)};
  }
};

// Inputs of one gated delta rule over a ragged batch; the state starts from the same values.
struct DeltaRule {
  HostTensor q, k, v, log_decay, beta, state, out;
  int32_t num_k_heads, num_v_heads, k_dim, v_dim;
  void run(Ops& ops, const OwnedBatch& batch) {
    CheckedOps checked(ops);
    checked.gated_delta_net({q, k, v, log_decay, beta, state, out}, batch.view());
  }
};

DeltaRule make_delta_rule(std::mt19937& random, int32_t num_tokens, int32_t num_slots,
                          int32_t num_k_heads, int32_t num_v_heads, int32_t k_dim, int32_t v_dim) {
  const auto normal = [&](Shape shape) {
    return HostTensor(DType::kF32, shape, test::normal_values(random, shape.num_elements()));
  };
  DeltaRule rule{normal({num_tokens, num_k_heads, k_dim}),
                 normal({num_tokens, num_k_heads, k_dim}),
                 normal({num_tokens, num_v_heads, v_dim}),
                 normal({num_tokens, num_v_heads}),
                 normal({num_tokens, num_v_heads}),
                 normal({num_slots, num_v_heads, k_dim, v_dim}),
                 HostTensor(DType::kF32, {num_tokens, num_v_heads, v_dim}),
                 num_k_heads,
                 num_v_heads,
                 k_dim,
                 v_dim};
  Tensor decay = rule.log_decay;
  Tensor beta = rule.beta;
  for (int64_t i = 0; i < decay.num_elements(); ++i) {
    decay.as<float>()[i] = -std::fabs(decay.as<float>()[i]) * (i % 7 == 0 ? 8.0f : 0.3f);
    beta.as<float>()[i] = 1 / (1 + std::exp(-beta.as<float>()[i]));
  }
  return rule;
}

TEST_F(Backends, TheChunkedDeltaRuleEqualsTheRecurrentOne) {
  for (Device* device : {reference_.get(), cpu_.get()}) {
    SCOPED_TRACE(device->name());
    for (const int num_tokens : {2, 63, 64, 65, 128, 200}) {
      SCOPED_TRACE(num_tokens);
      DeltaRule whole = make_delta_rule(random_, num_tokens, 1, 2, 4, 16, 32);
      DeltaRule steps = whole;
      whole.run(device->ops(), OwnedBatch({num_tokens}, {1}, false));
      for (int t = 0; t < num_tokens; ++t) {
        const auto row = [&](const HostTensor& tensor) { return tensor.view().rows(t, t + 1); };
        device->ops().gated_delta_net(
            {row(steps.q), row(steps.k), row(steps.v), row(steps.log_decay), row(steps.beta),
             steps.state, row(steps.out)},
            OwnedBatch({1}, {1 + t}, false).view());
      }
      EXPECT_LT(test::largest_difference(whole.out.floats(), steps.out.floats()), 2e-5f);
      EXPECT_LT(test::largest_difference(whole.state.floats(), steps.state.floats()), 2e-5f);
    }
  }
}

TEST_F(Backends, TheCpuDeltaRuleEqualsTheReferenceOnRaggedBatches) {
  for (int trial = 0; trial < 30; ++trial) {
    const int num_seqs = pick(1, 5);
    std::vector<int32_t> counts;
    std::vector<int32_t> context;
    for (int s = 0; s < num_seqs; ++s) {
      counts.push_back(pick(0, 3) == 0 ? pick(1, 150) : pick(0, 3));
      context.push_back(pick(0, 1) * pick(1, 40));
    }
    const OwnedBatch batch(counts, context);
    const int num_k_heads = pick(1, 3);
    DeltaRule expected = make_delta_rule(random_, batch.view().num_tokens, num_seqs, num_k_heads,
                                         num_k_heads * pick(1, 3), 8 * pick(1, 8), 8 * pick(1, 8));
    DeltaRule actual = expected;
    expected.run(reference_->ops(), batch);
    actual.run(cpu_->ops(), batch);
    EXPECT_LT(test::largest_difference(actual.out.floats(), expected.out.floats()), 2e-5f)
        << "trial " << trial;
    EXPECT_LT(test::largest_difference(actual.state.floats(), expected.state.floats()), 2e-5f)
        << "trial " << trial;
  }
}

TEST_F(Backends, AttentionOverPagedKeysEqualsTheReference) {
  for (int trial = 0; trial < 20; ++trial) {
    const int num_seqs = pick(1, 4);
    std::vector<int32_t> counts;
    std::vector<int32_t> context;
    for (int s = 0; s < num_seqs; ++s) {
      counts.push_back(pick(1, 40));
      context.push_back(pick(0, 100));
    }
    OwnedBatch batch(counts, context);
    std::shuffle(batch.table().begin(), batch.table().end(), random_);
    const int num_kv_heads = pick(1, 3);
    const int num_heads = num_kv_heads * pick(1, 4);
    const int head_dim = 16 * pick(1, 8);
    const DType dtype = trial % 2 == 0 ? DType::kF32 : DType::kBF16;
    const HostTensor q = normal(dtype, {batch.view().num_tokens, num_heads, head_dim});
    const HostTensor k = normal(dtype, {batch.num_blocks(), 16, num_kv_heads, head_dim});
    const HostTensor v = normal(dtype, {batch.num_blocks(), 16, num_kv_heads, head_dim});
    HostTensor expected(dtype, q.view().shape);
    HostTensor actual(dtype, q.view().shape);
    const KvCache cache{k, v, {dtype}};
    const float scale = 1 / std::sqrt(static_cast<float>(head_dim));
    reference_->ops().attention({q, expected, cache, num_kv_heads, scale}, batch.view());
    cpu_->ops().attention({q, actual, cache, num_kv_heads, scale}, batch.view());
    EXPECT_LT(test::largest_difference(actual.floats(), expected.floats()),
              dtype == DType::kF32 ? 1e-5f : 2e-2f)
        << "trial " << trial;
  }
}

TEST_F(Backends, LinearEqualsTheReferenceAndDoesNotDependOnTheBatch) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (int trial = 0; trial < 10; ++trial) {
      const int in = 32 * pick(1, 12);
      const int out = pick(1, 200);
      const int num_tokens = pick(1, 40);
      LinearWeight weight{};
      const HostTensor values = normal(dtype, {out, in}, 0.1f);
      weight.in_features = in;
      weight.out_features = out;
      weight.dense = values;
      const HostTensor x = normal(DType::kF32, {num_tokens, in});
      HostTensor expected(DType::kF32, {num_tokens, out});
      HostTensor actual(DType::kF32, {num_tokens, out});
      reference_->ops().linear(x, weight, expected);
      cpu_->ops().linear(x, weight, actual);
      EXPECT_LT(test::largest_difference(actual.floats(), expected.floats()), 2e-4f);
      // Each row alone gives the same bytes as in the batch.
      for (int t = 0; t < num_tokens; ++t) {
        HostTensor alone(DType::kF32, {1, out});
        cpu_->ops().linear(x.view().rows(t, t + 1), weight, alone);
        const std::vector<float> all = actual.floats();
        ASSERT_EQ(alone.floats(),
                  std::vector<float>(all.begin() + t * out, all.begin() + (t + 1) * out));
      }
    }
  }
}

class Goldens : public Backends {
 protected:
  HostTensor load(const std::string& name) const {
    const Tensor found = golden_.tensor(name);
    return {DType::kF32, found.shape, golden_.floats(name)};
  }
  // The same with other dimensions.
  HostTensor load(const std::string& name, Shape shape) const {
    return {DType::kF32, shape, golden_.floats(name)};
  }
  std::vector<float> expected(const std::string& name) const {
    return golden_.floats(name + "_f64");
  }
  // Eight times the float32 error of the library the goldens come from, by operation.
  float tolerance(const std::string& op) const {
    return manifest_["tolerance"]["float32_implementation"][op].get<float>();
  }
  void expect_golden(const std::vector<float>& ours, const std::string& name) const {
    expect_golden(ours, expected(name), name.substr(0, name.find('.')));
  }
  void expect_golden(const std::vector<float>& ours, const std::vector<float>& golden,
                     const std::string& op) const {
    EXPECT_LE(test::largest_difference(ours, golden), tolerance(op)) << op;
  }
  std::vector<Device*> devices() const { return {reference_.get(), cpu_.get()}; }
  test::GoldenFile golden_{test::golden("fixtures/ops/goldens.safetensors")};
  Json manifest_ = test::load_json(test::golden("fixtures/ops/manifest.json"));
};

TEST_F(Goldens, DeltaRule) {
  for (Device* device : devices()) {
    for (const char* name : {"t1", "t5", "t64", "t65", "t130", "uneven", "strong_decay", "d128"}) {
      const std::string prefix = std::string("delta_rule.") + name + ".";
      SCOPED_TRACE(device->name() + " " + prefix);
      const Shape state = golden_.tensor(prefix + "state_in").shape;
      const HostTensor q = load(prefix + "q");
      const HostTensor k = load(prefix + "k");
      const HostTensor v = load(prefix + "v");
      const HostTensor decay = load(prefix + "g");
      const HostTensor beta = load(prefix + "beta");
      const HostTensor slots = load(prefix + "state_in", {1, state[0], state[1], state[2]});
      const HostTensor out(DType::kF32, v.view().shape);
      const auto num_tokens = static_cast<int32_t>(v.view().shape[0]);
      device->ops().gated_delta_net({q, k, v, decay, beta, slots, out},
                                    OwnedBatch({num_tokens}, {1}, false).view());
      expect_golden(out.floats(), prefix + "out");
      expect_golden(slots.floats(), prefix + "state_out");
    }
  }
}

TEST_F(Goldens, NormsGatesAndConvolution) {
  for (Device* device : devices()) {
    SCOPED_TRACE(device->name());
    Ops& ops = device->ops();
    const HostTensor x = load("rmsnorm_zero_centred.x");
    HostTensor out(DType::kF32, x.view().shape);
    ops.rms_norm(x, load("rmsnorm_zero_centred.weight"), 1e-6f, 1.0f, out);
    expect_golden(out.floats(), "rmsnorm_zero_centred.out");

    const Shape rows = golden_.tensor("rmsnorm_gated.x").shape;
    const Shape heads = {rows[0], 1, rows[1]};
    const HostTensor gated(DType::kF32, heads);
    ops.gated_rms_norm(load("rmsnorm_gated.x", heads), load("rmsnorm_gated.gate", heads),
                       load("rmsnorm_gated.weight"), 1e-6f, gated);
    expect_golden(gated.floats(), "rmsnorm_gated.out");

    const Shape gates = golden_.tensor("decay.a").shape;
    const HostTensor log_decay(DType::kF32, gates);
    const HostTensor beta(DType::kF32, gates);
    ops.delta_gates(load("decay.a"), load("decay.b"), load("decay.A_log"), load("decay.dt_bias"),
                    log_decay, beta);
    expect_golden(log_decay.floats(), "decay.g");
    expect_golden(beta.floats(), "decay.beta");

    for (const char* name : {"t1", "t3", "t4", "t9"}) {
      const std::string prefix = std::string("conv1d.") + name + ".";
      SCOPED_TRACE(prefix);
      // Goldens are [channels, tokens].
      const Shape shape = golden_.tensor(prefix + "x").shape;
      const auto transposed = [&](const std::vector<float>& from) {
        std::vector<float> to(from.size());
        for (int64_t c = 0; c < shape[0]; ++c)
          for (int64_t t = 0; t < shape[1]; ++t)
            to[static_cast<size_t>(t * shape[0] + c)] = from[static_cast<size_t>(c * shape[1] + t)];
        return to;
      };
      const HostTensor input(DType::kF32, {shape[1], shape[0]},
                             transposed(golden_.floats(prefix + "x")));
      const Shape state_shape = golden_.tensor(prefix + "state_in").shape;
      const HostTensor state = load(prefix + "state_in", {1, state_shape[0], state_shape[1]});
      const HostTensor result(DType::kF32, {shape[1], shape[0]});
      ops.causal_conv1d({input, load(prefix + "weight"), state, result},
                        OwnedBatch({static_cast<int32_t>(shape[1])}, {1}, false).view());
      expect_golden(result.floats(), transposed(expected(prefix + "out")), "conv1d");
      EXPECT_EQ(test::largest_difference(state.floats(), expected(prefix + "state_out")), 0.0f);
    }
  }
}

TEST_F(Goldens, GatedAttentionAndRouting) {
  for (Device* device : devices()) {
    SCOPED_TRACE(device->name());
    Ops& ops = device->ops();
    const HostTensor k = load("gated_attention.k");
    const HostTensor v = load("gated_attention.v");
    const Shape keys = k.view().shape;
    const auto num_tokens = static_cast<int32_t>(keys[0]);
    const int64_t head_dim = keys[2];
    const int64_t num_heads = golden_.tensor("gated_attention.q_proj_out").shape[1] / head_dim / 2;
    const HostTensor q(DType::kF32, {num_tokens, num_heads, head_dim});
    const HostTensor gate(DType::kF32, {num_tokens, num_heads, head_dim});
    ops.split_pairs(load("gated_attention.q_proj_out", {num_tokens, num_heads, 2, head_dim}), q,
                    gate);
    const OwnedBatch batch({num_tokens});
    const HostTensor cached_k(DType::kF32, {batch.num_blocks(), 16, keys[1], head_dim});
    const HostTensor cached_v(DType::kF32, {batch.num_blocks(), 16, keys[1], head_dim});
    const KvCache cache{cached_k, cached_v, {DType::kF32}};
    ops.kv_append(k, v, batch.view(), cache);
    const HostTensor out(DType::kF32, {num_tokens, num_heads, head_dim});
    ops.attention(
        {q, out, cache, static_cast<int32_t>(keys[1]), 1 / std::sqrt(static_cast<float>(head_dim))},
        batch.view());
    ops.sigmoid_mul(out, gate);
    expect_golden(out.floats(), "gated_attention.out");

    for (const auto& [name, top_k] : {std::pair("top2of8", 2), std::pair("top8of256", 8)}) {
      const std::string prefix = std::string("moe_routing.") + name + ".";
      SCOPED_TRACE(prefix);
      const HostTensor logits = load(prefix + "logits");
      const HostTensor experts(DType::kI32, {logits.view().shape[0], top_k});
      const HostTensor weights(DType::kF32, {logits.view().shape[0], top_k});
      ops.moe_route(logits, top_k, experts, weights);
      expect_golden(weights.floats(), prefix + "weights");
      const std::vector<int32_t> chosen = golden_.ints(prefix + "experts_f64");
      const int32_t* got = experts.view().as<const int32_t>();
      EXPECT_EQ(std::vector<int32_t>(got, got + chosen.size()), chosen);
    }
  }
}

TEST_F(Goldens, RoutingOfNaNNamesExpertsThatThereAre) {
  constexpr int kExperts = 40, kTopK = 8;
  const HostTensor logits(DType::kF32, {1, kExperts},
                          std::vector<float>(kExperts, std::numeric_limits<float>::quiet_NaN()));
  for (Device* device : devices()) {
    SCOPED_TRACE(device->name());
    const HostTensor experts(DType::kI32, {1, kTopK});
    const HostTensor weights(DType::kF32, {1, kTopK});
    device->ops().moe_route(logits, kTopK, experts, weights);
    for (int i = 0; i < kTopK; ++i) {
      const int32_t expert = experts.view().as<int32_t>()[i];
      EXPECT_TRUE(0 <= expert && expert < kExperts) << expert;
      EXPECT_TRUE(std::isnan(weights.view().as<float>()[i]));
    }
  }
}

// The normalisation has no operation of its own; the delta rule lays it bare. An identity state
// that neither decays nor learns returns the query; an empty state that learns the value e_0 in
// full holds the key in its first column.
TEST_F(Goldens, L2NormInsideTheDeltaRule) {
  const std::vector<float> golden = expected("l2norm.out");
  const Shape rows = golden_.tensor("l2norm.x").shape;
  const int64_t dim = rows[1];
  const HostTensor x = load("l2norm.x", {rows[0], 1, dim});
  std::vector<float> identity(static_cast<size_t>(rows[0] * dim * dim));
  std::vector<float> first_unit(static_cast<size_t>(rows[0] * dim));
  for (int64_t row = 0; row < rows[0]; ++row) {
    first_unit[static_cast<size_t>(row * dim)] = 1;
    for (int64_t i = 0; i < dim; ++i) identity[static_cast<size_t>((row * dim + i) * dim + i)] = 1;
  }
  const Shape states = {rows[0], 1, dim, dim};
  const HostTensor v(DType::kF32, {rows[0], 1, dim}, first_unit);
  const HostTensor no_decay(DType::kF32, {rows[0], 1});
  const HostTensor no_update(DType::kF32, {rows[0], 1});
  const HostTensor full_update(DType::kF32, {rows[0], 1},
                               std::vector<float>(static_cast<size_t>(rows[0]), 1.0f));
  const std::vector<int32_t> one_token_each(static_cast<size_t>(rows[0]), 1);
  const OwnedBatch batch(one_token_each, one_token_each, false);
  for (Device* device : devices()) {
    SCOPED_TRACE(device->name());
    const HostTensor out(DType::kF32, {rows[0], 1, dim});
    const HostTensor fixed(DType::kF32, states, identity);
    device->ops().gated_delta_net({x, x, v, no_decay, no_update, fixed, out}, batch.view());
    std::vector<float> queries = out.floats();
    for (float& value : queries) value *= std::sqrt(static_cast<float>(dim));
    expect_golden(queries, golden, "l2norm");

    const HostTensor learnt(DType::kF32, states);
    device->ops().gated_delta_net({x, x, v, no_decay, full_update, learnt, out}, batch.view());
    const std::vector<float> state = learnt.floats();
    std::vector<float> keys;
    for (size_t i = 0; i < golden.size(); ++i) keys.push_back(state[i * static_cast<size_t>(dim)]);
    expect_golden(keys, golden, "l2norm");
  }
}

TEST_F(Goldens, RotaryEmbeddingOnThreeAxes) {
  struct Case {
    std::string name;
    std::array<int32_t, 3> section;
    std::string tolerance;
  };
  const Case cases[] = {{"d64", {3, 3, 2}, "mrope"},
                        {"d256", {11, 11, 10}, "mrope"},
                        {"d64_far", {3, 3, 2}, "mrope at positions of 70000 and more"}};
  for (const Case& test_case : cases) {
    const std::string prefix = "mrope." + test_case.name + ".";
    const std::vector<int32_t> positions = golden_.ints(prefix + "position_ids");
    const auto rotary_dim = static_cast<int32_t>(golden_.tensor(prefix + "cos_f64").shape[1]);
    std::vector<float> inv_freq;
    for (int32_t i = 0; i < rotary_dim / 2; ++i)
      inv_freq.push_back(static_cast<float>(std::pow(1e7, -2.0 * i / rotary_dim)));
    for (Device* device : devices()) {
      for (const char* name : {"q", "k"}) {
        SCOPED_TRACE(device->name() + " " + prefix + name);
        const HostTensor x = load(prefix + name);
        device->ops().rope({x,
                            positions.data(),
                            inv_freq.data(),
                            rotary_dim,
                            {test_case.section[0], test_case.section[1], test_case.section[2]},
                            1.0f});
        expect_golden(x.floats(), expected(prefix + name + "_out"), test_case.tolerance);
      }
    }
  }
}

}  // namespace
}  // namespace nibble
