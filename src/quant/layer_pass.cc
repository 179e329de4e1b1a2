// Samples run one by one through caches for a single sequence; every layer uses the same caches.
#include "quant/layer_pass.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "base/format.h"
#include "device/wrap/forwarding_ops.h"
#include "device/wrap/metering_ops.h"

namespace nibble {
namespace {

constexpr int kBlockSize = 16;
// Stream, its copy, and a block's recorded inputs and outputs.
constexpr size_t kActivationsAlive = 6;

// Sums up what each Linear reads.
class RecordingOps final : public ForwardingOps {
 public:
  RecordingOps(Ops& inner, LayerPass::Recording& recording,
               const std::function<bool(const LinearWeight*)>& want_gram)
      : ForwardingOps(inner), ops_(inner), recording_(recording), want_gram_(want_gram) {}

  void linear(const Tensor& x, const LinearWeight& weight, const Tensor& out) override {
    ops_.linear(x, weight, out);
    record(x, weight);
  }

  void moe_mlp(const Tensor& x, const Tensor& experts, const Tensor& routing,
               const LinearWeight* gate_proj, const LinearWeight* up_proj,
               const LinearWeight* down_proj, const Tensor& workspace, const Tensor& out) override {
    ops_.moe_mlp(x, experts, routing, gate_proj, up_proj, down_proj, workspace, out);
    const int32_t* chosen = experts.as<const int32_t>();
    const int64_t per_token = experts.shape[1];
    std::map<int32_t, std::vector<int64_t>> tokens_of;
    for (int64_t i = 0; i < experts.num_elements(); ++i)
      tokens_of[chosen[i]].push_back(i / per_token);
    if (!recording_.all_experts) {
      for (const auto& [expert, tokens] : tokens_of) {
        OwnedTensor routed(DType::kF32, {static_cast<int64_t>(tokens.size()), x.shape[1]});
        for (size_t i = 0; i < tokens.size(); ++i)
          std::memcpy(routed.view().rows(static_cast<int64_t>(i), static_cast<int64_t>(i) + 1).data,
                      x.rows(tokens[i], tokens[i] + 1).data,
                      static_cast<size_t>(x.shape[1]) * sizeof(float));
        record_expert(routed.view(), gate_proj[expert], up_proj[expert], down_proj[expert]);
      }
      return;
    }
    for (int32_t expert = 0; expert < num_experts_; ++expert)
      record_expert(x, gate_proj[expert], up_proj[expert], down_proj[expert]);
  }

  void set_num_experts(int num_experts) { num_experts_ = num_experts; }

 private:
  void record_expert(const Tensor& x, const LinearWeight& gate_proj, const LinearWeight& up_proj,
                     const LinearWeight& down_proj) {
    record(x, gate_proj);
    record(x, up_proj);
    const Shape shape{x.shape[0], gate_proj.out_features};
    OwnedTensor gate(DType::kF32, shape);
    OwnedTensor up(DType::kF32, shape);
    ops_.linear(x, gate_proj, gate.view());
    ops_.linear(x, up_proj, up.view());
    ops_.silu_mul(gate.view(), up.view(), gate.view());
    record(gate.view(), down_proj);
  }

  void record(const Tensor& x, const LinearWeight& weight) {
    const int64_t columns = weight.in_features;
    const int64_t tokens = x.num_elements() / columns;
    InputMoments& moments = recording_.inputs[&weight];
    moments.sum_abs.resize(static_cast<size_t>(columns));
    moments.sum_squares.resize(static_cast<size_t>(columns));
    moments.num_tokens += tokens;
    const float* values = x.as<const float>();
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t c = 0; c < columns; ++c) {
        const auto value = static_cast<double>(values[t * columns + c]);
        moments.sum_abs[static_cast<size_t>(c)] += std::fabs(value);
        moments.sum_squares[static_cast<size_t>(c)] += value * value;
      }
    if (want_gram_ && want_gram_(&weight)) add_gram(values, tokens, columns, moments.gram);
  }

  // gram += x'x, as the product of the transposed input with itself.
  void add_gram(const float* values, int64_t tokens, int64_t columns, std::vector<float>& gram) {
    OwnedTensor transposed(DType::kF32, {columns, tokens});
    float* to = transposed.view().as<float>();
    for (int64_t t = 0; t < tokens; ++t)
      for (int64_t c = 0; c < columns; ++c) to[c * tokens + t] = values[t * columns + c];
    LinearWeight right;
    right.out_features = columns;
    right.in_features = tokens;
    right.dense = transposed.view();
    OwnedTensor product(DType::kF32, {columns, columns});
    ops_.linear(transposed.view(), right, product.view());
    const float* from = product.view().as<const float>();
    gram.resize(static_cast<size_t>(columns * columns));
    for (size_t i = 0; i < gram.size(); ++i) gram[i] += from[i];
  }

  Ops& ops_;
  LayerPass::Recording& recording_;
  const std::function<bool(const LinearWeight*)>& want_gram_;
  int num_experts_ = 0;
};

}  // namespace

