// Each operation with operands of its own, in a loop over copies.
#include "engine/kernel_timing.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/format.h"
#include "device/measure.h"
#include "engine/memory_plan.h"

namespace nibble {
namespace {

// More than caches hold.
constexpr size_t kRotateBytesGpu = size_t{400} << 20;
constexpr size_t kRotateBytesHost = size_t{64} << 20;
constexpr size_t kMostCopies = 64;
// A head of a large vocabulary is never asked for many rows.
constexpr int32_t kMostHeadTokens = 64;

class KernelTimer {
 public:
  KernelTimer(const Model& model, Device& device, const KernelTimingOptions& options)
      : model_(model),
        spec_(model.spec()),
        device_(device),
        options_(options),
        dtype_(model.activation_dtype()),
        rotate_bytes_(device.memory().is_host ? kRotateBytesHost : kRotateBytesGpu) {}

  Result<std::vector<KernelTiming>> run() {
    for (const auto& [what, weights] : linear_kinds())
      for (const int32_t tokens : options_.tokens) {
        if (what.starts_with("lm_head") && tokens > kMostHeadTokens) continue;
        NB_TRY_STATUS(linear(what, weights, tokens));
      }
    if (has(MixerKind::kFullAttention)) {
      for (const int32_t batch : options_.batches)
        for (const int32_t context : options_.contexts)
          NB_TRY_STATUS(attention("decode", batch, 1, context));
      for (const int32_t chunk : options_.chunks) NB_TRY_STATUS(attention("prefill", 1, chunk, 0));
    }
    if (has(MixerKind::kGatedDeltaNet)) {
      for (const int32_t batch : options_.batches) NB_TRY_STATUS(delta_net("decode", batch, 1));
      for (const int32_t chunk : options_.chunks) NB_TRY_STATUS(delta_net("prefill", 1, chunk));
    }
    return std::move(timings_);
  }

 private:
  using Weights = std::vector<const LinearWeight*>;

  bool has(MixerKind mixer) const {
    return std::any_of(spec_.layers.begin(), spec_.layers.end(),
                       [&](const LayerSpec& layer) { return layer.mixer == mixer; });
  }

  // Products of the same name and shape, over the layers.
  std::vector<std::pair<std::string, Weights>> linear_kinds() const {
    std::vector<std::pair<std::string, Weights>> kinds;
    const auto add = [&](const char* name, const LinearWeight& weight) {
      if (weight.out_features == 0) return;
      const std::string format_name = weight.compacted() ? "BF16 in 12 bits"
                                      : weight.quantized()
                                          ? format("W{}", weight.format.num_bits)
                                          : std::string(dtype_name(weight.dense.dtype));
      const std::string what =
          format("{} {} [{}, {}]", name, format_name, weight.out_features, weight.in_features);
      for (auto& [known, weights] : kinds)
        if (known == what) return weights.push_back(&weight);
      kinds.push_back({what, {&weight}});
    };
    for (const LayerWeights& layer : model_.weights().layers) {
      const AttentionWeights& a = layer.attention;
      const GatedDeltaNetWeights& d = layer.delta_net;
      add("q_proj", a.q_proj);
      add("k_proj", a.k_proj);
      add("v_proj", a.v_proj);
      add("o_proj", a.o_proj);
      add("in_proj_qkv", d.in_proj_qkv);
      add("in_proj_z", d.in_proj_z);
      add("in_proj_b", d.in_proj_b);
      add("in_proj_a", d.in_proj_a);
      add("out_proj", d.out_proj);
      add("gate_proj", layer.mlp.gate_proj);
      add("up_proj", layer.mlp.up_proj);
      add("down_proj", layer.mlp.down_proj);
    }
    add("lm_head", model_.weights().lm_head);
    return kinds;
  }

  size_t copies_for(size_t bytes) const {
    return std::clamp<size_t>(rotate_bytes_ / std::max<size_t>(1, bytes), 1, kMostCopies);
  }

  // Times `enqueue` over all copies; `meter` has seen it once.
  template <class Enqueue>
  void add(KernelTiming timing, const MeteringOps& meter, size_t copies, const Enqueue& enqueue) {
    timing.cost = meter.cost();
    timing.seconds = median_seconds(device_, options_.repeats, [&] {
      for (size_t copy = 0; copy < copies; ++copy) enqueue(copy);
    });
    timing.seconds /= static_cast<double>(copies);
    timings_.push_back(std::move(timing));
  }

