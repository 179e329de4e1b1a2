// Attention, the delta rule, convolution, gates and routing on a GPU against the reference, on
// ragged batches with chunk borders, fresh and carried states, every cache type and every kernel
// form. Without a GPU each test says so and is skipped.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "device/cuda/attention.h"
#include "device/cuda/cuda_ops.h"
#include "device/cuda/gated_delta_net.h"
#include "device/cuda/moe.h"
#include "device/cuda/sampling.h"
#include "device/cuda_device_tensor.h"
#include "device/device.h"

namespace nibble {
namespace {

using cuda::AttentionForm;
using cuda::DeltaRuleForm;
using cuda::scalar_of;
using test::HostTensor;
using test::OwnedBatch;
using test::relative_error;

class CudaMixers : public testing::Test {
 protected:
  void SetUp() override {
    gpu_ = test::gpu();
    if (gpu_ == nullptr) GTEST_SKIP() << "no GPU";
    int device = 0;
    NB_CUDA(cudaGetDevice(&device));
    cudaDeviceProp properties{};
    NB_CUDA(cudaGetDeviceProperties(&properties, device));
    workspace_.num_sms = properties.multiProcessorCount;
    workspace_.compute_capability = cuda::code_capability();
    workspace_.max_shared_bytes = properties.sharedMemPerBlockOptin;
    set_scratch(size_t{32} << 20);
  }
  void TearDown() override {
    if (gpu_ != nullptr) NB_CUDA(cudaDeviceSynchronize());
  }
  void set_scratch(size_t bytes) {
    scratch_ = gpu_->allocate(bytes, "test").value();
    workspace_.scratch = scratch_.data();
    workspace_.scratch_size = bytes;
  }

  // A copy of host bytes on the device that lives as long as the test.
  void* upload(const void* from, size_t bytes) {
    memory_.push_back(gpu_->allocate(bytes + 16, "test").value());
    gpu_->upload(memory_.back().data(), from, bytes);
    gpu_->synchronize();
    return memory_.back().data();
  }
  void* upload(const HostTensor& tensor) {
    return upload(tensor.view().data, tensor.view().num_bytes());
  }
  // Fills the output with NaN first, so that an element nobody wrote shows.
  void* poisoned(const HostTensor& like) {
    void* data = upload(like);
    NB_CUDA(cudaMemset(data, 0xff, like.view().num_bytes()));
    return data;
  }
  void download(const HostTensor& to, const void* from) {
    NB_CUDA(cudaDeviceSynchronize());
    gpu_->download(to.view().data, from, to.view().num_bytes());
    gpu_->synchronize();
  }
  RaggedBatch upload(const OwnedBatch& batch) {
    RaggedBatch view = batch.view();
    const auto seqs = static_cast<size_t>(view.num_seqs);
    const auto ints = [&](const int32_t* from, size_t count) {
      return static_cast<const int32_t*>(upload(from, count * sizeof(int32_t)));
    };
    view.query_start = ints(view.query_start, seqs + 1);
    view.context_len = ints(view.context_len, seqs);
    view.block_table = ints(view.block_table, seqs * static_cast<size_t>(view.max_blocks));
    view.state_slot = ints(view.state_slot, seqs);
    view.state_is_fresh = static_cast<const uint8_t*>(upload(view.state_is_fresh, seqs));
    return view;
  }
  static cuda::DeviceBatch device_batch(const RaggedBatch& batch) {
    return {batch.num_tokens,  batch.num_seqs,    batch.query_start,
            batch.context_len, batch.block_table, batch.max_blocks,
            batch.block_size,  batch.state_slot,  batch.state_is_fresh};
  }

  int pick(int low, int high) { return std::uniform_int_distribution(low, high)(random_); }
  HostTensor normal(DType dtype, Shape shape, float scale = 1) {
    return {dtype, shape, test::normal_values(random_, shape.num_elements(), scale)};
  }

