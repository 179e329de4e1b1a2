// The gated delta rule on a GPU with Qwen3.5's heads (16 key, 48 value, 128 wide, bf16): prefill of
// one layer in ms, and decode of 72 layers with bytes per second over the card's read bandwidth.
// tools/compare_delta_rule.py times flash-linear-attention's Triton kernels on the same shapes.
#include "cuda_timing.h"
#include "device/cuda/gated_delta_net.h"

namespace nibble::bench {
namespace {

constexpr int kKeyHeads = 16;
constexpr int kValueHeads = 48;
constexpr int kDim = 128;
constexpr int kStateFloats = kValueHeads * kDim * kDim;

struct Layer {
  cuda::DeltaRuleLaunch launch;
  cuda::DeviceBatch batch;
};

Layer make_layer(const std::vector<int32_t>& counts, bool fresh) {
  std::vector<int32_t> starts = {0};
  std::vector<int32_t> slots;
  for (const int32_t count : counts) {
    slots.push_back(static_cast<int32_t>(slots.size()));
    starts.push_back(starts.back() + count);
  }
  const int64_t tokens = starts.back();
  std::uniform_real_distribution<float> uniform(0, 1);
  Layer layer{};
  layer.launch.q = random_bf16(tokens * kKeyHeads * kDim);
  layer.launch.k = random_bf16(tokens * kKeyHeads * kDim);
  layer.launch.v = random_bf16(tokens * kValueHeads * kDim);
  const size_t gate_bytes = static_cast<size_t>(tokens) * kValueHeads * 4;
  layer.launch.log_decay =
      random_device<float>(gate_bytes, [&] { return -0.2f * uniform(random()); });
  layer.launch.beta = random_device<float>(gate_bytes, [&] { return uniform(random()); });
  layer.launch.state = random_device<float>(counts.size() * kStateFloats * 4,
                                            [&] { return uniform(random()) - 0.5f; });
  layer.launch.out = device_bytes(static_cast<size_t>(tokens) * kValueHeads * kDim * 2);
  layer.launch.type = cuda::Scalar::kBF16;
  layer.launch.num_k_heads = kKeyHeads;
  layer.launch.num_v_heads = kValueHeads;
  layer.launch.k_dim = kDim;
  layer.launch.v_dim = kDim;
  layer.batch.num_tokens = static_cast<int32_t>(tokens);
  layer.batch.num_seqs = static_cast<int32_t>(counts.size());
  layer.batch.query_start = to_device(starts);
  layer.batch.state_slot = to_device(slots);
  layer.batch.state_is_fresh = to_device(std::vector<uint8_t>(counts.size(), fresh ? 1 : 0));
  return layer;
}

void prefill(const char* name, const std::vector<int32_t>& counts, size_t scratch_mib) {
  const cuda::Workspace workspace = make_workspace(scratch_mib << 20);
  Layer layer = make_layer(counts, true);
  double ms[3];
  constexpr cuda::DeltaRuleForm kForms[] = {
      cuda::DeltaRuleForm::kAuto, cuda::DeltaRuleForm::kChunkedMma, cuda::DeltaRuleForm::kColumns};
  for (int i = 0; i < 3; ++i) {
    layer.launch.form = kForms[i];
    ms[i] = median_ms([&](cudaStream_t stream) {
      launch_gated_delta_net(layer.launch, layer.batch, workspace, stream);
    });
  }
  // Products of the chunked form: K K', Q K' once per value head here, X, O's first term, T, P, S.
  const double flops = 2.0 * layer.batch.num_tokens * kValueHeads *
                       (2.0 * 64 * kDim + 3.0 * kDim * kDim + 2.0 * 64 * kDim);
  std::printf(
      "prefill %-10s scratch %4zu MiB: %7.3f ms (%.0f TFLOP/s), mma.sync form %7.3f ms, by columns "
      "%7.3f ms\n",
      name, scratch_mib, ms[0], flops / ms[0] * 1e-9, ms[1], ms[2]);
  NB_CUDA(cudaFree(workspace.scratch));
}

void decode(int batch_size, int tokens_each, double bandwidth) {
  constexpr int kLayers = 72;
  const cuda::Workspace workspace = make_workspace(size_t{96} << 20);
  Layer layer =
      make_layer(std::vector<int32_t>(static_cast<size_t>(batch_size), tokens_each), false);
  const size_t state_bytes = static_cast<size_t>(batch_size) * kStateFloats * 4;
  const int states = std::min<int>(kLayers, static_cast<int>((size_t{16} << 30) / state_bytes));
  auto* all = static_cast<float*>(device_bytes(state_bytes * static_cast<size_t>(states)));
  NB_CUDA(cudaMemset(all, 0, state_bytes * static_cast<size_t>(states)));
  const double ms = median_ms([&](cudaStream_t stream) {
    for (int i = 0; i < kLayers; ++i) {
      layer.launch.state = all + static_cast<size_t>(i % states) * state_bytes / 4;
      launch_gated_delta_net(layer.launch, layer.batch, workspace, stream);
    }
  });
  const double bytes = 2.0 * static_cast<double>(state_bytes) * kLayers;
  std::printf(
      "decode %3d x %d tokens, 72 layers: %7.3f ms, %5.2f TB/s of state, %3.0f %% of reading\n",
      batch_size, tokens_each, ms, bytes / ms * 1e-9, 100 * bytes / (ms * 1e-3) / bandwidth);
  NB_CUDA(cudaFree(all));
  NB_CUDA(cudaFree(workspace.scratch));
}

}  // namespace
}  // namespace nibble::bench

int main() {
  using namespace nibble::bench;
  const double bandwidth = read_bandwidth();
  print_card(bandwidth);
  for (const size_t scratch_mib : {24u, 48u, 96u, 448u}) prefill("1 x 32768", {32768}, scratch_mib);
  prefill("1 x 8192", {8192}, 96);
  prefill("4 x 8192", {8192, 8192, 8192, 8192}, 96);
  prefill("16 x 2048", std::vector<int32_t>(16, 2048), 96);
  for (const int batch_size : {1, 4, 16, 64}) decode(batch_size, 1, bandwidth);
  decode(1, 5, bandwidth);
  decode(16, 5, bandwidth);
}
