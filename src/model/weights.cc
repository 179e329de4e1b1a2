// Names on disk to weights in memory, and the list of Linears that recipes match.
#include "model/weights.h"

#include <utility>

#include "base/format.h"
#include "device/planning_device.h"

namespace nibble {
namespace {

// Fused expert stacks are 3-D tensors without ".weight"; expert e is a slice of rows.
Tensor expert_slice(const Tensor& stack, int64_t expert, int64_t begin, int64_t end) {
  const Tensor one = stack.rows(expert, expert + 1);
  return one.reshaped({stack.shape[1], stack.shape[2]}).rows(begin, end);
}

class DirSource final : public WeightSource {
 public:
  explicit DirSource(const ModelDir& dir) : dir_(dir) {}
  bool has(std::string_view name) const override { return dir_.has(name); }
  Result<Tensor> tensor(std::string_view name, const Shape& expected) const override {
    return dir_.tensor(name, expected);
  }
  Result<LinearWeight> linear(std::string_view name, int64_t out, int64_t in) const override {
    return dir_.linear(name, out, in);
  }

 private:
  const ModelDir& dir_;
};

class Binder {
 public:
  Binder(const WeightSource& source, const ModelSpec& spec, Device& device, Arena& arena,
         DenseStorage storage)
      : source_(source), spec_(spec), device_(device), arena_(arena), storage_(storage) {}

  Result<LinearWeight> linear(const std::string& name, int64_t out, int64_t in) {
    NB_TRY(const LinearWeight on_disk, source_.linear(name, out, in));
    if (storage_ == DenseStorage::kPlain) return device_.prepare_linear(on_disk, arena_);
    return device_.prepare_compact(on_disk, arena_);
  }
  Result<Tensor> vector(const std::string& name, int64_t size) {
    NB_TRY(const Tensor found, source_.tensor(name, {size}));
    if (!is_floating(found.dtype) || dtype_size(found.dtype) < 2)
      return make_error(ErrorCode::kUnsupported, "tensor \"{}\" is {}, expected F32, F16 or BF16",
                        name, dtype_name(found.dtype));
    return device_.prepare_tensor(found, arena_);
  }

  Status attention(const std::string& prefix, AttentionWeights* weights) {
    const AttentionSpec& a = spec_.attention;
    const int64_t hidden = spec_.hidden_size;
    const int64_t q_dim = int64_t{1} * a.num_heads * a.head_dim;
    const int64_t kv_dim = int64_t{1} * a.num_kv_heads * a.head_dim;
    NB_TRY(weights->q_proj, linear(prefix + "q_proj", a.output_gate ? 2 * q_dim : q_dim, hidden));
    NB_TRY(weights->k_proj, linear(prefix + "k_proj", kv_dim, hidden));
    NB_TRY(weights->v_proj, linear(prefix + "v_proj", kv_dim, hidden));
    NB_TRY(weights->o_proj, linear(prefix + "o_proj", hidden, q_dim));
    if (!a.qk_norm) return {};
    NB_TRY(weights->q_norm, vector(prefix + "q_norm.weight", a.head_dim));
    NB_TRY(weights->k_norm, vector(prefix + "k_norm.weight", a.head_dim));
    return {};
  }

  Status delta_net(const std::string& prefix, GatedDeltaNetWeights* weights) {
    const GatedDeltaNetSpec& d = spec_.delta_net;
    const int64_t hidden = spec_.hidden_size;
    NB_TRY(weights->in_proj_qkv, linear(prefix + "in_proj_qkv", d.conv_dim(), hidden));
    NB_TRY(weights->in_proj_z, linear(prefix + "in_proj_z", d.value_dim(), hidden));
    NB_TRY(weights->in_proj_b, linear(prefix + "in_proj_b", d.num_v_heads, hidden));
    NB_TRY(weights->in_proj_a, linear(prefix + "in_proj_a", d.num_v_heads, hidden));
    NB_TRY(weights->out_proj, linear(prefix + "out_proj", hidden, d.value_dim()));
    NB_TRY(const Tensor conv,
           source_.tensor(prefix + "conv1d.weight", {d.conv_dim(), 1, d.conv_kernel}));
    weights->conv1d = device_.prepare_tensor(conv.reshaped({d.conv_dim(), d.conv_kernel}), arena_);
    NB_TRY(weights->a_log, vector(prefix + "A_log", d.num_v_heads));
    NB_TRY(weights->dt_bias, vector(prefix + "dt_bias", d.num_v_heads));
    NB_TRY(weights->norm, vector(prefix + "norm.weight", d.head_v_dim));
    return {};
  }

