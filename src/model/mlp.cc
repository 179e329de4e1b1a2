// SwiGLU, and the mixture of experts with its shared expert.
#include <algorithm>

#include "model/decoder.h"

namespace nibble {

void mlp_forward(const Step& step, const MlpWeights& weights, const Tensor& x, const Tensor& out) {
  Arena& scratch = *step.scratch;
  const size_t mark = scratch.mark();
  const Shape shape{step.batch.num_tokens, weights.gate_proj.out_features};
  const Tensor gate = scratch.tensor(x.dtype, shape, "mlp gate");
  const Tensor up = scratch.tensor(x.dtype, shape, "mlp up");
  step.ops->linear_group(x, {{&weights.gate_proj, gate}, {&weights.up_proj, up}});
  step.ops->silu_mul(gate, up, gate);
  step.ops->linear(gate, weights.down_proj, out);
  scratch.release(mark);
}

void moe_forward(const Step& step, const ModelSpec& spec, const MoeWeights& weights,
                 const Tensor& x, const Tensor& out) {
  Ops& ops = *step.ops;
  Arena& scratch = *step.scratch;
  const size_t mark = scratch.mark();
  const MoeSpec& m = spec.moe;
  const int64_t tokens = step.batch.num_tokens;
  const Tensor logits = scratch.tensor(x.dtype, {tokens, m.num_experts}, "router logits");
  const Tensor experts = scratch.tensor(DType::kI32, {tokens, m.num_experts_per_tok}, "experts");
  const Tensor routing =
      scratch.tensor(DType::kF32, {tokens, m.num_experts_per_tok}, "expert weights");
  const int64_t width = std::max<int64_t>(m.moe_intermediate_size, spec.hidden_size);
  const Tensor workspace = scratch.tensor(DType::kF32, {3, width}, "expert workspace");
  const Tensor shared = scratch.tensor(x.dtype, x.shape, "shared expert");
  const Tensor shared_gate = scratch.tensor(x.dtype, {tokens, 1}, "shared expert gate");

  ops.linear(x, weights.router, logits);
  ops.moe_route(logits, m.num_experts_per_tok, experts, routing);
  ops.moe_mlp(x, experts, routing, weights.gate_proj, weights.up_proj, weights.down_proj, workspace,
              out);
  mlp_forward(step, weights.shared_expert, x, shared);
  ops.linear(x, weights.shared_expert_gate, shared_gate);
  ops.sigmoid_mul(shared, shared_gate);
  ops.add(out, shared);
  scratch.release(mark);
}

}  // namespace nibble