  Status linear(const std::string& what, const Weights& all, int32_t tokens) {
    const LinearWeight& first = *all[0];
    const size_t count = std::min(all.size(), copies_for(first.num_bytes()));
    NB_TRY(const DeviceMemory x, random_memory(device_, dtype_, tokens * first.in_features));
    NB_TRY(const DeviceMemory out,
           device_.allocate(static_cast<size_t>(tokens * first.out_features) * sizeof(float),
                            "a benchmark"));
    const Tensor input{x.data(), dtype_, {tokens, first.in_features}};
    // The head's results are F32 logits.
    const DType out_dtype = what.starts_with("lm_head") ? DType::kF32 : dtype_;
    const Tensor output{out.data(), out_dtype, {tokens, first.out_features}};
    KernelTiming timing{.operation = "linear", .what = what, .num_tokens = tokens};
    MeteringOps meter;
    meter.linear(input, first, output);
    add(std::move(timing), meter, count,
        [&](size_t i) { device_.ops().linear(input, *all[i], output); });
    return {};
  }

  // A batch of equal sequences, each with blocks of its own, in host and in device memory.
  struct Batch {
    DeviceMemory host_memory, device_memory;
    RaggedBatch host, device;
    int32_t num_blocks = 0;
  };
  Result<Batch> make_batch(int32_t num_seqs, int32_t fresh, int32_t context) {
    Batch batch;
    const int32_t blocks = (context + fresh + options_.block_size - 1) / options_.block_size;
    batch.num_blocks = num_seqs * blocks;
    const auto place = [&](Arena& arena) {
      return place_batch(num_seqs * fresh, num_seqs, context + fresh, options_.block_size, arena);
    };
    Arena counter;
    place(counter);
    NB_TRY(batch.host_memory, device_.allocate_host(counter.used(), "a benchmark"));
    NB_TRY(batch.device_memory, device_.allocate(counter.used(), "a benchmark"));
    Arena host_arena(batch.host_memory.data(), batch.host_memory.size());
    Arena device_arena(batch.device_memory.data(), batch.device_memory.size());
    const BatchArrays host = place(host_arena);
    const BatchArrays device = place(device_arena);
    for (int32_t s = 0; s < num_seqs; ++s) {
      host.query_start[s] = s * fresh;
      host.context_len[s] = context;
      host.state_slot[s] = s;
      host.state_is_fresh[s] = 0;
    }
    host.query_start[num_seqs] = num_seqs * fresh;
    std::iota(host.block_table, host.block_table + batch.num_blocks, 0);
    device_.upload(batch.device_memory.data(), batch.host_memory.data(), counter.used());
    device_.synchronize();
    const auto ragged = [&](const BatchArrays& arrays) {
      return RaggedBatch{.num_tokens = num_seqs * fresh,
                         .num_seqs = num_seqs,
                         .query_start = arrays.query_start,
                         .context_len = arrays.context_len,
                         .block_table = arrays.block_table,
                         .max_blocks = blocks,
                         .block_size = options_.block_size,
                         .state_slot = arrays.state_slot,
                         .state_is_fresh = arrays.state_is_fresh};
    };
    batch.host = ragged(host);
    batch.device = ragged(device);
    return batch;
  }

  Status attention(const char* what, int32_t num_seqs, int32_t fresh, int32_t context) {
    const AttentionSpec& a = spec_.attention;
    NB_TRY(const Batch batch, make_batch(num_seqs, fresh, context));
    const Shape cache_shape{batch.num_blocks, options_.block_size, a.num_kv_heads, a.head_dim};
    const int64_t cache_elements = cache_shape.num_elements();
    const size_t element = dtype_size(options_.kv_dtype);
    const size_t copies = copies_for(2 * static_cast<size_t>(cache_elements) * element);
    NB_TRY(const DeviceMemory caches,
           random_memory(device_, options_.kv_dtype,
                         2 * cache_elements * static_cast<int64_t>(copies)));
    const Shape q_shape{batch.host.num_tokens, a.num_heads, a.head_dim};
    NB_TRY(const DeviceMemory q, random_memory(device_, dtype_, q_shape.num_elements()));
    NB_TRY(const DeviceMemory out,
           device_.allocate(static_cast<size_t>(q_shape.num_elements()) * dtype_size(dtype_),
                            "a benchmark"));
    const auto arguments = [&](size_t copy) {
      const auto at = [&](size_t which) {
        auto* const base = static_cast<std::byte*>(caches.data());
        return Tensor{base + (2 * copy + which) * static_cast<size_t>(cache_elements) * element,
                      options_.kv_dtype, cache_shape};
      };
      return AttentionArgs{.q = {q.data(), dtype_, q_shape},
                           .out = {out.data(), dtype_, q_shape},
                           .cache = {at(0), at(1), {options_.kv_dtype}},
                           .num_kv_heads = a.num_kv_heads,
                           .softmax_scale = 1 / std::sqrt(static_cast<float>(a.head_dim))};
    };
    KernelTiming timing{.operation = "attention",
                        .what = what,
                        .num_seqs = num_seqs,
                        .num_tokens = fresh,
                        .context = context};
    MeteringOps meter;
    meter.attention(arguments(0), batch.host);
    add(std::move(timing), meter, copies,
        [&](size_t copy) { device_.ops().attention(arguments(copy), batch.device); });
    return {};
  }