  Status mlp(const std::string& prefix, int64_t intermediate, MlpWeights* weights) {
    NB_TRY(weights->gate_proj, linear(prefix + "gate_proj", intermediate, spec_.hidden_size));
    NB_TRY(weights->up_proj, linear(prefix + "up_proj", intermediate, spec_.hidden_size));
    NB_TRY(weights->down_proj, linear(prefix + "down_proj", spec_.hidden_size, intermediate));
    return {};
  }

  Status moe(const std::string& prefix, MoeWeights* weights) {
    const MoeSpec& m = spec_.moe;
    const int64_t hidden = spec_.hidden_size;
    NB_TRY(weights->router, linear(prefix + "gate", m.num_experts, hidden));
    NB_TRY(weights->shared_expert_gate, linear(prefix + "shared_expert_gate", 1, hidden));
    NB_TRY_STATUS(
        mlp(prefix + "shared_expert.", m.shared_expert_intermediate_size, &weights->shared_expert));
    const auto count = static_cast<size_t>(m.num_experts);
    weights->gate_proj.resize(count);
    weights->up_proj.resize(count);
    weights->down_proj.resize(count);
    if (source_.has(prefix + "experts.gate_up_proj")) return fused_experts(prefix, weights);
    // Experts' weights are found by their distance, which plain ones keep.
    const DenseStorage storage = std::exchange(storage_, DenseStorage::kPlain);
    for (size_t e = 0; e < count; ++e) {
      MlpWeights expert;
      NB_TRY_STATUS(mlp(format("{}experts.{}.", prefix, e), m.moe_intermediate_size, &expert));
      weights->gate_proj[e] = expert.gate_proj;
      weights->up_proj[e] = expert.up_proj;
      weights->down_proj[e] = expert.down_proj;
    }
    storage_ = storage;
    return {};
  }

 private:
  Status fused_experts(const std::string& prefix, MoeWeights* weights) {
    const MoeSpec& m = spec_.moe;
    const int64_t hidden = spec_.hidden_size;
    const int64_t inner = m.moe_intermediate_size;
    NB_TRY(const Tensor gate_up,
           source_.tensor(prefix + "experts.gate_up_proj", {m.num_experts, 2 * inner, hidden}));
    NB_TRY(const Tensor down,
           source_.tensor(prefix + "experts.down_proj", {m.num_experts, hidden, inner}));
    const auto dense = [&](const Tensor& rows) {
      LinearWeight weight;
      weight.out_features = rows.shape[0];
      weight.in_features = rows.shape[1];
      weight.dense = rows;
      return device_.prepare_linear(weight, arena_);
    };
    for (int64_t e = 0; e < m.num_experts; ++e) {
      const auto i = static_cast<size_t>(e);
      weights->gate_proj[i] = dense(expert_slice(gate_up, e, 0, inner));
      weights->up_proj[i] = dense(expert_slice(gate_up, e, inner, 2 * inner));
      weights->down_proj[i] = dense(expert_slice(down, e, 0, hidden));
    }
    return {};
  }

