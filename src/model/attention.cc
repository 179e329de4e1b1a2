// Gated full attention: projections, q/k norm, rotary embedding, cache, softmax, output gate.
#include <cmath>

#include "model/decoder.h"

namespace nibble {

void attention_forward(const Step& step, const ModelSpec& spec, const AttentionWeights& weights,
                       const KvCache& cache, const Tensor& x, const Tensor& out) {
  Ops& ops = *step.ops;
  Arena& scratch = *step.scratch;
  const size_t mark = scratch.mark();
  const AttentionSpec& a = spec.attention;
  const int64_t tokens = step.batch.num_tokens;
  const Shape q_shape{tokens, a.num_heads, a.head_dim};
  const Shape kv_shape{tokens, a.num_kv_heads, a.head_dim};

  const Tensor q = scratch.tensor(x.dtype, q_shape, "attention q");
  const Tensor k = scratch.tensor(x.dtype, kv_shape, "attention k");
  const Tensor v = scratch.tensor(x.dtype, kv_shape, "attention v");
  Tensor gate;
  if (a.output_gate) gate = scratch.tensor(x.dtype, q_shape, "attention gate");
  {
    const size_t inner = scratch.mark();
    Tensor q_and_gate;
    if (a.output_gate)
      q_and_gate = scratch.tensor(x.dtype, {tokens, a.num_heads, int64_t{2} * a.head_dim},
                                  "attention q and gate");
    ops.linear_group(x, {{&weights.q_proj, a.output_gate ? q_and_gate : q},
                         {&weights.k_proj, k},
                         {&weights.v_proj, v}});
    ops.attention_inputs(
        {.q_and_gate = q_and_gate,
         .q = q,
         .gate = gate,
         .k = k,
         .v = v,
         .q_norm = weights.q_norm,
         .k_norm = weights.k_norm,
         .norm_eps = spec.rms_norm_eps,
         .norm_weight_offset = spec.norm_weight_offset,
         .rope = {.x = q,
                  .positions = step.positions,
                  .inv_freq = spec.rope.inv_freq.data(),
                  .rotary_dim = spec.rope.rotary_dim,
                  .mrope_section = {spec.rope.mrope_section[0], spec.rope.mrope_section[1],
                                    spec.rope.mrope_section[2]},
                  .attention_scaling = spec.rope.attention_scaling},
         .cache = cache},
        step.batch);
    scratch.release(inner);
  }
  const Tensor attended = scratch.tensor(x.dtype, q_shape, "attention out");
  const AttentionArgs attention{.q = q,
                                .out = attended,
                                .cache = cache,
                                .num_kv_heads = a.num_kv_heads,
                                .softmax_scale = 1.0f / std::sqrt(static_cast<float>(a.head_dim))};
  if (a.output_gate) {
    ops.attention_gated(attention, step.batch, gate);
  } else {
    ops.attention(attention, step.batch);
  }
  ops.linear(attended, weights.o_proj, out);
  scratch.release(mark);
}

}  // namespace nibble