  std::unique_ptr<Device> reference_ = open_device(Backend::kReference).value();
  Device* gpu_ = nullptr;
  std::vector<DeviceMemory> memory_;
  DeviceMemory scratch_;
  cuda::Workspace workspace_;
  std::mt19937 random_{test::test_seed()};
};

struct Heads {
  int keys, values, k_dim, v_dim;
};

class CudaDeltaRule : public CudaMixers {
 protected:
  void expect_reference(DType dtype, const Heads& heads, const OwnedBatch& batch,
                        DeltaRuleForm form, double tolerance) {
    const RaggedBatch host = batch.view();
    const int tokens = host.num_tokens;
    const HostTensor q = normal(dtype, {tokens, heads.keys, heads.k_dim});
    const HostTensor k = normal(dtype, {tokens, heads.keys, heads.k_dim});
    const HostTensor v = normal(dtype, {tokens, heads.values, heads.v_dim});
    HostTensor decay = normal(DType::kF32, {tokens, heads.values});
    HostTensor beta = normal(DType::kF32, {tokens, heads.values});
    for (int64_t i = 0; i < decay.view().num_elements(); ++i) {
      float& g = decay.view().as<float>()[i];
      g = -std::fabs(g) * (i % 7 == 0 ? 8.0f : 0.1f);
      float& b = beta.view().as<float>()[i];
      b = 1 / (1 + std::exp(-b));
    }
    const HostTensor state =
        normal(DType::kF32, {host.num_seqs, heads.values, heads.k_dim, heads.v_dim}, 0.3f);
    const HostTensor out(dtype, v.view().shape);
    void* gpu_state = upload(state);
    void* gpu_out = poisoned(out);
    const cuda::DeltaRuleLaunch launch{upload(q),
                                       upload(k),
                                       upload(v),
                                       static_cast<const float*>(upload(decay)),
                                       static_cast<const float*>(upload(beta)),
                                       static_cast<float*>(gpu_state),
                                       gpu_out,
                                       scalar_of(dtype),
                                       heads.keys,
                                       heads.values,
                                       heads.k_dim,
                                       heads.v_dim,
                                       form};
    launch_gated_delta_net(launch, device_batch(upload(batch)), workspace_, nullptr);
    const HostTensor actual(dtype, out.view().shape);
    const HostTensor actual_state(DType::kF32, state.view().shape);
    download(actual, gpu_out);
    download(actual_state, gpu_state);
    reference_->ops().gated_delta_net({q, k, v, decay, beta, state, out}, host);
    EXPECT_LT(relative_error(actual.floats(), out.floats()), tolerance);
    EXPECT_LT(relative_error(actual_state.floats(), state.floats()), tolerance);
    memory_.clear();
  }
};

std::vector<OwnedBatch> delta_batches() {
  std::vector<OwnedBatch> batches;
  for (const int count : {1, 5, 8, 9, 63, 64, 65, 128, 200}) {
    batches.emplace_back(std::vector<int32_t>{count});
    batches.emplace_back(std::vector<int32_t>{count}, std::vector<int32_t>{7}, false);
  }
  batches.emplace_back(std::vector<int32_t>{1, 1, 1}, std::vector<int32_t>{3, 0, 9});
  batches.emplace_back(std::vector<int32_t>{0, 2}, std::vector<int32_t>{0, 4});
  batches.emplace_back(std::vector<int32_t>{0, 70, 1, 130, 3, 64},
                       std::vector<int32_t>{5, 0, 9, 11, 0, 0});
  batches.back().slots() = {3, 1, 0, 5, 2, 4};
  return batches;
}

TEST_F(CudaDeltaRule, EqualsTheReferenceInF32) {
  for (const DeltaRuleForm form : {DeltaRuleForm::kAuto, DeltaRuleForm::kRecurrent})
    for (const OwnedBatch& batch : delta_batches()) {
      SCOPED_TRACE(batch.view().num_tokens);
      expect_reference(DType::kF32, {1, 3, 128, 128}, batch, form, 1e-4);
    }
}

TEST_F(CudaDeltaRule, EqualsTheReferenceIn16BitsInEveryForm) {
  for (const DType dtype : {DType::kBF16, DType::kF16})
    for (const DeltaRuleForm form : {DeltaRuleForm::kRecurrent, DeltaRuleForm::kColumns,
                                     DeltaRuleForm::kChunkedMma, DeltaRuleForm::kAuto})
      for (const OwnedBatch& batch : delta_batches()) {
        SCOPED_TRACE(testing::Message() << dtype_name(dtype) << " form " << static_cast<int>(form)
                                        << " tokens " << batch.view().num_tokens);
        expect_reference(dtype, {2, 6, 128, 128}, batch, form, 1e-2);
      }
}

TEST_F(CudaDeltaRule, TakesAnyHeadDims) {
  for (const Heads& heads : {Heads{1, 2, 16, 32}, Heads{2, 2, 64, 64}, Heads{1, 1, 40, 24}})
    for (const OwnedBatch& batch : delta_batches())
      expect_reference(DType::kF32, heads, batch, DeltaRuleForm::kAuto, 1e-4);
}

TEST_F(CudaDeltaRule, RunsInPiecesWhenScratchIsShort) {
  set_scratch(size_t{3} * 2 * 18000);  // three chunks of two heads
  for (const OwnedBatch& batch : delta_batches())
    expect_reference(DType::kBF16, {1, 2, 128, 128}, batch, DeltaRuleForm::kAuto, 1e-2);
}

TEST_F(CudaDeltaRule, TakesMoreHeadsThanMultiprocessors) {
  expect_reference(DType::kBF16, {16, 48, 128, 128},
                   OwnedBatch(std::vector<int32_t>(12, 1), std::vector<int32_t>(12, 5), false),
                   DeltaRuleForm::kAuto, 1e-2);
}

class CudaAttention : public CudaMixers {
 protected:
  // An 8-bit cache holds random codes of moderate size; the reference gets their values.
  void expect_reference(DType dtype, DType cache_dtype, int kv_heads, int group, int head_dim,
                        OwnedBatch batch, AttentionForm form, double tolerance) {
    std::shuffle(batch.table().begin(), batch.table().end(), random_);
    const RaggedBatch host = batch.view();
    const HostTensor q = normal(dtype, {host.num_tokens, kv_heads * group, head_dim}, 2);
    const Shape shape = {batch.num_blocks(), host.block_size, kv_heads, head_dim};
    HostTensor cache[2] = {HostTensor(cache_dtype, shape), HostTensor(cache_dtype, shape)};
    HostTensor widened[2] = {HostTensor(DType::kF32, shape), HostTensor(DType::kF32, shape)};
    for (int i = 0; i < 2; ++i) {
      if (dtype_size(cache_dtype) > 1) {
        cache[i] = normal(cache_dtype, shape);
        widened[i] = HostTensor(DType::kF32, shape, cache[i].floats());
        continue;
      }
      for (int64_t j = 0; j < shape.num_elements(); ++j) {
        const auto code = static_cast<uint8_t>(random_());
        // Exponents -4..1 (and zero now and then), both signs.
        const bool narrow = cache_dtype == DType::kF8E4M3;
        const int mantissa_bits = narrow ? 3 : 2;
        const int exponent = static_cast<int>(code >> 4) % 6 - 4;
        const int mantissa = code & ((1 << mantissa_bits) - 1);
        const int biased = exponent + (narrow ? 7 : 15);
        const bool negative = (random_() & 1) != 0;
        static_cast<uint8_t*>(cache[i].view().data)[j] =
            static_cast<uint8_t>((negative ? 0x80 : 0) | (biased << mantissa_bits) | mantissa);
        const float value = std::ldexp(
            1.0f + static_cast<float>(mantissa) / static_cast<float>(1 << mantissa_bits), exponent);
        widened[i].view().as<float>()[j] = negative ? -value : value;
      }
    }
    const HostTensor out(dtype, q.view().shape);
    void* gpu_out = poisoned(out);
    const float scale = 1 / std::sqrt(static_cast<float>(head_dim));
    const cuda::AttentionLaunch launch{upload(q),
                                       gpu_out,
                                       upload(cache[0]),
                                       upload(cache[1]),
                                       scalar_of(dtype),
                                       scalar_of(cache_dtype),
                                       kv_heads * group,
                                       kv_heads,
                                       head_dim,
                                       scale,
                                       form};
    launch_attention(launch, device_batch(upload(batch)), workspace_, nullptr);
    const HostTensor actual(dtype, out.view().shape);
    download(actual, gpu_out);
    reference_->ops().attention(
        {q, out, KvCache{widened[0], widened[1], {DType::kF32}}, kv_heads, scale}, host);
    EXPECT_LT(relative_error(actual.floats(), out.floats()), tolerance);
    memory_.clear();
  }
  std::vector<OwnedBatch> batches() {
    std::vector<OwnedBatch> all;
    all.emplace_back(std::vector<int32_t>{1});
    all.emplace_back(std::vector<int32_t>{1}, std::vector<int32_t>{1300});
    all.emplace_back(std::vector<int32_t>{1, 1, 1}, std::vector<int32_t>{700, 0, 31}, true, 32);
    all.emplace_back(std::vector<int32_t>{0, 2}, std::vector<int32_t>{0, 600}, true, 24);
    all.emplace_back(std::vector<int32_t>{0, 0, 9, 0, 1, 0, 0, 0, 0, 0});  // not one token each
    all.emplace_back(std::vector<int32_t>{5}, std::vector<int32_t>{900});
    all.emplace_back(std::vector<int32_t>{70});
    all.emplace_back(std::vector<int32_t>{130}, std::vector<int32_t>{65});
    all.emplace_back(std::vector<int32_t>{3, 0, 65, 1, 40},
                     std::vector<int32_t>{300, 9, 0, 270, 1});
    return all;
  }
};

TEST_F(CudaAttention, EqualsTheReferenceForEveryCacheTypeAndForm) {
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32})
    for (const DType cache :
         {DType::kF32, DType::kF16, DType::kBF16, DType::kF8E4M3, DType::kF8E5M2})
      for (const AttentionForm form :
           {AttentionForm::kAuto, AttentionForm::kSmall, AttentionForm::kQuads,
            AttentionForm::kLanes, AttentionForm::kPlain}) {
        if (form != AttentionForm::kAuto && (dtype == DType::kF32 || cache == DType::kF32))
          continue;
        for (const OwnedBatch& batch : batches()) {
          SCOPED_TRACE(testing::Message()
                       << dtype_name(dtype) << " over " << dtype_name(cache) << " form "
                       << static_cast<int>(form) << " tokens " << batch.view().num_tokens);
          expect_reference(dtype, cache, 2, 3, 64, batch, form, dtype == DType::kF32 ? 1e-5 : 1e-2);
        }
      }
}

