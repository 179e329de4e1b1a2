// Samples run one by one through caches for a single sequence; every layer uses the same caches.
#include "quant/layer_pass.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <numeric>

#include "base/format.h"
#include "device/wrap/forwarding_ops.h"
#include "device/wrap/metering_ops.h"

namespace nibble {
namespace {

constexpr int kBlockSize = 16;
// What is left alone of a device's memory beyond what is counted.
constexpr size_t kDeviceMargin = size_t{256} << 20;

// Sums up what each Linear reads.
class RecordingOps final : public ForwardingOps {
 public:
  RecordingOps(Device& device, QuantOps& quant_ops,
               const std::function<bool(const LinearWeight*)>& want_gram, bool all_experts)
      : ForwardingOps(device.ops()),
        device_(device),
        quant_ops_(quant_ops),
        want_gram_(want_gram),
        all_experts_(all_experts) {}

  void linear(const Tensor& x, const LinearWeight& weight, const Tensor& out) override {
    device_.ops().linear(x, weight, out);
    record(x, weight);
  }

  void moe_mlp(const Tensor& x, const Tensor& experts, const Tensor& routing,
               std::span<const LinearWeight> gate_proj, std::span<const LinearWeight> up_proj,
               std::span<const LinearWeight> down_proj, const Tensor& workspace,
               const Tensor& out) override {
    device_.ops().moe_mlp(x, experts, routing, gate_proj, up_proj, down_proj, workspace, out);
    if (all_experts_) {
      for (size_t expert = 0; expert < gate_proj.size(); ++expert)
        record_expert(x, gate_proj[expert], up_proj[expert], down_proj[expert]);
      return;
    }
    const OwnedTensor chosen = to_host(device_, experts);
    const int64_t per_token = experts.shape[1];
    std::map<int32_t, std::vector<int32_t>> tokens_of;
    for (int64_t i = 0; i < experts.num_elements(); ++i)
      tokens_of[chosen.view().as<const int32_t>()[i]].push_back(
          static_cast<int32_t>(i / per_token));
    for (auto& [chosen_expert, tokens] : tokens_of) {
      const auto expert = static_cast<size_t>(chosen_expert);
      const auto count = static_cast<int64_t>(tokens.size());
      const Tensor routed = scratch(routed_, x.dtype, {count, x.shape[1]});
      const Tensor rows = scratch(rows_, DType::kI32, {count});
      if (!status_) return;
      to_device(device_, {tokens.data(), DType::kI32, {count}}, rows);
      device_.ops().gather_rows(x, rows.as<const int32_t>(), routed);
      record_expert(routed, gate_proj[expert], up_proj[expert], down_proj[expert]);
    }
  }

  // What was recorded; an error when memory for it ran out on the way.
  Result<std::map<const LinearWeight*, InputMoments>> finish() {
    NB_TRY_STATUS(status_);
    std::map<const LinearWeight*, InputMoments> all;
    for (auto& [weight, sums] : sums_) {
      const OwnedTensor host = to_host(device_, sums.moments.view());
      const auto* values = host.view().as<const double>();
      const int64_t columns = weight->in_features;
      InputMoments& moments = all[weight];
      moments.sum_abs.assign(values, values + columns);
      moments.sum_squares.assign(values + columns, values + 2 * columns);
      moments.gram = std::move(sums.gram);
      moments.num_tokens = sums.num_tokens;
    }
    return all;
  }

 private:
  struct Sums {
    OwnedTensor moments;  // F64 [2, columns]
    OwnedTensor gram;
    int64_t num_tokens = 0;
  };

  void record_expert(const Tensor& x, const LinearWeight& gate_proj, const LinearWeight& up_proj,
                     const LinearWeight& down_proj) {
    record(x, gate_proj);
    record(x, up_proj);
    const Shape shape{x.shape[0], gate_proj.out_features};
    const Tensor gate = scratch(gate_, x.dtype, shape);
    const Tensor up = scratch(up_, x.dtype, shape);
    if (!status_) return;
    device_.ops().linear(x, gate_proj, gate);
    device_.ops().linear(x, up_proj, up);
    device_.ops().silu_mul(gate, up, gate);
    record(gate, down_proj);
  }