  const WeightSource& source_;
  const ModelSpec& spec_;
  Device& device_;
  Arena& arena_;
  DenseStorage storage_;
};

void append_mlp(const std::string& prefix, int64_t hidden, int64_t intermediate,
                std::vector<LinearModule>* modules) {
  modules->push_back({prefix + "gate_proj", intermediate, hidden});
  modules->push_back({prefix + "up_proj", intermediate, hidden});
  modules->push_back({prefix + "down_proj", hidden, intermediate});
}

Result<LayerWeights> bind_layer_from(const WeightSource& source, const ModelSpec& spec, int layer,
                                     Device& device, Arena& arena, DenseStorage storage) {
  Binder binder(source, spec, device, arena, storage);
  const std::string prefix = format("{}layers.{}.", spec.weight_prefix, layer);
  const LayerSpec& layer_spec = spec.layers[static_cast<size_t>(layer)];
  LayerWeights weights;
  NB_TRY(weights.input_layernorm,
         binder.vector(prefix + "input_layernorm.weight", spec.hidden_size));
  NB_TRY(weights.post_attention_layernorm,
         binder.vector(prefix + "post_attention_layernorm.weight", spec.hidden_size));
  if (layer_spec.mixer == MixerKind::kFullAttention) {
    NB_TRY_STATUS(binder.attention(prefix + "self_attn.", &weights.attention));
  } else {
    NB_TRY_STATUS(binder.delta_net(prefix + "linear_attn.", &weights.delta_net));
  }
  if (layer_spec.ffn == FfnKind::kDense) {
    NB_TRY_STATUS(binder.mlp(prefix + "mlp.", spec.intermediate_size, &weights.mlp));
  } else {
    NB_TRY_STATUS(binder.moe(prefix + "mlp.", &weights.moe));
  }
  return weights;
}

}  // namespace

Result<LayerWeights> bind_layer(const ModelDir& dir, const ModelSpec& spec, int layer,
                                Device& device, Arena& arena) {
  return bind_layer_from(DirSource(dir), spec, layer, device, arena, DenseStorage::kPlain);
}

std::unique_ptr<WeightSource> source_of(const ModelDir& dir) {
  return std::make_unique<DirSource>(dir);
}

Result<ModelWeights> bind_weights(const WeightSource& source, const ModelSpec& spec, Device& device,
                                  Arena& arena, DenseStorage storage) {
  Binder binder(source, spec, device, arena, storage);
  ModelWeights weights;
  NB_TRY(const Tensor embed_tokens, source.tensor(spec.weight_prefix + "embed_tokens.weight",
                                                  {spec.vocab_size, spec.hidden_size}));
  weights.embed_tokens = device.prepare_tensor(embed_tokens, arena);
  for (size_t layer = 0; layer < spec.layers.size(); ++layer) {
    NB_TRY(LayerWeights bound,
           bind_layer_from(source, spec, static_cast<int>(layer), device, arena, storage));
    weights.layers.push_back(std::move(bound));
  }
  NB_TRY(weights.norm, binder.vector(spec.weight_prefix + "norm.weight", spec.hidden_size));
  if (spec.tie_word_embeddings) {
    LinearWeight head;
    head.out_features = spec.vocab_size;
    head.in_features = spec.hidden_size;
    head.dense = embed_tokens;
    if (device.dense_weights_are_plain()) {
      head.dense = weights.embed_tokens;
      weights.lm_head = head;
    } else {
      weights.lm_head = device.prepare_linear(head, arena);
    }
  } else {
    NB_TRY(weights.lm_head, binder.linear("lm_head", spec.vocab_size, spec.hidden_size));
  }
  return weights;
}

Status look_up_weights(const WeightSource& source, const ModelSpec& spec) {
  PlanningDevice device("files", {});
  Arena counted;
  NB_TRY(const ModelWeights weights, bind_weights(source, spec, device, counted));
  return {};
}

WeightBytes weight_bytes(const ModelWeights& weights, bool head_is_embedding) {
  WeightBytes bytes;
  const auto add = [&](const LinearWeight& weight) {
    if (weight.out_features == 0) return;
    (weight.quantized() ? bytes.quantized : bytes.dense) += weight.num_bytes();
  };
  const auto add_other = [&](const Tensor& tensor) {
    if (tensor.shape.rank() > 0) bytes.other += tensor.num_bytes();
  };
  const auto add_mlp = [&](const MlpWeights& mlp) {
    for (const LinearWeight* weight : {&mlp.gate_proj, &mlp.up_proj, &mlp.down_proj}) add(*weight);
  };
  for (const LayerWeights& layer : weights.layers) {
    const AttentionWeights& a = layer.attention;
    const GatedDeltaNetWeights& d = layer.delta_net;
    for (const LinearWeight* weight :
         {&a.q_proj, &a.k_proj, &a.v_proj, &a.o_proj, &d.in_proj_qkv, &d.in_proj_z, &d.in_proj_b,
          &d.in_proj_a, &d.out_proj, &layer.moe.router, &layer.moe.shared_expert_gate})
      add(*weight);
    add_mlp(layer.mlp);
    add_mlp(layer.moe.shared_expert);
    for (const auto* experts : {&layer.moe.gate_proj, &layer.moe.up_proj, &layer.moe.down_proj})
      for (const LinearWeight& weight : *experts) add(weight);
    for (const Tensor* tensor : {&layer.input_layernorm, &layer.post_attention_layernorm, &a.q_norm,
                                 &a.k_norm, &d.conv1d, &d.a_log, &d.dt_bias, &d.norm})
      add_other(*tensor);
  }
  add_other(weights.norm);
  bytes.embeddings = weights.embed_tokens.num_bytes();
  if (!head_is_embedding) bytes.lm_head = weights.lm_head.num_bytes();
  return bytes;
}

std::vector<LinearModule> linear_modules(const ModelSpec& spec) {
  std::vector<LinearModule> modules;
  const int64_t hidden = spec.hidden_size;
  const AttentionSpec& a = spec.attention;
  const GatedDeltaNetSpec& d = spec.delta_net;
  const int64_t q_dim = int64_t{1} * a.num_heads * a.head_dim;
  const int64_t kv_dim = int64_t{1} * a.num_kv_heads * a.head_dim;
  for (size_t layer = 0; layer < spec.layers.size(); ++layer) {
    const std::string prefix = format("{}layers.{}.", spec.weight_prefix, layer);
    if (spec.layers[layer].mixer == MixerKind::kFullAttention) {
      const std::string attention = prefix + "self_attn.";
      modules.push_back({attention + "q_proj", a.output_gate ? 2 * q_dim : q_dim, hidden});
      modules.push_back({attention + "k_proj", kv_dim, hidden});
      modules.push_back({attention + "v_proj", kv_dim, hidden});
      modules.push_back({attention + "o_proj", hidden, q_dim});
    } else {
      // The definition order of the Hugging Face class.
      const std::string mixer = prefix + "linear_attn.";
      modules.push_back({mixer + "out_proj", hidden, d.value_dim()});
      modules.push_back({mixer + "in_proj_qkv", d.conv_dim(), hidden});
      modules.push_back({mixer + "in_proj_z", d.value_dim(), hidden});
      modules.push_back({mixer + "in_proj_b", d.num_v_heads, hidden});
      modules.push_back({mixer + "in_proj_a", d.num_v_heads, hidden});
    }
    const std::string mlp = prefix + "mlp.";
    if (spec.layers[layer].ffn == FfnKind::kDense) {
      append_mlp(mlp, hidden, spec.intermediate_size, &modules);
      continue;
    }
    for (int e = 0; e < spec.moe.num_experts; ++e)
      append_mlp(format("{}experts.{}.", mlp, e), hidden, spec.moe.moe_intermediate_size, &modules);
    append_mlp(mlp + "shared_expert.", hidden, spec.moe.shared_expert_intermediate_size, &modules);
    modules.push_back({mlp + "shared_expert_gate", 1, hidden});
  }
  modules.push_back({"lm_head", spec.vocab_size, hidden});
  return modules;
}

}  // namespace nibble