  Status delta_net(const char* what, int32_t num_seqs, int32_t fresh) {
    const GatedDeltaNetSpec& d = spec_.delta_net;
    const auto layer =
        std::find_if(spec_.layers.begin(), spec_.layers.end(),
                     [](const LayerSpec& spec) { return spec.mixer == MixerKind::kGatedDeltaNet; });
    const GatedDeltaNetWeights& weights =
        model_.weights().layers[static_cast<size_t>(layer - spec_.layers.begin())].delta_net;
    NB_TRY(const Batch batch, make_batch(num_seqs, fresh, 1));
    const int64_t tokens = batch.host.num_tokens;
    const Shape state_shape{num_seqs, d.num_v_heads, d.head_k_dim, d.head_v_dim};
    const int64_t state_elements = state_shape.num_elements();
    const size_t copies = copies_for(2 * sizeof(float) * static_cast<size_t>(state_elements));
    NB_TRY(const DeviceMemory states,
           random_memory(device_, DType::kF32, state_elements * static_cast<int64_t>(copies)));
    const Shape k_shape{tokens, d.num_k_heads, d.head_k_dim};
    const Shape v_shape{tokens, d.num_v_heads, d.head_v_dim};
    const Shape gate_shape{tokens, d.num_v_heads};
    NB_TRY(const DeviceMemory q, random_memory(device_, dtype_, k_shape.num_elements()));
    NB_TRY(const DeviceMemory k, random_memory(device_, dtype_, k_shape.num_elements()));
    NB_TRY(const DeviceMemory v, random_memory(device_, dtype_, v_shape.num_elements()));
    NB_TRY(const DeviceMemory a, random_memory(device_, dtype_, gate_shape.num_elements()));
    NB_TRY(const DeviceMemory decay,
           random_memory(device_, DType::kF32, gate_shape.num_elements()));
    NB_TRY(const DeviceMemory beta, random_memory(device_, DType::kF32, gate_shape.num_elements()));
    NB_TRY(const DeviceMemory out, random_memory(device_, dtype_, v_shape.num_elements()));
    const Tensor gate{a.data(), dtype_, gate_shape};
    device_.ops().delta_gates(gate, gate, weights.a_log, weights.dt_bias,
                              {decay.data(), DType::kF32, gate_shape},
                              {beta.data(), DType::kF32, gate_shape});
    const auto arguments = [&](size_t copy) {
      auto* const state =
          static_cast<float*>(states.data()) + copy * static_cast<size_t>(state_elements);
      return GatedDeltaNetArgs{.q = {q.data(), dtype_, k_shape},
                               .k = {k.data(), dtype_, k_shape},
                               .v = {v.data(), dtype_, v_shape},
                               .log_decay = {decay.data(), DType::kF32, gate_shape},
                               .beta = {beta.data(), DType::kF32, gate_shape},
                               .state = {state, DType::kF32, state_shape},
                               .out = {out.data(), dtype_, v_shape}};
    };
    KernelTiming timing{
        .operation = "gated_delta_net", .what = what, .num_seqs = num_seqs, .num_tokens = fresh};
    MeteringOps meter;
    meter.gated_delta_net(arguments(0), batch.host);
    add(std::move(timing), meter, copies,
        [&](size_t copy) { device_.ops().gated_delta_net(arguments(copy), batch.device); });
    return {};
  }

  const Model& model_;
  const ModelSpec& spec_;
  Device& device_;
  const KernelTimingOptions& options_;
  const DType dtype_;
  const size_t rotate_bytes_;
  std::vector<KernelTiming> timings_;
};

}  // namespace

Result<std::vector<KernelTiming>> time_kernels(const Model& model, Device& device,
                                               const KernelTimingOptions& options) {
  return KernelTimer(model, device, options).run();
}

}  // namespace nibble