  void record(const Tensor& x, const LinearWeight& weight) {
    if (!status_) return;
    const int64_t columns = weight.in_features;
    const auto [found, is_new] = sums_.try_emplace(&weight);
    Sums& sums = found->second;
    if (is_new) status_ = prepare(sums, columns, want_gram_ && want_gram_(&weight));
    if (!status_) return;
    const Tensor rows = x.reshaped({x.num_elements() / columns, columns});
    sums.num_tokens += rows.shape[0];
    quant_ops_.add_moments(rows, sums.moments.view());
    if (!sums.gram.empty()) quant_ops_.add_gram(rows, sums.gram.view());
  }

  Status prepare(Sums& sums, int64_t columns, bool gram) {
    NB_TRY(sums.moments, OwnedTensor::on(device_, DType::kF64, {2, columns}, "input moments"));
    if (gram) {
      NB_TRY(sums.gram, OwnedTensor::on(device_, DType::kF32, {columns, columns}, "input gram"));
    }
    return {};
  }

  // A tensor in memory that grows with need; null after an error.
  Tensor scratch(OwnedTensor& memory, DType dtype, Shape shape) {
    const Tensor wanted{nullptr, dtype, shape};
    if (status_ && (memory.empty() || memory.view().num_bytes() < wanted.num_bytes())) {
      Result<OwnedTensor> grown = OwnedTensor::on(device_, dtype, shape, "expert inputs");
      if (grown) {
        memory = std::move(*grown);
      } else {
        status_ = grown.error();
      }
    }
    return {memory.view().data, dtype, shape};
  }