TEST_F(CudaAttention, TakesEveryHeadDimAndGroup) {
  for (const int head_dim : {64, 80, 128, 256})
    for (const int group : {1, 6, 16})
      for (const DType cache : {DType::kBF16, DType::kF16, DType::kF8E5M2})
        for (const AttentionForm form : {AttentionForm::kAuto, AttentionForm::kSmall,
                                         AttentionForm::kQuads, AttentionForm::kLanes})
          for (const OwnedBatch& batch : batches()) {
            SCOPED_TRACE(testing::Message()
                         << "head_dim " << head_dim << " group " << group << " over "
                         << dtype_name(cache) << " form " << static_cast<int>(form) << " tokens "
                         << batch.view().num_tokens);
            const DType dtype = cache == DType::kF8E5M2 ? DType::kF16 : cache;
            expect_reference(dtype, cache, 1, group, head_dim, batch, form, 1e-2);
          }
}

TEST_F(CudaAttention, DoesNotSplitWithoutScratch) {
  workspace_.scratch_size = 0;
  for (const OwnedBatch& batch : batches())
    for (const AttentionForm form : {AttentionForm::kAuto, AttentionForm::kLanes})
      expect_reference(DType::kBF16, DType::kBF16, 1, 6, 256, batch, form, 1e-2);
}

