// Attention, convolution, delta rule and experts: tensors to launches.
#include <algorithm>
#include <numeric>

#include "device/cuda/attention.h"
#include "device/cuda/cuda_ops.h"
#include "device/cuda/gated_delta_net.h"
#include "device/cuda/linear_weight.h"
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

AttentionLaunch attention_launch(const AttentionArgs& args) {
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
  return launch;
}

}  // namespace

void CudaOps::attention(const AttentionArgs& args, const RaggedBatch& batch) {
  if (batch.num_tokens == 0) return;
  launch_attention(attention_launch(args), device_batch(batch), workspace_, writing());
}

void CudaOps::attention_gated(const AttentionArgs& args, const RaggedBatch& batch,
                              const Tensor& gate) {
  if (batch.num_tokens == 0) return;
  AttentionLaunch launch = attention_launch(args);
  launch.gate = gate.data;
  if (launch.head_dim % kFixedGroup == 0)
    launch.fixed = room_for(args.out, int64_t{launch.num_heads} * launch.head_dim);
  switch (launch_attention(launch, device_batch(batch), workspace_, writing())) {
    case AttentionEnd::kAttended: return sigmoid_mul(args.out, gate);
    case AttentionEnd::kGated: return;
    case AttentionEnd::kGatedAndFixed: fixed_ = {args.out.data, launch.fixed};
  }
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
  launch_attention_inputs(launch, device_batch(batch), workspace_, writing());
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

DeltaGatesLaunch gates_launch(const Tensor& a, const Tensor& b, const Tensor& a_log,
                              const Tensor& dt_bias, const Tensor& log_decay, const Tensor& beta) {
  return {.a = a.data,
          .b = b.data,
          .a_log = a_log.data,
          .dt_bias = dt_bias.data,
          .log_decay = log_decay.as<float>(),
          .beta = beta.as<float>(),
          .type = scalar_of(a.dtype),
          .a_log_type = scalar_of(a_log.dtype),
          .dt_bias_type = scalar_of(dt_bias.dtype),
          .num_tokens = int_of(a.shape[0]),
          .num_heads = int_of(a_log.num_elements())};
}

DeltaRuleLaunch rule_launch(const GatedDeltaNetArgs& args) {
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
  return launch;
}

}  // namespace

void CudaOps::causal_conv1d(const ConvArgs& args, const RaggedBatch& batch) {
  if (batch.num_tokens == 0) return;
  launch_causal_conv1d(conv_launch(args), device_batch(batch), workspace_, writing());
}

void CudaOps::delta_gates(const Tensor& a, const Tensor& b, const Tensor& a_log,
                          const Tensor& dt_bias, const Tensor& log_decay, const Tensor& beta) {
  if (a.num_elements() == 0) return;
  launch_delta_gates(gates_launch(a, b, a_log, dt_bias, log_decay, beta), workspace_, writing());
}

void CudaOps::delta_net_inputs(const DeltaNetInputsArgs& args, const RaggedBatch& batch) {
  if (batch.num_tokens == 0) return;
  ConvLaunch launch = conv_launch(args.conv);
  const int32_t key_dim = int_of(args.q.num_elements() / batch.num_tokens);
  launch.out[0] = args.q.data;
  launch.out[1] = args.k.data;
  launch.out[2] = args.v.data;
  launch.end[0] = key_dim;
  launch.end[1] = 2 * key_dim;
  const DeltaGatesLaunch gates =
      gates_launch(args.a, args.b, args.a_log, args.dt_bias, args.log_decay, args.beta);
  launch_delta_inputs(launch, gates, device_batch(batch), workspace_, writing());
}

void CudaOps::gated_delta_net(const GatedDeltaNetArgs& args, const RaggedBatch& batch) {
  if (batch.num_tokens == 0) return;
  launch_gated_delta_net(rule_launch(args), device_batch(batch), workspace_, writing());
}

void CudaOps::gated_delta_net_normed(const GatedDeltaNetArgs& args, const RaggedBatch& batch,
                                     const Tensor& gate, const Tensor& norm_weight, float eps) {
  if (batch.num_tokens == 0) return;
  DeltaRuleLaunch launch = rule_launch(args);
  launch.norm = {gate.data, norm_weight.data, scalar_of(norm_weight.dtype), eps};
  if (!launch_gated_delta_net(launch, device_batch(batch), workspace_, writing()))
    gated_rms_norm(args.out, gate, norm_weight, eps, args.out);
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
  launch_moe_route(launch, workspace_, writing());
}