  Device& device_;
  QuantOps& quant_ops_;
  const std::function<bool(const LinearWeight*)>& want_gram_;
  bool all_experts_;
  std::map<const LinearWeight*, Sums> sums_;
  OwnedTensor gate_, up_, routed_, rows_;
  Status status_;
};

// Values of `from` as elements of another dtype.
void convert(const Tensor& from, const Tensor& to) {
  if (from.dtype == to.dtype) {
    std::memcpy(to.data, from.data, from.num_bytes());
    return;
  }
  std::vector<float> values(static_cast<size_t>(from.num_elements()));
  to_float(from, values.data());
  from_float(values.data(), to);
}

}  // namespace

Result<WorkingLayer> WorkingLayer::load(const ModelDir& dir, const ModelSpec& spec, int layer,
                                        Device& device, Arena& arena) {
  WorkingLayer working;
  NB_TRY(working.weights_, bind_layer(dir, spec, layer, device, arena));
  device.end_loading();
  working.prefix_ = format("{}layers.{}.", spec.weight_prefix, layer);
  return working;
}

LinearWeight* WorkingLayer::linear(const std::string& module) {
  AttentionWeights& attention = weights_.attention;
  GatedDeltaNetWeights& delta = weights_.delta_net;
  MlpWeights& mlp = weights_.mlp;
  MoeWeights& moe = weights_.moe;
  const std::pair<std::string_view, LinearWeight*> known[] = {
      {"self_attn.q_proj", &attention.q_proj},
      {"self_attn.k_proj", &attention.k_proj},
      {"self_attn.v_proj", &attention.v_proj},
      {"self_attn.o_proj", &attention.o_proj},
      {"linear_attn.in_proj_qkv", &delta.in_proj_qkv},
      {"linear_attn.in_proj_z", &delta.in_proj_z},
      {"linear_attn.in_proj_b", &delta.in_proj_b},
      {"linear_attn.in_proj_a", &delta.in_proj_a},
      {"linear_attn.out_proj", &delta.out_proj},
      {"mlp.gate_proj", &mlp.gate_proj},
      {"mlp.up_proj", &mlp.up_proj},
      {"mlp.down_proj", &mlp.down_proj},
      {"mlp.gate", &moe.router},
      {"mlp.shared_expert_gate", &moe.shared_expert_gate},
      {"mlp.shared_expert.gate_proj", &moe.shared_expert.gate_proj},
      {"mlp.shared_expert.up_proj", &moe.shared_expert.up_proj},
      {"mlp.shared_expert.down_proj", &moe.shared_expert.down_proj}};
  if (!module.starts_with(prefix_)) return nullptr;
  const std::string_view name = std::string_view(module).substr(prefix_.size());
  for (const auto& [known_name, weight] : known)
    if (name == known_name && weight->out_features > 0) return weight;
  constexpr std::string_view kExperts = "mlp.experts.";
  if (!name.starts_with(kExperts)) return nullptr;
  const std::string_view rest = name.substr(kExperts.size());
  const size_t dot = rest.find('.');
  size_t expert = 0;
  if (dot == rest.npos ||
      std::from_chars(rest.data(), rest.data() + dot, expert).ptr != rest.data() + dot ||
      expert >= moe.gate_proj.size())
    return nullptr;
  const std::string_view which = rest.substr(dot + 1);
  if (which == "gate_proj") return &moe.gate_proj[expert];
  if (which == "up_proj") return &moe.up_proj[expert];
  return which == "down_proj" ? &moe.down_proj[expert] : nullptr;
}

Tensor* WorkingLayer::norm(const std::string& module) {
  if (module == prefix_ + "input_layernorm") return &weights_.input_layernorm;
  if (module == prefix_ + "post_attention_layernorm") return &weights_.post_attention_layernorm;
  if (module == prefix_ + "linear_attn.norm" && weights_.delta_net.norm.data != nullptr)
    return &weights_.delta_net.norm;
  return nullptr;
}

Result<LayerPass> LayerPass::start(const ModelDir& dir, const ModelSpec& spec, Device& device,
                                   QuantOps& quant_ops,
                                   const std::vector<std::vector<int32_t>>& samples,
                                   const Spill& spill, ThreadPool& pool) {
  LayerPass pass;
  pass.spill_ = spill;
  pass.spec_ = &spec;
  pass.device_ = &device;
  pass.quant_ops_ = &quant_ops;
  pass.sample_start_.push_back(0);
  for (const auto& sample : samples) {
    pass.num_tokens_ += static_cast<int64_t>(sample.size());
    pass.longest_ = std::max(pass.longest_, static_cast<int64_t>(sample.size()));
    pass.sample_start_.push_back(pass.num_tokens_);
    for (const int32_t id : sample)
      if (id < 0 || id >= spec.vocab_size)
        return make_error(ErrorCode::kInvalidArgument,
                          "a calibration sample holds token {}, the model has {}", id,
                          spec.vocab_size);
  }
  if (pass.num_tokens_ == 0)
    return make_error(ErrorCode::kInvalidArgument, "the calibration samples hold no token");
  NB_TRY_STATUS(pass.embed(dir, samples, pool));

  const CacheShape shape{
      .num_blocks = static_cast<int>((pass.longest_ + kBlockSize - 1) / kBlockSize),
      .block_size = kBlockSize,
      .num_state_slots = 1,
      .kv_dtype = pass.dtype_};
  // One layer of each kind, used by all.
  ModelSpec kinds = spec;
  kinds.layers = {{.mixer = MixerKind::kFullAttention}, {.mixer = MixerKind::kGatedDeltaNet}};
  Arena counter;
  place_caches(kinds, shape, pass.dtype_, counter);
  NB_TRY(pass.cache_memory_, device.allocate(counter.used(), "calibration caches"));
  Arena arena(pass.cache_memory_.data(), pass.cache_memory_.size());
  const ModelCaches caches = place_caches(kinds, shape, pass.dtype_, arena);
  pass.caches_.kv.assign(spec.layers.size(), caches.kv[0]);
  pass.caches_.conv_state.assign(spec.layers.size(), caches.conv_state[1]);
  pass.caches_.recurrent_state.assign(spec.layers.size(), caches.recurrent_state[1]);

  // Scratch of the hungriest layer, and the weights of the largest.
  MeteringOps metering;
  Arena activations;
  Step step;
  step.ops = &metering;
  step.batch.num_tokens = static_cast<int32_t>(pass.longest_);
  step.caches = &pass.caches_;
  step.scratch = &activations;
  size_t layer_bytes = 0;
  for (size_t layer = 0; layer < spec.layers.size(); ++layer) {
    Arena views;
    NB_TRY(const LayerWeights weights,
           bind_layer(dir, spec, static_cast<int>(layer), device, views));
    layer_bytes = std::max(layer_bytes, views.used());
    decoder_layer_forward(step, spec, static_cast<int>(layer), weights,
                          {nullptr, pass.dtype_, {pass.longest_, spec.hidden_size}});
  }
  NB_TRY(pass.scratch_memory_, device.allocate(activations.peak(), "calibration scratch"));
  NB_TRY(pass.layer_memory_, device.allocate(layer_bytes, "weights of a layer"));
  NB_TRY_STATUS(pass.place_batch());
  for (OwnedTensor* tensor : {&pass.work_, &pass.input_staging_, &pass.output_staging_}) {
    NB_TRY(*tensor, OwnedTensor::on(device, pass.dtype_, {pass.longest_, spec.hidden_size},
                                    "activations of a sample"));
  }
  return pass;
}

Status LayerPass::embed(const ModelDir& dir, const std::vector<std::vector<int32_t>>& samples,
                        ThreadPool& pool) {
  NB_TRY(const Tensor table, dir.tensor(spec_->weight_prefix + "embed_tokens.weight",
                                        {spec_->vocab_size, spec_->hidden_size}));
  if (!device_->memory().is_host) dtype_ = table.dtype;
  NB_TRY(stream_, host_activations());
  pool.parallel_for(samples.size(), 1, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      int64_t row = sample_start_[i];
      for (const int32_t id : samples[i]) {
        convert(table.rows(id, id + 1), stream().rows(row, row + 1));
        ++row;
      }
    }
  });
  return {};
}

