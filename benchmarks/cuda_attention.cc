// Paged attention on a GPU with Qwen3.5's heads (24 query, 4 kv, 256 wide): decode as bytes of
// cache per second over the card's read bandwidth, prefill as FLOP/s.
#include <numeric>

#include "cuda_timing.h"
#include "device/cuda/attention.h"

namespace nibble::bench {
namespace {

constexpr int kHeads = 24;
constexpr int kKvHeads = 4;
constexpr int kDim = 256;
constexpr int kBlock = 16;

const char* name_of(cuda::Scalar type) {
  return type == cuda::Scalar::kBF16   ? "bf16"
         : type == cuda::Scalar::kF16  ? "f16"
         : type == cuda::Scalar::kE4M3 ? "e4m3"
                                       : "e5m2";
}

// `layers` caches of their own, so that a short context does not sit in the L2 cache.
void run(cuda::Scalar cache_type, int num_seqs, int new_tokens, int context, int layers,
         double bandwidth) {
  const int64_t length = context + new_tokens;
  const int64_t blocks = (length + kBlock - 1) / kBlock;
  const int64_t tokens = static_cast<int64_t>(num_seqs) * new_tokens;
  const auto element = static_cast<int64_t>(cuda::scalar_size(cache_type));
  const int64_t cache_bytes = num_seqs * blocks * kBlock * kKvHeads * kDim * element;
  std::vector<uint8_t*> caches;
  for (int i = 0; i < 2 * layers; ++i)
    caches.push_back(element == 2 ? reinterpret_cast<uint8_t*>(random_bf16(cache_bytes / 2))
                                  : random_device<uint8_t>(static_cast<size_t>(cache_bytes), [] {
                                      return static_cast<uint8_t>(random()() & 0xbf);  // below 2
                                    }));
  cuda::DeviceBatch batch{};
  std::vector<int32_t> starts;
  for (int s = 0; s <= num_seqs; ++s) starts.push_back(s * new_tokens);
  std::vector<int32_t> table(static_cast<size_t>(num_seqs * blocks));
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), random());
  batch.num_tokens = static_cast<int32_t>(tokens);
  batch.num_seqs = num_seqs;
  batch.query_start = to_device(starts);
  batch.context_len = to_device(std::vector<int32_t>(static_cast<size_t>(num_seqs), context));
  batch.block_table = to_device(table);
  batch.max_blocks = static_cast<int32_t>(blocks);
  batch.block_size = kBlock;
  cuda::AttentionLaunch launch{};
  launch.q = random_bf16(tokens * kHeads * kDim);
  launch.out = device_bytes(static_cast<size_t>(tokens) * kHeads * kDim * 2);
  launch.type = cuda::Scalar::kBF16;
  launch.cache_type = cache_type;
  launch.num_heads = kHeads;
  launch.num_kv_heads = kKvHeads;
  launch.head_dim = kDim;
  launch.softmax_scale = 1.0f / 16;
  const cuda::Workspace workspace =
      make_workspace(cuda::attention_scratch_bytes(kDim, make_workspace(1024).num_sms));
  const double ms = median_ms(
                        [&](cudaStream_t stream) {
                          for (int i = 0; i < layers; ++i) {
                            launch.k_cache = caches[static_cast<size_t>(2 * i)];
                            launch.v_cache = caches[static_cast<size_t>(2 * i + 1)];
                            launch_attention(launch, batch, workspace, stream);
                          }
                        },
                        10) /
                    layers;
  if (new_tokens <= 8) {
    const double bytes = 2.0 * num_seqs * static_cast<double>(length) * kKvHeads * kDim *
                         static_cast<double>(element);
    std::printf("decode  %s batch %2d x %d tokens at %6d: %8.3f ms a layer, %5.2f TB/s, %3.0f %%\n",
                name_of(cache_type), num_seqs, new_tokens, context, ms, bytes / ms * 1e-9,
                100 * bytes / (ms * 1e-3) / bandwidth);
  } else {
    double visible = 0;
    for (int i = 1; i <= new_tokens; ++i) visible += context + i;
    const double flops = 4.0 * kHeads * kDim * visible * num_seqs;
    std::printf("prefill %s %d x %5d tokens at %6d: %8.3f ms a layer, %4.0f TFLOP/s",
                name_of(cache_type), num_seqs, new_tokens, context, ms, flops / ms * 1e-9);
    for (const auto& [name, form] : {std::pair{"small", cuda::AttentionForm::kSmall},
                                     {"quads", cuda::AttentionForm::kQuads}}) {
      launch.form = form;
      const double other = median_ms(
          [&](cudaStream_t stream) { launch_attention(launch, batch, workspace, stream); }, 3);
      std::printf(", %s form %.1f", name, flops / other * 1e-9);
    }
    std::printf("\n");
  }
  for (uint8_t* cache : caches) NB_CUDA(cudaFree(cache));
}

}  // namespace
}  // namespace nibble::bench

int main() {
  using namespace nibble::bench;
  using nibble::cuda::Scalar;
  const double bandwidth = read_bandwidth();
  print_card(bandwidth);
  for (const Scalar type : {Scalar::kE5M2, Scalar::kE4M3, Scalar::kBF16}) {
    run(type, 1, 1, 4096, 24, bandwidth);
    run(type, 1, 1, 32768, 8, bandwidth);
    run(type, 1, 1, 200000, 2, bandwidth);
  }
  run(Scalar::kE5M2, 16, 1, 8192, 4, bandwidth);
  run(Scalar::kE5M2, 16, 1, 200000, 1, bandwidth);
  run(Scalar::kBF16, 16, 1, 32768, 1, bandwidth);
  run(Scalar::kE5M2, 1, 5, 200000, 2, bandwidth);
  for (const Scalar type : {Scalar::kE5M2, Scalar::kBF16}) {
    run(type, 1, 8192, 0, 1, bandwidth);
    run(type, 1, 8192, 32768, 1, bandwidth);
    run(type, 1, 8192, 122880, 1, bandwidth);
  }
  run(Scalar::kBF16, 8, 1024, 0, 1, bandwidth);
}