namespace {

// Tokens up to which each (token, expert) pair reads its expert's weights for itself; beyond, the
// tokens of an expert share them. The second is where the kernels that group them on the device
// serve the weights (measured on an H200); where they do not, the host has to be asked.
constexpr int64_t kMostPairedTokens = 32;
constexpr int64_t kMostPairedBeforeGroups = 6;
// Of the scratch, at its end: rows of the tokens at work and their sums. The rest is for products.
constexpr size_t kExpertScratch = size_t{40} << 20;

// Weights of all experts at equal distances in memory, as a loader lays them; false if they are
// not.
bool evenly_spaced(std::span<const LinearWeight> weights, ExpertWeights* experts) {
  *experts = {};
  experts->first = weight_of(weights[0]);
  const auto apart = [](const void* from, const void* to) {
    return static_cast<const std::byte*>(to) - static_cast<const std::byte*>(from);
  };
  for (size_t e = 1; e < weights.size(); ++e) {
    const Weight weight = weight_of(weights[e]);
    const Weight& first = experts->first;
    const int64_t values = apart(first.values, weight.values);
    const int64_t scales = first.scale == nullptr ? 0 : apart(first.scale, weight.scale);
    if (e == 1) {
      experts->values_apart = values;
      experts->scales_apart = scales;
    }
    const auto index = static_cast<int64_t>(e);
    if (values != index * experts->values_apart || scales != index * experts->scales_apart ||
        weight.layout != first.layout || weight.type != first.type ||
        weight.num_groups != first.num_groups)
      return false;
  }
  return true;
}

bool can_group(const ExpertsLaunch& inner, const ExpertsLaunch& outer, size_t num_experts) {
  return can_group_experts(inner, num_experts) && can_group_experts(outer, num_experts);
}

}  // namespace

// The products of pairs, without their rows; false where the kernels do not serve them.
bool CudaOps::paired_experts(DType activations, std::span<const LinearWeight> gate,
                             std::span<const LinearWeight> up, std::span<const LinearWeight> down,
                             ExpertsLaunch* inner, ExpertsLaunch* outer) const {
  *inner = {};
  *outer = {};
  inner->x_type = outer->x_type = scalar_of(activations);
  inner->num_parts = 2;
  outer->num_parts = 1;
  return evenly_spaced(gate, &inner->parts[0]) && evenly_spaced(up, &inner->parts[1]) &&
         evenly_spaced(down, &outer->parts[0]) &&
         launch_linear_experts(*inner, workspace_, stream_, true) &&
         launch_linear_experts(*outer, workspace_, stream_, true);
}

int64_t CudaOps::recordable_moe_tokens(std::span<const LinearWeight> gate,
                                       std::span<const LinearWeight> up,
                                       std::span<const LinearWeight> down) const {
  const DType dtype = gate[0].quantized() ? gate[0].scale.dtype : gate[0].dense.dtype;
  ExpertsLaunch inner;
  ExpertsLaunch outer;
  if (!paired_experts(dtype, gate, up, down, &inner, &outer)) return 0;
  return can_group(inner, outer, gate.size()) ? Ops::recordable_moe_tokens(gate, up, down)
                                              : kMostPairedTokens;
}

void CudaOps::moe_mlp(const Tensor& x, const Tensor& experts, const Tensor& weights,
                      std::span<const LinearWeight> gate, std::span<const LinearWeight> up,
                      std::span<const LinearWeight> down, const Tensor& /*scratch*/,
                      const Tensor& out) {
  if (x.num_elements() == 0) return;
  Arena area(static_cast<std::byte*>(workspace_.scratch) + workspace_.scratch_size - kExpertScratch,
             kExpertScratch);
  ExpertsLaunch inner;
  ExpertsLaunch outer;
  const bool paired = paired_experts(x.dtype, gate, up, down, &inner, &outer);
  if (paired && x.shape[0] > kMostPairedBeforeGroups && can_group(inner, outer, gate.size()))
    return moe_mlp_grouped(x, experts, weights, gate.size(), inner, outer, out);
  if (!paired || x.shape[0] > kMostPairedTokens)
    return moe_mlp_by_expert(x, experts, weights, gate, up, down, out, area);
  const int64_t pairs = experts.num_elements();
  const Tensor g = area.tensor(x.dtype, {pairs, gate[0].out_features}, "experts' gates");
  const Tensor u = area.tensor(x.dtype, g.shape, "experts' inputs");
  const Tensor y = area.tensor(x.dtype, {pairs, x.shape[1]}, "experts' outputs");
  inner.x = x.data;
  inner.pairs_per_row = int_of(experts.shape[1]);
  inner.parts[0].out = g.data;
  inner.parts[1].out = u.data;
  outer.x = g.data;
  outer.pairs_per_row = 1;
  outer.parts[0].out = y.data;
  for (ExpertsLaunch* launch : {&inner, &outer}) {
    launch->experts = experts.as<const int32_t>();
    launch->num_pairs = int_of(pairs);
  }
  NB_CHECK(launch_linear_experts(inner, workspace_, writing()), "experts were promised");
  silu_mul(g, u, g);
  NB_CHECK(launch_linear_experts(outer, workspace_, writing()), "experts were promised");
  join_experts(y, weights, out);
}

