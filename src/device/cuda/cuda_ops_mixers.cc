// Attention, convolution, delta rule and experts: tensors to launches.
#include "device/cuda/attention.h"
#include "device/cuda/cuda_ops.h"
#include "device/cuda/gated_delta_net.h"
#include "device/cuda/moe.h"

namespace nibble::cuda {
namespace {

DeviceBatch device_batch(const RaggedBatch& batch) {
  return {batch.num_tokens,  batch.num_seqs,    batch.query_start,
          batch.context_len, batch.block_table, batch.max_blocks,
          batch.block_size,  batch.state_slot,  batch.state_is_fresh};
}

int32_t int_of(int64_t dim) {
  return static_cast<int32_t>(dim);
}

}  // namespace

void CudaOps::attention(const AttentionArgs& args, const RaggedBatch& batch) {
  if (batch.num_tokens == 0) return;
  const AttentionLaunch launch{.q = args.q.data,
                               .out = args.out.data,
                               .k_cache = args.cache.k.data,
                               .v_cache = args.cache.v.data,
                               .type = scalar_of(args.q.dtype),
                               .cache_type = scalar_of(args.cache.format.dtype),
                               .num_heads = int_of(args.q.shape[1]),
                               .num_kv_heads = args.num_kv_heads,
                               .head_dim = int_of(args.q.shape[2]),
                               .softmax_scale = args.softmax_scale};
  NB_CHECK(launch.head_dim <= 256, "attention over heads of %d", launch.head_dim);
  launch_attention(launch, device_batch(batch), workspace_, stream_);
}

void CudaOps::attention_inputs(const AttentionInputsArgs& args, const RaggedBatch& batch) {
  if (batch.num_tokens == 0) return;
  const bool gated = args.q_and_gate.shape.rank() > 0;
  const bool normed = args.q_norm.shape.rank() > 0;
  NB_CHECK(args.q.shape[2] <= 256 && (!normed || args.q_norm.dtype == args.k_norm.dtype),
           "attention over heads of %lld", static_cast<long long>(args.q.shape[2]));
  const AttentionInputsLaunch launch{
      .q_and_gate = gated ? args.q_and_gate.data : nullptr,
      .q = args.q.data,
      .gate = args.gate.data,
      .k = args.k.data,
      .v = args.v.data,
      .q_norm = normed ? args.q_norm.data : nullptr,
      .k_norm = normed ? args.k_norm.data : nullptr,
      .k_cache = args.cache.k.data,
      .v_cache = args.cache.v.data,
      .type = scalar_of(args.q.dtype),
      .norm_type = normed ? scalar_of(args.q_norm.dtype) : Scalar::kF32,
      .cache_type = scalar_of(args.cache.format.dtype),
      .num_heads = int_of(args.q.shape[1]),
      .num_kv_heads = int_of(args.k.shape[1]),
      .head_dim = int_of(args.q.shape[2]),
      .norm_eps = args.norm_eps,
      .norm_weight_offset = args.norm_weight_offset,
      .rope = rope_launch(args.rope, batch.num_tokens)};
  launch_attention_inputs(launch, device_batch(batch), workspace_, stream_);
}

namespace {

ConvLaunch conv_launch(const ConvArgs& args) {
  const int32_t channels = int_of(args.x.shape[1]);
  const ConvLaunch launch{.x = args.x.data,
                          .weight = args.weight.data,
                          .state = args.state.data,
                          .out = {args.out.data, nullptr, nullptr},
                          .end = {channels, channels},
                          .type = scalar_of(args.x.dtype),
                          .weight_type = scalar_of(args.weight.dtype),
                          .channels = channels,
                          .kernel = int_of(args.weight.shape[1])};
  NB_CHECK(launch.kernel >= 2 && launch.kernel <= 8, "a convolution over %d tokens", launch.kernel);
  return launch;
}

}  // namespace

void CudaOps::causal_conv1d(const ConvArgs& args, const RaggedBatch& batch) {
  if (batch.num_tokens == 0) return;
  launch_causal_conv1d(conv_launch(args), device_batch(batch), workspace_, stream_);
}

void CudaOps::causal_conv1d_split(const ConvArgs& args, const RaggedBatch& batch, const Tensor& q,
                                  const Tensor& k, const Tensor& v) {
  if (batch.num_tokens == 0) return;
  ConvLaunch launch = conv_launch(args);
  const int32_t key_dim = int_of(q.num_elements() / batch.num_tokens);
  launch.out[0] = q.data;
  launch.out[1] = k.data;
  launch.out[2] = v.data;
  launch.end[0] = key_dim;
  launch.end[1] = 2 * key_dim;
  launch_causal_conv1d(launch, device_batch(batch), workspace_, stream_);
}

void CudaOps::delta_gates(const Tensor& a, const Tensor& b, const Tensor& a_log,
                          const Tensor& dt_bias, const Tensor& log_decay, const Tensor& beta) {
  if (a.num_elements() == 0) return;
  launch_delta_gates({.a = a.data,
                      .b = b.data,
                      .a_log = a_log.data,
                      .dt_bias = dt_bias.data,
                      .log_decay = log_decay.as<float>(),
                      .beta = beta.as<float>(),
                      .type = scalar_of(a.dtype),
                      .a_log_type = scalar_of(a_log.dtype),
                      .dt_bias_type = scalar_of(dt_bias.dtype),
                      .num_tokens = int_of(a.shape[0]),
                      .num_heads = int_of(a_log.num_elements())},
                     workspace_, stream_);
}

void CudaOps::gated_delta_net(const GatedDeltaNetArgs& args, const RaggedBatch& batch) {
  if (batch.num_tokens == 0) return;
  const DeltaRuleLaunch launch{.q = args.q.data,
                               .k = args.k.data,
                               .v = args.v.data,
                               .log_decay = args.log_decay.as<const float>(),
                               .beta = args.beta.as<const float>(),
                               .state = args.state.as<float>(),
                               .out = args.out.data,
                               .type = scalar_of(args.q.dtype),
                               .num_k_heads = int_of(args.q.shape[1]),
                               .num_v_heads = int_of(args.v.shape[1]),
                               .k_dim = int_of(args.q.shape[2]),
                               .v_dim = int_of(args.v.shape[2])};
  NB_CHECK(launch.k_dim <= 256 && launch.v_dim <= 1024, "a delta rule over heads of %d and %d",
           launch.k_dim, launch.v_dim);
  launch_gated_delta_net(launch, device_batch(batch), workspace_, stream_);
}

void CudaOps::moe_route(const Tensor& logits, int32_t top_k, const Tensor& experts,
                        const Tensor& weights) {
  if (logits.num_elements() == 0) return;
  const MoeRouteLaunch launch{.logits = logits.data,
                              .type = scalar_of(logits.dtype),
                              .experts = experts.as<int32_t>(),
                              .weights = weights.as<float>(),
                              .num_tokens = int_of(logits.shape[0]),
                              .num_experts = int_of(logits.shape[1]),
                              .top_k = top_k};
  NB_CHECK(launch.num_experts <= 1024 && top_k <= 32, "routing to %d of %d experts", top_k,
           launch.num_experts);
  launch_moe_route(launch, stream_);
}

// Right before it is fast: the chosen experts are read back, which waits for the stream (and cannot
// be captured into a graph), and each (token, expert) pair is three products of one row.
void CudaOps::moe_mlp(const Tensor& x, const Tensor& experts, const Tensor& weights,
                      const LinearWeight* gate, const LinearWeight* up, const LinearWeight* down,
                      const Tensor& scratch, const Tensor& out) {
  if (x.num_elements() == 0) return;
  const int64_t hidden = x.shape[1];
  const int64_t top_k = experts.shape[1];
  auto* scratch_bytes = static_cast<std::byte*>(scratch.data);
  const size_t row_bytes = static_cast<size_t>(scratch.shape[1]) * sizeof(float);
  chosen_experts_.resize(static_cast<size_t>(experts.num_elements()));
  NB_CUDA(cudaMemcpyAsync(chosen_experts_.data(), experts.data, experts.num_bytes(),
                          cudaMemcpyDeviceToHost, stream_));
  NB_CUDA(cudaStreamSynchronize(stream_));
  for (int64_t t = 0; t < x.shape[0]; ++t) {
    for (int64_t i = 0; i < top_k; ++i) {
      const int32_t e = chosen_experts_[static_cast<size_t>(t * top_k + i)];
      // Rows of scratch: gate; up, then down's result; the f32 sum over experts.
      const Tensor g{scratch_bytes, x.dtype, {1, gate[e].out_features}};
      const Tensor u{scratch_bytes + row_bytes, x.dtype, {1, gate[e].out_features}};
      const Tensor y{scratch_bytes + row_bytes, x.dtype, {1, hidden}};
      linear(x.rows(t, t + 1), gate[e], g);
      linear(x.rows(t, t + 1), up[e], u);
      silu_mul(g, u, g);
      linear(g, down[e], y);
      launch_expert_sum({.y = y.data,
                         .weight = weights.as<const float>() + t * top_k + i,
                         .sum = reinterpret_cast<float*>(scratch_bytes + 2 * row_bytes),
                         .out = out.rows(t, t + 1).data,
                         .type = scalar_of(x.dtype),
                         .hidden = int_of(hidden),
                         .first = i == 0,
                         .last = i + 1 == top_k},
                        stream_);
    }
  }
}

}  // namespace nibble::cuda