OwnedTensor OwnedTensor::copy_of(const Tensor& from) {
  OwnedTensor copy(from.dtype, from.shape);
  std::memcpy(copy.bytes_.data(), from.data, from.num_bytes());
  return copy;
}

Result<OwnedTensor> OwnedTensor::on_disk(const fs::path& folder, DType dtype, Shape shape) {
  OwnedTensor tensor;
  tensor.dtype_ = dtype;
  tensor.shape_ = shape;
  const size_t size = static_cast<size_t>(shape.num_elements()) * dtype_size(dtype);
  const int fd = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  void* data = MAP_FAILED;
  // Blocks are claimed now: a full disk is an error here, not a signal later.
  const int error = fd < 0 ? errno : ::posix_fallocate(fd, 0, static_cast<off_t>(size));
  if (fd >= 0 && error == 0)
    data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (fd >= 0) ::close(fd);
  if (data == MAP_FAILED)
    return make_error(ErrorCode::kIo, "{}: no room for {} of activations: {}", folder.string(),
                      format_bytes(static_cast<double>(size)), std::strerror(error));
  tensor.mapped_ = {static_cast<std::byte*>(data), [size](std::byte* p) { ::munmap(p, size); }};
  return tensor;
}

Result<WorkingLayer> WorkingLayer::load(const ModelDir& dir, const ModelSpec& spec, int layer,
                                        Device& device, Arena& arena) {
  WorkingLayer working;
  NB_TRY(working.weights_, bind_layer(dir, spec, layer, device, arena));
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
                                   const std::vector<std::vector<int32_t>>& samples,
                                   const Spill& spill) {
  LayerPass pass;
  pass.spill_ = spill;
  pass.spec_ = &spec;
  pass.device_ = &device;
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

  const CacheShape shape{
      .num_blocks = static_cast<int>((pass.longest_ + kBlockSize - 1) / kBlockSize),
      .block_size = kBlockSize,
      .num_state_slots = 1,
      .kv_dtype = DType::kF32};
  // One layer of each kind, used by all.
  ModelSpec kinds = spec;
  kinds.layers = {{.mixer = MixerKind::kFullAttention}, {.mixer = MixerKind::kGatedDeltaNet}};
  Arena counter;
  place_caches(kinds, shape, DType::kF32, counter);
  NB_TRY(pass.cache_memory_, device.allocate(counter.used(), "calibration caches"));
  Arena arena(pass.cache_memory_.data(), pass.cache_memory_.size());
  const ModelCaches caches = place_caches(kinds, shape, DType::kF32, arena);
  pass.caches_.kv.assign(spec.layers.size(), caches.kv[0]);
  pass.caches_.conv_state.assign(spec.layers.size(), caches.conv_state[1]);
  pass.caches_.recurrent_state.assign(spec.layers.size(), caches.recurrent_state[1]);

  // Scratch of the hungriest layer.
  MeteringOps metering;
  Arena activations;
  Step step;
  step.ops = &metering;
  step.batch.num_tokens = static_cast<int32_t>(pass.longest_);
  step.caches = &pass.caches_;
  step.scratch = &activations;
  for (size_t layer = 0; layer < spec.layers.size(); ++layer) {
    Arena views;
    NB_TRY(const LayerWeights weights,
           bind_layer(dir, spec, static_cast<int>(layer), device, views));
    decoder_layer_forward(step, spec, static_cast<int>(layer), weights,
                          {nullptr, DType::kF32, {pass.longest_, spec.hidden_size}});
  }
  NB_TRY(pass.scratch_memory_, device.allocate(activations.peak(), "calibration scratch"));

  NB_TRY(const Tensor table, dir.tensor(spec.weight_prefix + "embed_tokens.weight",
                                        {spec.vocab_size, spec.hidden_size}));
  NB_TRY(pass.stream_, pass.new_activations());
  for (size_t i = 0; i < samples.size(); ++i)
    if (!samples[i].empty())
      device.ops().embed(
          table, samples[i].data(),
          pass.stream_.view().rows(pass.sample_start_[i], pass.sample_start_[i + 1]));
  return pass;
}

Result<OwnedTensor> LayerPass::new_activations() const {
  const Shape shape{num_tokens_, spec_->hidden_size};
  if (kActivationsAlive * static_cast<size_t>(shape.num_elements()) * sizeof(float) >
      spill_.memory_limit)
    return OwnedTensor::on_disk(spill_.folder, DType::kF32, shape);
  return OwnedTensor(DType::kF32, shape);
}