LayerPass::DeviceBatch LayerPass::batch_in(Arena arena) const {
  const auto array = [&](int64_t count, const char* who) {
    return static_cast<int32_t*>(arena.allocate(static_cast<size_t>(count) * sizeof(int32_t), who));
  };
  DeviceBatch batch;
  batch.positions = array(3 * num_tokens_, "positions");
  batch.query_start = array(2 * static_cast<int64_t>(sample_start_.size()), "query starts");
  batch.blocks = array((longest_ + kBlockSize - 1) / kBlockSize, "block table");
  batch.zero = array(1, "context length");
  batch.fresh = static_cast<uint8_t*>(arena.allocate(1, "fresh states"));
  batch.num_bytes = arena.used();
  return batch;
}

Status LayerPass::place_batch() {
  const size_t size = batch_in(Arena()).num_bytes;
  NB_TRY(batch_memory_, device_->allocate(size, "batch of a sample"));
  batch_ = batch_in(Arena(batch_memory_.data(), size));
  const OwnedTensor host(DType::kU8, {static_cast<int64_t>(size)});
  const DeviceBatch from = batch_in(Arena(host.view().data, size));
  for (size_t i = 0; i + 1 < sample_start_.size(); ++i) {
    const auto tokens = static_cast<int32_t>(sample_start_[i + 1] - sample_start_[i]);
    int32_t* positions = from.positions + 3 * sample_start_[i];
    for (int axis = 0; axis < 3; ++axis, positions += tokens)
      std::iota(positions, positions + tokens, 0);
    from.query_start[2 * i] = 0;
    from.query_start[2 * i + 1] = tokens;
  }
  std::iota(from.blocks, from.blocks + (longest_ + kBlockSize - 1) / kBlockSize, 0);
  *from.zero = 0;
  *from.fresh = 1;
  to_device(*device_, host.view(), {batch_memory_.data(), DType::kU8, host.view().shape});
  return {};
}

Result<OwnedTensor> LayerPass::host_activations() const {
  const size_t bytes = Tensor{nullptr, dtype_, activations_shape()}.num_bytes();
  if (kActivationsAlive * bytes > spill_.memory_limit)
    return OwnedTensor::on_disk(spill_.folder, dtype_, activations_shape());
  return OwnedTensor::beside(*device_, dtype_, activations_shape(), "activations");
}

