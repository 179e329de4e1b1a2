// x += mixer(norm(x)); x += ffn(norm(x)).
#include "model/decoder.h"

namespace nibble {

void decoder_layer_blocks(const Step& step, const ModelSpec& spec, int layer,
                          const LayerWeights& weights, const Tensor& x, const Tensor& block,
                          bool block_is_due) {
  Ops& ops = *step.ops;
  Arena& scratch = *step.scratch;
  const size_t mark = scratch.mark();
  const auto index = static_cast<size_t>(layer);
  const LayerSpec& layer_spec = spec.layers[index];
  const Tensor normed = scratch.tensor(x.dtype, x.shape, "normed");

  if (block_is_due) {
    ops.add_rms_norm(x, block, weights.input_layernorm, spec.rms_norm_eps, spec.norm_weight_offset,
                     normed);
  } else {
    ops.rms_norm(x, weights.input_layernorm, spec.rms_norm_eps, spec.norm_weight_offset, normed);
  }
  if (step.observe) step.observe("mixer input", layer, normed);
  if (layer_spec.mixer == MixerKind::kFullAttention) {
    attention_forward(step, spec, weights.attention, step.caches->kv[index], normed, block);
  } else {
    gated_delta_net_forward(step, spec, weights.delta_net, step.caches->conv_state[index],
                            step.caches->recurrent_state[index], normed, block);
  }
  if (step.observe) step.observe("mixer", layer, block);
  ops.add_rms_norm(x, block, weights.post_attention_layernorm, spec.rms_norm_eps,
                   spec.norm_weight_offset, normed);
  if (step.observe) step.observe("mlp input", layer, normed);
  if (layer_spec.ffn == FfnKind::kDense) {
    mlp_forward(step, weights.mlp, normed, block);
  } else {
    moe_forward(step, spec, weights.moe, normed, block);
  }
  if (step.observe) step.observe("mlp", layer, block);
  scratch.release(mark);
}

void decoder_layer_forward(const Step& step, const ModelSpec& spec, int layer,
                           const LayerWeights& weights, const Tensor& x) {
  Arena& scratch = *step.scratch;
  const size_t mark = scratch.mark();
  const Tensor block = scratch.tensor(x.dtype, x.shape, "block output");
  decoder_layer_blocks(step, spec, layer, weights, x, block, false);
  step.ops->add(x, block);
  if (step.observe) step.observe("layer", layer, x);
  scratch.release(mark);
}

}  // namespace nibble
