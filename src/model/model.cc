// Loading and the whole forward pass: embed, layers, final norm, head.
#include "model/model.h"

#include "base/log.h"
#include "model/architectures.h"
#include "model/decoder.h"
#include "model/half_weights.h"
#include "model/weight_shapes.h"

namespace nibble {

ModelCaches place_caches(const ModelSpec& spec, const CacheShape& shape, DType activation_dtype,
                         Arena& arena) {
  ModelCaches caches;
  const size_t num_layers = spec.layers.size();
  caches.kv.resize(num_layers);
  caches.conv_state.resize(num_layers);
  caches.recurrent_state.resize(num_layers);
  const GatedDeltaNetSpec& d = spec.delta_net;
  const int num_slots = shape.num_state_slots + shape.num_snapshot_slots;
  for (size_t layer = 0; layer < num_layers; ++layer) {
    if (spec.layers[layer].mixer == MixerKind::kFullAttention) {
      const Shape kv_shape{shape.num_blocks, shape.block_size, spec.attention.num_kv_heads,
                           spec.attention.head_dim};
      caches.kv[layer] = {arena.tensor(shape.kv_dtype, kv_shape, "keys"),
                          arena.tensor(shape.kv_dtype, kv_shape, "values"),
                          {shape.kv_dtype}};
    } else {
      caches.conv_state[layer] = arena.tensor(
          activation_dtype, {num_slots, d.conv_dim(), d.conv_kernel - 1}, "conv states");
      caches.recurrent_state[layer] = arena.tensor(
          DType::kF32, {num_slots, d.num_v_heads, d.head_k_dim, d.head_v_dim}, "recurrent states");
    }
  }
  return caches;
}

namespace {

DenseStorage storage_for(DType activation, DenseStorage wanted) {
  return activation == DType::kBF16 ? wanted : DenseStorage::kPlain;
}

}  // namespace

Result<Model> Model::bind(const WeightSource& source, const ModelSpec& spec, Device& device,
                          DType activation_dtype, DenseStorage storage) {
  storage = storage_for(activation_dtype, storage);
  Model model;
  model.activation_dtype_ = activation_dtype;
  model.spec_ = spec;
  Arena counter;
  NB_TRY(model.weights_, bind_weights(source, spec, device, counter, storage));
  model.arena_bytes_ = counter.used();
  if (counter.used() == 0) return model;  // the device computes on the source's own bytes
  NB_TRY(model.memory_, device.allocate(counter.used(), "weights"));
  Arena arena(model.memory_.data(), model.memory_.size());
  if (activation_dtype == DType::kF16) {
    const HalfWeights halves(source);
    NB_TRY(model.weights_, bind_weights(halves, spec, device, arena, storage));
    if (halves.lost() > 0)
      log_warning("{} weights are too small for float16 and became zero", halves.lost());
  } else {
    NB_TRY(model.weights_, bind_weights(source, spec, device, arena, storage));
  }
  device.end_loading();
  return model;
}

Result<Model> Model::load(const ModelDir& dir, Device& device, DType activation_dtype,
                          DenseStorage storage) {
  NB_TRY(const ModelSpec spec, parse_model_config(dir.config()));
  return bind(*source_of(dir), spec, device, activation_dtype, storage);
}

Result<Model> Model::load(const WeightSource& source, const ModelSpec& spec, Device& device,
                          DType activation_dtype, DenseStorage storage) {
  return bind(source, spec, device, activation_dtype, storage);
}

Result<Model> Model::shapes(const ModelSpec& spec,
                            const std::optional<QuantizationConfig>& quantization, Device& device,
                            DType activation_dtype, DenseStorage storage) {
  Model model;
  model.activation_dtype_ = activation_dtype;
  model.spec_ = spec;
  NB_TRY(const WeightShapes source, WeightShapes::make(spec, quantization));
  Arena counter;
  NB_TRY(model.weights_,
         bind_weights(source, spec, device, counter, storage_for(activation_dtype, storage)));
  model.arena_bytes_ = counter.used();
  return model;
}

WeightBytes Model::weight_bytes() const {
  const bool head_is_embedding =
      spec_.tie_word_embeddings && weights_.lm_head.dense.data == weights_.embed_tokens.data;
  return nibble::weight_bytes(weights_, head_is_embedding);
}

// A layer's last block is added by the norm of the next layer, unless somebody wants to see the
// sum.
void Model::decoder_forward(const Step& step, const Tensor& x) const {
  const auto num_layers = static_cast<int>(weights_.layers.size());
  const auto weights = [&](int layer) -> const LayerWeights& {
    return weights_.layers[static_cast<size_t>(layer)];
  };
  if (step.observe) {
    for (int layer = 0; layer < num_layers; ++layer)
      decoder_layer_forward(step, spec_, layer, weights(layer), x);
    return;
  }
  const size_t mark = step.scratch->mark();
  const Tensor block = step.scratch->tensor(x.dtype, x.shape, "block output");
  for (int layer = 0; layer < num_layers; ++layer)
    decoder_layer_blocks(step, spec_, layer, weights(layer), x, block, layer > 0);
  if (num_layers > 0) step.ops->add(x, block);
  step.scratch->release(mark);
}

void Model::forward(const Step& step, const Tensor& logits) const {
  Ops& ops = *step.ops;
  Arena& scratch = *step.scratch;
  const size_t mark = scratch.mark();
  const Shape shape{step.batch.num_tokens, spec_.hidden_size};
  const Tensor x = scratch.tensor(activation_dtype_, shape, "residual stream");
  ops.embed(weights_.embed_tokens, step.token_ids, x);
  if (step.observe) step.observe("embed", -1, x);
  decoder_forward(step, x);

  // Norm and head only for the rows that are asked for.
  const Shape head_shape{step.num_logit_rows, spec_.hidden_size};
  const Tensor rows = scratch.tensor(activation_dtype_, head_shape, "head input");
  ops.gather_rows(x, step.logit_rows, rows);
  ops.rms_norm(rows, weights_.norm, spec_.rms_norm_eps, spec_.norm_weight_offset, rows);
  if (step.observe) step.observe("norm", -1, rows);
  ops.linear(rows, weights_.lm_head, logits);
  scratch.release(mark);
}

size_t Model::activation_bytes(int32_t num_tokens, int32_t num_logit_rows) const {
  MeteringOps ops;
  Arena counter;
  RaggedBatch batch;
  batch.num_tokens = num_tokens;
  meter(batch, num_logit_rows, activation_dtype_, &ops, &counter);
  return counter.peak();
}

StepCost Model::step_cost(std::span<const int32_t> new_tokens, std::span<const int32_t> context,
                          int32_t num_logit_rows, DType kv_dtype) const {
  std::vector<int32_t> query_start = {0};
  for (const int32_t count : new_tokens) query_start.push_back(query_start.back() + count);
  RaggedBatch batch;
  batch.num_tokens = query_start.back();
  batch.num_seqs = static_cast<int32_t>(new_tokens.size());
  batch.query_start = query_start.data();
  batch.context_len = context.data();
  MeteringOps ops;
  Arena counter;
  meter(batch, num_logit_rows, kv_dtype, &ops, &counter);
  return ops.cost();
}

void Model::meter(const RaggedBatch& batch, int32_t num_logit_rows, DType kv_dtype,
                  MeteringOps* ops, Arena* counter) const {
  Arena cache_counter;
  ModelCaches caches =
      place_caches(spec_, {.kv_dtype = kv_dtype}, activation_dtype_, cache_counter);
  Step step;
  step.ops = ops;
  step.batch = batch;
  step.num_logit_rows = num_logit_rows;
  step.caches = &caches;
  step.scratch = counter;
  forward(step, {nullptr, DType::kF32, {num_logit_rows, spec_.vocab_size}});
}

}  // namespace nibble