// The first of nine tokens sees its own value alone: every code of an 8-bit cache, and no rounding.
TEST_F(CudaAttention, WidensEveryCodeExactly) {
  constexpr int kTokens = 9, kDim = 256;
  for (const DType cache_dtype : {DType::kF8E4M3, DType::kF8E5M2})
    for (const AttentionForm form : {AttentionForm::kAuto, AttentionForm::kSmall,
                                     AttentionForm::kQuads, AttentionForm::kLanes})
      for (const int tokens : {1, kTokens}) {
        SCOPED_TRACE(testing::Message() << dtype_name(cache_dtype) << " form "
                                        << static_cast<int>(form) << " tokens " << tokens);
        const OwnedBatch batch(std::vector<int32_t>{tokens});
        const HostTensor q = normal(DType::kF16, {tokens, 1, kDim});
        const Shape shape = {batch.num_blocks(), batch.view().block_size, 1, kDim};
        const HostTensor keys(cache_dtype, shape);
        const HostTensor values(cache_dtype, shape);
        auto* codes = static_cast<uint8_t*>(values.view().data);
        for (int64_t i = 0; i < shape.num_elements(); ++i) codes[i] = static_cast<uint8_t>(i);
        const HostTensor out(DType::kF16, {tokens, 1, kDim});
        void* gpu_out = poisoned(out);
        const cuda::AttentionLaunch launch{upload(q),
                                           gpu_out,
                                           upload(keys),
                                           upload(values),
                                           scalar_of(DType::kF16),
                                           scalar_of(cache_dtype),
                                           1,
                                           1,
                                           kDim,
                                           1,
                                           form};
        launch_attention(launch, device_batch(upload(batch)), workspace_, nullptr);
        download(out, gpu_out);
        const std::vector<float> actual = out.floats();
        const std::vector<float> expected = values.floats();
        for (int i = 0; i < kDim; ++i) {
          const float value = expected[static_cast<size_t>(i)];
          if (std::isfinite(value)) {
            EXPECT_EQ(actual[static_cast<size_t>(i)], value) << "code " << i;
          } else {  // times a weight of zero an infinity is no number
            EXPECT_FALSE(std::isfinite(actual[static_cast<size_t>(i)])) << "code " << i;
          }
        }
        memory_.clear();
      }
}

