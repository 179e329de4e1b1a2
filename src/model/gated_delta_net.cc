// The linear-attention mixer: projections, short convolution, gated delta rule, gated norm.
#include "model/decoder.h"

namespace nibble {

void gated_delta_net_forward(const Step& step, const ModelSpec& spec,
                             const GatedDeltaNetWeights& weights, const Tensor& conv_state,
                             const Tensor& recurrent_state, const Tensor& x, const Tensor& out) {
  Ops& ops = *step.ops;
  Arena& scratch = *step.scratch;
  const size_t mark = scratch.mark();
  const GatedDeltaNetSpec& d = spec.delta_net;
  const int64_t tokens = step.batch.num_tokens;
  const Shape gate_shape{tokens, d.num_v_heads};
  const Shape key_shape{tokens, d.num_k_heads, d.head_k_dim};
  const Shape value_shape{tokens, d.num_v_heads, d.head_v_dim};

  const Tensor z = scratch.tensor(x.dtype, value_shape, "delta net z");
  const Tensor q = scratch.tensor(x.dtype, key_shape, "delta net q");
  const Tensor k = scratch.tensor(x.dtype, key_shape, "delta net k");
  const Tensor v = scratch.tensor(x.dtype, value_shape, "delta net v");
  const Tensor log_decay = scratch.tensor(DType::kF32, gate_shape, "delta net log decay");
  const Tensor beta = scratch.tensor(DType::kF32, gate_shape, "delta net beta");
  {
    const size_t inner = scratch.mark();
    const Shape mixed_shape{tokens, d.conv_dim()};
    const Tensor mixed = scratch.tensor(x.dtype, mixed_shape, "delta net qkv");
    const Tensor convolved = scratch.tensor(x.dtype, mixed_shape, "delta net conv");
    const Tensor a = scratch.tensor(x.dtype, gate_shape, "delta net a");
    const Tensor b = scratch.tensor(x.dtype, gate_shape, "delta net b");
    ops.linear_group(x, {{&weights.in_proj_qkv, mixed},
                         {&weights.in_proj_z, z},
                         {&weights.in_proj_a, a},
                         {&weights.in_proj_b, b}});
    ops.delta_net_inputs(
        {.conv = {.x = mixed, .weight = weights.conv1d, .state = conv_state, .out = convolved},
         .q = q,
         .k = k,
         .v = v,
         .a = a,
         .b = b,
         .a_log = weights.a_log,
         .dt_bias = weights.dt_bias,
         .log_decay = log_decay,
         .beta = beta},
        step.batch);
    scratch.release(inner);
  }
  const Tensor mixed = scratch.tensor(x.dtype, value_shape, "delta net out");
  ops.gated_delta_net_normed({.q = q,
                              .k = k,
                              .v = v,
                              .log_decay = log_decay,
                              .beta = beta,
                              .state = recurrent_state,
                              .out = mixed},
                             step.batch, z, weights.norm, spec.rms_norm_eps);
  ops.linear(mixed, weights.out_proj, out);
  scratch.release(mark);
}

}  // namespace nibble