Result<LayerPass::Store> LayerPass::new_store(size_t* room) const {
  Store store;
  const bool is_host = device_->memory().is_host;
  const size_t bytes = Tensor{nullptr, dtype_, activations_shape()}.num_bytes();
  store.on_device = is_host || bytes <= *room;
  if (is_host || !store.on_device) {
    NB_TRY(store.tensor, host_activations());
    return store;
  }
  NB_TRY(store.tensor, OwnedTensor::on(*device_, dtype_, activations_shape(), "activations"));
  *room -= bytes;
  return store;
}

Status LayerPass::reserve_recordings(bool mixer, bool mlp, size_t working_bytes) {
  const DeviceMemoryInfo memory = device_->memory();
  const size_t held = device_->held_by_this_process();
  const size_t limit = spill_.device_limit > 0 ? spill_.device_limit : held + memory.free / 10 * 9;
  const size_t taken = held + working_bytes + kDeviceMargin;
  size_t room = limit > taken ? limit - taken : 0;
  // The search of the larger block comes back to its recordings most.
  if (mlp) {
    NB_TRY(mlp_input_, new_store(&room));
    NB_TRY(mlp_output_, new_store(&room));
  }
  if (mixer) {
    NB_TRY(mixer_input_, new_store(&room));
    NB_TRY(mixer_output_, new_store(&room));
  }
  return {};
}

void LayerPass::keep(const Store& store, int64_t first, const Tensor& value) const {
  const Tensor rows = store.tensor.view().rows(first, first + value.shape[0]);
  if (store.on_device) {
    device_->copy(rows.data, value.data, value.num_bytes());
  } else {
    device_->download(rows.data, value.data, value.num_bytes());
  }
}

Tensor LayerPass::fetch(const Store& store, int64_t first, int64_t last,
                        const OwnedTensor& staging) const {
  const Tensor rows = store.tensor.view().rows(first, last);
  if (store.on_device) return rows;
  const Tensor staged = staging.view().rows(0, last - first);
  device_->upload(staged.data, rows.data, rows.num_bytes());
  return staged;
}

void LayerPass::each_sample(Ops& ops,
                            const std::function<bool(const Step&, int64_t, int64_t)>& body) {
  Arena scratch(scratch_memory_.data(), scratch_memory_.size());
  for (size_t i = 0; i + 1 < sample_start_.size(); ++i) {
    const int64_t first = sample_start_[i];
    const int64_t last = sample_start_[i + 1];
    if (first == last) continue;
    const auto tokens = static_cast<int32_t>(last - first);
    Step step;
    step.ops = &ops;
    step.batch = {.num_tokens = tokens,
                  .num_seqs = 1,
                  .query_start = batch_.query_start + 2 * i,
                  .context_len = batch_.zero,
                  .block_table = batch_.blocks,
                  .max_blocks = static_cast<int32_t>((longest_ + kBlockSize - 1) / kBlockSize),
                  .block_size = kBlockSize,
                  .state_slot = batch_.zero,
                  .state_is_fresh = batch_.fresh};
    step.positions = batch_.positions + 3 * first;
    step.caches = &caches_;
    step.scratch = &scratch;
    if (!body(step, first, last)) return;
  }
}