TEST_F(CudaMixers, ConvolutionAndGatesEqualTheReference) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16})
    for (const int kernel : {2, 4})
      for (const OwnedBatch& batch : delta_batches()) {
        SCOPED_TRACE(testing::Message() << dtype_name(dtype) << " kernel " << kernel << " tokens "
                                        << batch.view().num_tokens);
        const RaggedBatch host = batch.view();
        const int channels = pick(0, 1) == 0 ? pick(1, 300) : 4 * pick(1, 200);  // by fours or not
        const HostTensor x = normal(dtype, {host.num_tokens, channels});
        const HostTensor weight = normal(DType::kBF16, {channels, kernel});
        const HostTensor state = normal(dtype, {host.num_seqs, channels, kernel - 1});
        const HostTensor out(dtype, x.view().shape);
        void* gpu_state = upload(state);
        void* gpu_out = poisoned(out);
        cuda::launch_causal_conv1d({upload(x),
                                    upload(weight),
                                    gpu_state,
                                    {gpu_out, nullptr, nullptr},
                                    {channels, channels},
                                    scalar_of(dtype),
                                    cuda::Scalar::kBF16,
                                    channels,
                                    kernel},
                                   device_batch(upload(batch)), workspace_, nullptr);
        const HostTensor actual(dtype, out.view().shape);
        const HostTensor actual_state(dtype, state.view().shape);
        download(actual, gpu_out);
        download(actual_state, gpu_state);
        reference_->ops().causal_conv1d({x, weight, state, out}, host);
        EXPECT_LT(relative_error(actual.floats(), out.floats()),
                  dtype == DType::kF32 ? 1e-6 : 2e-3);
        EXPECT_EQ(actual_state.floats(), state.floats());

        const HostTensor a = normal(dtype, {host.num_tokens, 6}, 3);
        const HostTensor b = normal(dtype, {host.num_tokens, 6});
        const HostTensor a_log = normal(DType::kF32, {6});
        const HostTensor dt_bias = normal(DType::kBF16, {6});
        const HostTensor decay(DType::kF32, a.view().shape);
        const HostTensor beta(DType::kF32, a.view().shape);
        void* gpu_decay = poisoned(decay);
        void* gpu_beta = poisoned(beta);
        cuda::launch_delta_gates(
            {upload(a), upload(b), upload(a_log), upload(dt_bias), static_cast<float*>(gpu_decay),
             static_cast<float*>(gpu_beta), scalar_of(dtype), cuda::Scalar::kF32,
             cuda::Scalar::kBF16, host.num_tokens, 6},
            workspace_, nullptr);
        const HostTensor actual_decay(DType::kF32, a.view().shape);
        const HostTensor actual_beta(DType::kF32, a.view().shape);
        download(actual_decay, gpu_decay);
        download(actual_beta, gpu_beta);
        reference_->ops().delta_gates(a, b, a_log, dt_bias, decay, beta);
        EXPECT_LT(relative_error(actual_decay.floats(), decay.floats()), 1e-6);
        EXPECT_LT(relative_error(actual_beta.floats(), beta.floats()),
                  dtype == DType::kF32 ? 1e-6 : 1e-3);
        memory_.clear();
      }
}