void LayerPass::each_sample(Ops& ops,
                            const std::function<bool(const Step&, int64_t, int64_t)>& body) {
  Arena scratch(scratch_memory_.data(), scratch_memory_.size());
  std::vector<int32_t> positions;
  std::vector<int32_t> blocks(static_cast<size_t>((longest_ + kBlockSize - 1) / kBlockSize));
  std::iota(blocks.begin(), blocks.end(), 0);
  const int32_t zero = 0;
  const uint8_t fresh = 1;
  for (size_t i = 0; i + 1 < sample_start_.size(); ++i) {
    const int64_t first = sample_start_[i];
    const int64_t last = sample_start_[i + 1];
    if (first == last) continue;
    const auto tokens = static_cast<int32_t>(last - first);
    positions.resize(static_cast<size_t>(3 * tokens));
    for (int axis = 0; axis < 3; ++axis)
      std::iota(positions.begin() + axis * tokens, positions.begin() + (axis + 1) * tokens, 0);
    const int32_t query_start[] = {0, tokens};
    Step step;
    step.ops = &ops;
    step.batch = {.num_tokens = tokens,
                  .num_seqs = 1,
                  .query_start = query_start,
                  .context_len = &zero,
                  .block_table = blocks.data(),
                  .max_blocks = static_cast<int32_t>(blocks.size()),
                  .block_size = kBlockSize,
                  .state_slot = &zero,
                  .state_is_fresh = &fresh};
    step.positions = positions.data();
    step.caches = &caches_;
    step.scratch = &scratch;
    if (!body(step, first, last)) return;
  }
}

void LayerPass::run(int layer, const LayerWeights& weights, Recording* recording,
                    const std::function<bool(const LinearWeight*)>& want_gram) {
  if (recording == nullptr) {
    each_sample(ops(), [&](const Step& step, int64_t first, int64_t last) {
      decoder_layer_forward(step, *spec_, layer, weights, stream_.view().rows(first, last));
      return true;
    });
    return;
  }
  RecordingOps recorder(ops(), *recording, want_gram);
  recorder.set_num_experts(spec_->moe.num_experts);
  each_sample(recorder, [&](const Step& plain, int64_t first, int64_t last) {
    Step step = plain;
    const auto keep = [&](OwnedTensor& to, const Tensor& value) {
      if (to.empty()) return;
      std::memcpy(to.view().rows(first, last).data, value.data, value.num_bytes());
    };
    const Tensor x = stream_.view().rows(first, last);
    step.observe = [&](const char* what, int, const Tensor& value) {
      const std::string_view point = what;
      if (point == "mixer input") keep(recording->mixer_input, value);
      if (point == "mixer") keep(recording->mixer_output, value);
      if (point == "mlp input") keep(recording->mlp_input, value);
      if (point == "mlp") keep(recording->mlp_output, value);
    };
    decoder_layer_forward(step, *spec_, layer, weights, x);
    return true;
  });
}

int64_t LayerPass::num_first_tokens() const {
  for (size_t i = 0; i + 1 < sample_start_.size(); ++i)
    if (sample_start_[i + 1] > sample_start_[i]) return sample_start_[i + 1] - sample_start_[i];
  return 0;
}

void LayerPass::run_first(int layer, const LayerWeights& weights, const Tensor& x) {
  each_sample(ops(), [&](const Step& step, int64_t, int64_t) {
    decoder_layer_forward(step, *spec_, layer, weights, x);
    return false;
  });
}

double LayerPass::loss(
    const Tensor& input, const Tensor& expected, const ReplayLimits& limits,
    const std::function<void(const Step&, const Tensor&, const Tensor&)>& replay) {
  int64_t num_tokens = 0;  // of the samples that are looked at
  for (const int64_t end : sample_start_)
    if (num_tokens < limits.max_tokens) num_tokens = end;
  const auto count = static_cast<double>(num_tokens * spec_->hidden_size);
  OwnedTensor output(DType::kF32, {longest_, spec_->hidden_size});
  double sum = 0;
  each_sample(ops(), [&](const Step& step, int64_t first, int64_t last) {
    const Tensor out = output.view().rows(0, last - first);
    replay(step, input.rows(first, last), out);
    const float* found = out.as<const float>();
    const float* wanted = expected.rows(first, last).as<const float>();
    for (int64_t i = 0; i < out.num_elements(); ++i) {
      const double difference = static_cast<double>(wanted[i]) - static_cast<double>(found[i]);
      sum += difference * difference;
    }
    return last < num_tokens && !(sum > limits.bound * count);
  });
  return sum > limits.bound * count ? std::numeric_limits<double>::infinity() : sum / count;
}

double LayerPass::replay_mixer(int layer, const LayerWeights& weights, Recording& recording,
                               const ReplayLimits& limits) {
  const auto index = static_cast<size_t>(layer);
  return loss(recording.mixer_input.view(), recording.mixer_output.view(), limits,
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

double LayerPass::replay_mlp(int layer, const LayerWeights& weights, Recording& recording,
                             const ReplayLimits& limits) {
  const bool dense = spec_->layers[static_cast<size_t>(layer)].ffn == FfnKind::kDense;
  return loss(recording.mlp_input.view(), recording.mlp_output.view(), limits,
              [&](const Step& step, const Tensor& input, const Tensor& out) {
                if (dense) {
                  mlp_forward(step, weights.mlp, input, out);
                } else {
                  moe_forward(step, *spec_, weights.moe, input, out);
                }
              });
}

}  // namespace nibble
