// The layers of a model, each written once against Ops. For model/ and quant/.
#pragma once

#include "model/model.h"

namespace nibble {

// Each adds to nothing: `out` [num_tokens, hidden] is what the block contributes to the residual
// stream, `x` is its normed input. Scratch is taken from step.scratch and given back.
void attention_forward(const Step& step, const ModelSpec& spec, const AttentionWeights& weights,
                       const KvCache& cache, const Tensor& x, const Tensor& out);
void gated_delta_net_forward(const Step& step, const ModelSpec& spec,
                             const GatedDeltaNetWeights& weights, const Tensor& conv_state,
                             const Tensor& recurrent_state, const Tensor& x, const Tensor& out);
void mlp_forward(const Step& step, const MlpWeights& weights, const Tensor& x, const Tensor& out);
void moe_forward(const Step& step, const ModelSpec& spec, const MoeWeights& weights,
                 const Tensor& x, const Tensor& out);

// One layer: the residual stream `x` [num_tokens, hidden] is updated in place.
void decoder_layer_forward(const Step& step, const ModelSpec& spec, int layer,
                           const LayerWeights& weights, const Tensor& x);

}  // namespace nibble