TEST_F(CudaMixers, RoutingEqualsTheReferenceEvenAmongEqualLogits) {
  for (const auto& [num_experts, top_k] : {std::pair(8, 2), {256, 8}, {513, 32}, {3, 3}}) {
    HostTensor logits = normal(DType::kBF16, {37, num_experts});  // coarse: equals occur
    HostTensor experts(DType::kI32, {37, top_k});
    HostTensor weights(DType::kF32, {37, top_k});
    void* gpu_experts = poisoned(experts);
    void* gpu_weights = poisoned(weights);
    cuda::launch_moe_route({upload(logits), cuda::Scalar::kBF16, static_cast<int32_t*>(gpu_experts),
                            static_cast<float*>(gpu_weights), 37, num_experts, top_k},
                           workspace_, nullptr);
    const HostTensor actual_experts(DType::kI32, {37, top_k});
    const HostTensor actual_weights(DType::kF32, {37, top_k});
    download(actual_experts, gpu_experts);
    download(actual_weights, gpu_weights);
    reference_->ops().moe_route(logits, top_k, experts, weights);
    EXPECT_EQ(actual_experts.bytes(), experts.bytes());
    EXPECT_LT(relative_error(actual_weights.floats(), weights.floats()), 1e-6);
  }
}

// What follows reads the weights of whatever expert is named.
TEST_F(CudaMixers, RoutingOfNaNNamesExpertsThatThereAre) {
  constexpr int kTokens = 3, kExperts = 40, kTopK = 8;
  const HostTensor logits(
      DType::kF32, {kTokens, kExperts},
      std::vector<float>(kTokens * kExperts, std::numeric_limits<float>::quiet_NaN()));
  const HostTensor experts(DType::kI32, {kTokens, kTopK});
  const HostTensor weights(DType::kF32, {kTokens, kTopK});
  void* gpu_experts = poisoned(experts);
  void* gpu_weights = poisoned(weights);
  cuda::launch_moe_route({upload(logits), cuda::Scalar::kF32, static_cast<int32_t*>(gpu_experts),
                          static_cast<float*>(gpu_weights), kTokens, kExperts, kTopK},
                         workspace_, nullptr);
  download(experts, gpu_experts);
  download(weights, gpu_weights);
  for (int i = 0; i < kTokens * kTopK; ++i) {
    const int32_t expert = experts.view().as<int32_t>()[i];
    EXPECT_TRUE(0 <= expert && expert < kExperts) << expert;
    EXPECT_TRUE(std::isnan(weights.view().as<float>()[i]));
  }
}

