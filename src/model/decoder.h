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

// One layer but for its last sum: mixer and FFN in turn write `block` [num_tokens, hidden]. The
// mixer's is added to the residual stream `x` [num_tokens, hidden] in place, the FFN's is left in
// `block`, due. `block_is_due`: that of the layer before is still there and is added first.
void decoder_layer_blocks(const Step& step, const ModelSpec& spec, int layer,
                          const LayerWeights& weights, const Tensor& x, const Tensor& block,
                          bool block_is_due);

// One layer: the residual stream `x` [num_tokens, hidden] is updated in place.
void decoder_layer_forward(const Step& step, const ModelSpec& spec, int layer,
                           const LayerWeights& weights, const Tensor& x);

}  // namespace nibble