// out[t] = the sum of its rows of y [num_tokens * top_k, hidden] by weights [num_tokens, top_k].
void CudaOps::join_experts(const Tensor& y, const Tensor& weights, const Tensor& out) {
  launch_expert_join({.y = y.data,
                      .weights = weights.as<const float>(),
                      .out = out.data,
                      .type = scalar_of(out.dtype),
                      .num_tokens = int_of(out.shape[0]),
                      .top_k = int_of(weights.shape[1]),
                      .hidden = int_of(out.shape[1])},
                     workspace_, writing());
}

// Each expert computes all its tokens at once, as many tokens at a time as the scratch has room
// for.
void CudaOps::moe_mlp_grouped(const Tensor& x, const Tensor& experts, const Tensor& weights,
                              size_t num_experts, ExpertsLaunch inner, ExpertsLaunch outer,
                              const Tensor& out) {
  const int64_t hidden = x.shape[1];
  const int64_t top_k = experts.shape[1];
  const int64_t width = inner.parts[0].first.out_features;
  const size_t row_bytes = static_cast<size_t>(width + hidden) * dtype_size(x.dtype);
  const auto count = static_cast<int32_t>(num_experts);
  // A plan takes 4 bytes a pair and 12 a tile, of which there are fewer than pairs.
  const auto most_pairs =
      static_cast<int64_t>((workspace_.scratch_size - 8 * Arena::kAlignment) / (row_bytes + 16));
  constexpr int64_t kMostAtOnce = 65'535;  // tokens of a launch_expert_join()
  const int64_t piece = std::min(kMostAtOnce, most_pairs / top_k);
  NB_CHECK(piece > 0, "experts of %lld inputs", static_cast<long long>(hidden));
  for (int64_t begin = 0; begin < x.shape[0]; begin += piece) {
    const int64_t tokens = std::min(piece, x.shape[0] - begin);
    const int64_t pairs = tokens * top_k;
    Arena area(workspace_.scratch, workspace_.scratch_size);
    ExpertPlan plan = expert_plan_of(int_of(pairs), count);
    plan.memory = area.allocate(plan.bytes, "experts' rows");
    const Tensor g = area.tensor(x.dtype, {pairs, width}, "experts' inner rows");
    const Tensor y = area.tensor(x.dtype, {pairs, hidden}, "experts' outputs");
    launch_expert_plan(experts.as<const int32_t>() + begin * top_k, plan, writing());
    inner.x = x.rows(begin, begin + tokens).data;
    inner.pairs_per_row = int_of(top_k);
    inner.parts[0].out = g.data;
    outer.x = g.data;
    outer.pairs_per_row = 1;
    outer.parts[0].out = y.data;
    launch_linear_grouped(inner, plan, workspace_, writing());
    launch_linear_grouped(outer, plan, workspace_, writing());
    join_experts(y, weights.rows(begin, begin + tokens), out.rows(begin, begin + tokens));
  }
}