// Experts as a loader places them, at equal distances, dense and packed: few tokens choose them on
// the device, many are sorted by them; and experts anywhere in memory.
TEST_F(CudaMixers, ExpertMlpsEqualTheReference) {
  struct Case {
    DType dtype;
    int group;    // 0: not packed
    bool spread;  // each in memory of its own
    int hidden;
    int intermediate;
  };
  constexpr Case kCases[] = {
      {DType::kF32, 0, false, 96, 160},    {DType::kBF16, 0, true, 96, 160},
      {DType::kBF16, 0, false, 128, 192},  {DType::kBF16, 128, false, 256, 128},
      {DType::kBF16, 32, false, 192, 128}, {DType::kF16, 128, false, 128, 384}};
  constexpr int kExperts = 5;
  for (const Case& one : kCases) {
    std::vector<HostTensor> memory;  // what the weights point into
    std::vector<LinearWeight> host[3];
    for (int which = 0; which < 3; ++which)
      for (int e = 0; e < kExperts; ++e) {
        LinearWeight weight{};
        weight.in_features = which == 2 ? one.intermediate : one.hidden;
        weight.out_features = which == 2 ? one.hidden : one.intermediate;
        if (one.group > 0) {
          const int64_t groups = weight.in_features / one.group;
          weight.format = {4, one.group, false};
          weight.packed.shape = {weight.out_features, weight.in_features / 8};
          memory.emplace_back(DType::kI32, weight.packed.shape);
          for (int64_t i = 0; i < weight.packed.shape.num_elements(); ++i)
            memory.back().view().as<int32_t>()[i] = static_cast<int32_t>(random_());
          weight.packed = memory.back();
          memory.push_back(normal(one.dtype, {weight.out_features, groups}, 0.02f));
          weight.scale = memory.back();
          memory.emplace_back(DType::kI8, Shape{weight.out_features, groups});
          for (int64_t i = 0; i < weight.out_features * groups; ++i)
            memory.back().view().as<int8_t>()[i] = static_cast<int8_t>(pick(-8, 7));
          weight.zero_point = memory.back();
        } else {
          memory.push_back(normal(one.dtype, {weight.out_features, weight.in_features}, 0.1f));
          weight.dense = memory.back();
        }
        host[which].push_back(weight);
      }
    Arena counter;
    for (const auto& weights : host)
      for (const LinearWeight& weight : weights) gpu_->prepare_linear(weight, counter);
    const DeviceMemory on_gpu_memory = gpu_->allocate(2 * counter.used(), "test").value();
    Arena arena(on_gpu_memory.data(), on_gpu_memory.size());
    std::vector<LinearWeight> device[3];
    for (int e = 0; e < kExperts; ++e)
      for (int which = 0; which < 3; ++which) {
        if (one.spread) arena.allocate(static_cast<size_t>(pick(1, 2000)), "a gap");
        device[which].push_back(gpu_->prepare_linear(host[which][static_cast<size_t>(e)], arena));
      }
    gpu_->end_loading();
    const bool type_served =
        cuda::code_capability() >= 80 ? one.dtype != DType::kF32 : one.dtype == DType::kF16;
    const bool on_device = type_served && !one.spread;
    EXPECT_EQ(gpu_->ops().recordable_moe_tokens(device[0], device[1], device[2]) > 0, on_device);
    const auto on_gpu = [&](const HostTensor& tensor) {
      Tensor view = tensor.view();
      view.data = upload(tensor);
      return view;
    };
    for (const int tokens : {0, 1, 5, 7, 32, 33, 150, 400}) {
      const HostTensor x = normal(one.dtype, {tokens, one.hidden});
      const HostTensor experts(DType::kI32, {tokens, 2});
      const HostTensor weights(DType::kF32, {tokens, 2});
      for (int i = 0; i < 2 * tokens; ++i) {
        experts.view().as<int32_t>()[i] = pick(0, kExperts - 1);
        weights.view().as<float>()[i] = 0.25f + 0.5f * static_cast<float>(i % 2);
      }
      for (int t = 0; t < tokens; ++t)  // the router chooses none twice
        if (auto* chosen = experts.view().as<int32_t>() + 2 * t; chosen[0] == chosen[1])
          chosen[1] = (chosen[0] + 1) % kExperts;
      const HostTensor scratch(DType::kF32, {3, std::max(one.hidden, one.intermediate)});
      const HostTensor out(one.dtype, {tokens, one.hidden});
      reference_->ops().moe_mlp(x, experts, weights, host[0], host[1], host[2], scratch, out);
      const Tensor gpu_out = on_gpu(out);
      NB_CUDA(cudaMemset(gpu_out.data, 0xff, gpu_out.num_bytes()));
      NB_CUDA(cudaDeviceSynchronize());
      gpu_->ops().moe_mlp(on_gpu(x), on_gpu(experts), on_gpu(weights), device[0], device[1],
                          device[2], on_gpu(scratch), gpu_out);
      const HostTensor actual(one.dtype, {tokens, one.hidden});
      gpu_->synchronize();
      download(actual, gpu_out.data);
      EXPECT_LT(relative_error(actual.floats(), out.floats()),
                one.dtype == DType::kF32 ? 1e-5 : 1e-2)
          << tokens << " tokens, groups of " << one.group;
    }
    if (one.dtype == DType::kF16) {  // more tokens than the scratch holds at once
      constexpr int kTokens = 50'000;
      const HostTensor x = normal(one.dtype, {kTokens, one.hidden});
      const HostTensor experts(DType::kI32, {kTokens, 2});
      const HostTensor weights(DType::kF32, {kTokens, 2});
      for (int i = 0; i < 2 * kTokens; ++i) {
        experts.view().as<int32_t>()[i] = i % 2 == 0 ? pick(0, 2) : pick(3, 4);
        weights.view().as<float>()[i] = 0.5f;
      }
      const Tensor gpu_x = on_gpu(x), gpu_experts = on_gpu(experts), gpu_weights = on_gpu(weights);
      const HostTensor out(one.dtype, {kTokens, one.hidden}), few(one.dtype, {40, one.hidden});
      const Tensor gpu_out = on_gpu(out), gpu_few = on_gpu(few);
      const auto mlp = [&](int begin, int end, const Tensor& to) {
        gpu_->ops().moe_mlp(gpu_x.rows(begin, end), gpu_experts.rows(begin, end),
                            gpu_weights.rows(begin, end), device[0], device[1], device[2], Tensor{},
                            to);
        gpu_->synchronize();
      };
      mlp(0, kTokens, gpu_out);
      download(out, gpu_out.data);
      const std::vector<float> all = out.floats();
      for (const int begin : {0, 24'000, kTokens - 40}) {
        mlp(begin, begin + 40, gpu_few);
        download(few, gpu_few.data);
        const std::vector<float> rows = few.floats();
        const auto first = all.begin() + int64_t{begin} * one.hidden;
        const std::vector<float> same(first, first + static_cast<int64_t>(rows.size()));
        if (on_device) {
          EXPECT_EQ(rows, same) << "from token " << begin;
        } else {  // the products' kernels depend on how many tokens an expert has
          EXPECT_LT(relative_error(rows, same), 1e-2) << "from token " << begin;
        }
      }
    }
    memory_.clear();
  }
}

TEST_F(CudaMixers, ArgmaxTakesTheFirstOfTheLargest) {
  for (const int vocab_size : {1, 31, 1000, 248320}) {
    constexpr int kRows = 5;
    HostTensor logits = normal(DType::kF32, {kRows, vocab_size}, 4);
    auto* x = logits.view().as<float>();
    for (int row = 0; row < kRows; ++row)  // the same peak twice
      for (int i = 0; i < 2; ++i) x[row * vocab_size + pick(0, vocab_size - 1)] = 40;
    for (int i = 1; i < vocab_size; ++i) x[i] = -INFINITY;  // a masked row
    HostTensor ids(DType::kI32, {kRows});
    HostTensor logprobs(DType::kF32, {kRows});
    void* gpu_ids = poisoned(ids);
    void* gpu_logprobs = poisoned(logprobs);
    cuda::launch_argmax({static_cast<const float*>(upload(logits)), kRows, vocab_size,
                         static_cast<int32_t*>(gpu_ids), static_cast<float*>(gpu_logprobs)},
                        workspace_, nullptr);
    download(ids, gpu_ids);
    download(logprobs, gpu_logprobs);
    for (int row = 0; row < kRows; ++row) {
      const float* begin = x + row * vocab_size;
      const float* largest = std::max_element(begin, begin + vocab_size);
      double sum = 0;
      for (int i = 0; i < vocab_size; ++i)
        sum += std::exp(static_cast<double>(begin[i]) - *largest);
      EXPECT_EQ(ids.view().as<int32_t>()[row], largest - begin) << vocab_size << " row " << row;
      EXPECT_NEAR(logprobs.floats()[static_cast<size_t>(row)], -std::log(sum), 1e-5);
    }
    memory_.clear();
  }
}

}  // namespace
}  // namespace nibble