Status LayerPass::run(int layer, const LayerWeights& weights, bool keep_output,
                      Recording* recording,
                      const std::function<bool(const LinearWeight*)>& want_gram) {
  RecordingOps recorder(*device_, *quant_ops_, want_gram,
                        recording != nullptr && recording->all_experts);
  if (recording != nullptr)
    for (OwnedTensor* first : {&recording->first_input, &recording->first_output}) {
      NB_TRY(*first, OwnedTensor::on(*device_, dtype_, {num_first_tokens(), spec_->hidden_size},
                                     "activations of a sample"));
    }
  Ops& ops = recording != nullptr ? static_cast<Ops&>(recorder) : device_->ops();
  each_sample(ops, [&](const Step& plain, int64_t first, int64_t last) {
    const Tensor x = work_.view().rows(0, last - first);
    const Tensor rows = stream().rows(first, last);
    device_->upload(x.data, rows.data, rows.num_bytes());
    if (recording != nullptr && first == 0)
      device_->copy(recording->first_input.view().data, x.data, x.num_bytes());
    Step step = plain;
    if (recording != nullptr)
      step.observe = [&](const char* what, int, const Tensor& value) {
        const std::string_view point = what;
        if (recording->mixer && point == "mixer input") keep(mixer_input_, first, value);
        if (recording->mixer && point == "mixer") keep(mixer_output_, first, value);
        if (recording->mlp && point == "mlp input") keep(mlp_input_, first, value);
        if (recording->mlp && point == "mlp") keep(mlp_output_, first, value);
      };
    decoder_layer_forward(step, *spec_, layer, weights, x);
    if (keep_output) device_->download(rows.data, x.data, rows.num_bytes());
    if (recording != nullptr && first == 0)
      device_->copy(recording->first_output.view().data, x.data, x.num_bytes());
    return true;
  });
  device_->synchronize();
  if (recording != nullptr) {
    NB_TRY(recording->inputs, recorder.finish());
  }
  return {};
}

int64_t LayerPass::num_first_tokens() const {
  for (const int64_t end : sample_start_)
    if (end > 0) return end;
  return 0;
}

void LayerPass::run_first(int layer, const LayerWeights& weights, const Tensor& x) {
  each_sample(device_->ops(), [&](const Step& step, int64_t, int64_t) {
    decoder_layer_forward(step, *spec_, layer, weights, x);
    return false;
  });
}

double LayerPass::loss(
    const Store& input, const Store& expected, const ReplayLimits& limits, Replayed* replayed,
    const std::function<void(const Step&, const Tensor&, const Tensor&)>& replay) {
  int64_t num_tokens = 0;  // of the samples that are looked at
  for (const int64_t end : sample_start_)
    if (num_tokens < limits.max_tokens) num_tokens = end;
  const auto count = static_cast<double>(num_tokens * spec_->hidden_size);
  double& sum = replayed->sum;
  each_sample(device_->ops(), [&](const Step& step, int64_t first, int64_t last) {
    if (last <= replayed->num_tokens) return last < num_tokens;
    const Tensor out = work_.view().rows(0, last - first);
    replay(step, fetch(input, first, last, input_staging_), out);
    quant_ops_->add_squared_difference(fetch(expected, first, last, output_staging_), out, &sum);
    replayed->num_tokens = last;
    return last < num_tokens && !(sum > limits.bound * count);
  });
  return sum > limits.bound * count ? std::numeric_limits<double>::infinity() : sum / count;
}

double LayerPass::replay_mixer(int layer, const LayerWeights& weights, const ReplayLimits& limits,
                               Replayed* replayed) {
  const auto index = static_cast<size_t>(layer);
  return loss(mixer_input_, mixer_output_, limits, replayed,
              [&](const Step& step, const Tensor& input, const Tensor& out) {
                if (spec_->layers[index].mixer == MixerKind::kFullAttention) {
                  attention_forward(step, *spec_, weights.attention, caches_.kv[index], input, out);
                } else {
                  gated_delta_net_forward(step, *spec_, weights.delta_net,
                                          caches_.conv_state[index], caches_.recurrent_state[index],
                                          input, out);
                }
              });
}

double LayerPass::replay_mlp(int layer, const LayerWeights& weights, const ReplayLimits& limits,
                             Replayed* replayed) {
  const bool dense = spec_->layers[static_cast<size_t>(layer)].ffn == FfnKind::kDense;
  return loss(mlp_input_, mlp_output_, limits, replayed,
              [&](const Step& step, const Tensor& input, const Tensor& out) {
                if (dense) {
                  mlp_forward(step, weights.mlp, input, out);
                } else {
                  moe_forward(step, *spec_, weights.moe, input, out);
                }
              });
}

}  // namespace nibble