// The chosen experts are read back, which waits for the stream and cannot be recorded; then each
// expert computes all its tokens at once, as many tokens at a time as `area` has room for.
void CudaOps::moe_mlp_by_expert(const Tensor& x, const Tensor& experts, const Tensor& weights,
                                std::span<const LinearWeight> gate,
                                std::span<const LinearWeight> up,
                                std::span<const LinearWeight> down, const Tensor& out,
                                Arena& area) {
  const int64_t hidden = x.shape[1];
  const int64_t inner = gate[0].out_features;
  const int64_t top_k = experts.shape[1];
  chosen_experts_.resize(static_cast<size_t>(experts.num_elements()));
  expert_weights_.resize(chosen_experts_.size());
  NB_CUDA(cudaMemcpyAsync(chosen_experts_.data(), experts.data, experts.num_bytes(),
                          cudaMemcpyDeviceToHost, stream_));
  NB_CUDA(cudaMemcpyAsync(expert_weights_.data(), weights.data, weights.num_bytes(),
                          cudaMemcpyDeviceToHost, stream_));
  NB_CUDA(cudaStreamSynchronize(stream_));
  // The products take their own scratch from what is left.
  Workspace rest = workspace_;
  rest.scratch_size -= kExpertScratch;
  const size_t row_bytes = static_cast<size_t>(hidden) * sizeof(float) +
                           static_cast<size_t>(top_k) * 8 +
                           2 * static_cast<size_t>(hidden + inner) * dtype_size(x.dtype);
  const auto piece = static_cast<int64_t>((kExpertScratch - 8 * Arena::kAlignment) / row_bytes);
  NB_CHECK(piece > 0, "experts of %lld inputs", static_cast<long long>(hidden));
  std::vector<int32_t> rows;  // of the piece, expert after expert
  std::vector<float> scales;
  std::vector<int64_t> end(gate.size());
  for (int64_t begin = 0; begin < x.shape[0]; begin += piece) {
    const int64_t tokens = std::min(piece, x.shape[0] - begin);
    const auto first = static_cast<size_t>(begin * top_k);
    const auto count = static_cast<size_t>(tokens * top_k);
    // Counting sort by expert; tokens stay in order.
    std::ranges::fill(end, 0);
    for (size_t p = 0; p < count; ++p) ++end[static_cast<size_t>(chosen_experts_[first + p])];
    std::exclusive_scan(end.begin(), end.end(), end.begin(), int64_t{0});
    rows.resize(count);
    scales.resize(count);
    for (size_t p = 0; p < count; ++p) {
      const auto at = static_cast<size_t>(end[static_cast<size_t>(chosen_experts_[first + p])]++);
      rows[at] = static_cast<int32_t>(static_cast<int64_t>(p) / top_k);
      scales[at] = expert_weights_[first + p];
    }
    const size_t mark = area.mark();
    const auto num_pairs = static_cast<int64_t>(count);
    const Tensor sums = area.tensor(DType::kF32, {tokens, hidden}, "sums over experts");
    const Tensor all_rows = area.tensor(DType::kI32, {num_pairs}, "experts' rows");
    const Tensor all_scales = area.tensor(DType::kF32, {num_pairs}, "experts' weights");
    const Tensor own = area.tensor(x.dtype, {tokens, hidden}, "an expert's inputs");
    const Tensor g = area.tensor(x.dtype, {tokens, inner}, "an expert's gates");
    const Tensor u = area.tensor(x.dtype, {tokens, inner}, "an expert's inner inputs");
    const Tensor y = area.tensor(x.dtype, {tokens, hidden}, "an expert's outputs");
    NB_CUDA(cudaMemcpyAsync(all_rows.data, rows.data(), all_rows.num_bytes(),
                            cudaMemcpyHostToDevice, writing()));
    NB_CUDA(cudaMemcpyAsync(all_scales.data, scales.data(), all_scales.num_bytes(),
                            cudaMemcpyHostToDevice, writing()));
    NB_CUDA(cudaMemsetAsync(sums.data, 0, sums.num_bytes(), writing()));
    const auto product = [&](const Tensor& from, const LinearWeight& weight, const Tensor& to) {
      launch_linear({from.data, scalar_of(from.dtype), weight_of(weight), to.data,
                     scalar_of(to.dtype), from.shape[0]},
                    rest, writing());
    };
    int64_t start = 0;
    for (size_t e = 0; e < gate.size(); start = end[e++]) {
      const int64_t own_tokens = end[e] - start;
      if (own_tokens == 0) continue;
      const Tensor xs = own.rows(0, own_tokens);
      gather_rows(x.rows(begin, begin + tokens), all_rows.as<const int32_t>() + start, xs);
      const Tensor gates = g.rows(0, own_tokens);
      product(xs, gate[e], gates);
      product(xs, up[e], u.rows(0, own_tokens));
      silu_mul(gates, u.rows(0, own_tokens), gates);
      product(gates, down[e], y.rows(0, own_tokens));
      launch_expert_add({.y = y.data,
                         .rows = all_rows.as<const int32_t>() + start,
                         .weights = all_scales.as<const float>() + start,
                         .sums = sums.as<float>(),
                         .type = scalar_of(x.dtype),
                         .num_rows = int_of(own_tokens),
                         .hidden = int_of(hidden)},
                        writing());
    }
    launch_round(sums.as<const float>(), out.rows(begin, begin + tokens).data, scalar_of(out.dtype),
                 tokens * hidden, writing());
    area.release(mark);
  }
}

}  // namespace nibble::cuda
