// Names on the command line, and what follows from several options together.
#include "engine/options.h"

#include <algorithm>

#include "base/format.h"

namespace nibble {

Result<std::unique_ptr<Device>> open_device(const EngineOptions& options) {
  NB_TRY(const Backend backend, parse_backend(options.device));
  return open_device(backend, options.num_threads);
}

DenseStorage dense_storage(const EngineOptions& options, const Device& device) {
  const bool compact = options.compact_weights == "auto"
                           ? options.max_num_seqs <= device.compact_seqs()
                           : options.compact_weights == "on";
  return compact ? DenseStorage::kCompact : DenseStorage::kPlain;
}

int batched_tokens(const EngineOptions& options, bool on_host) {
  const int tokens = options.max_num_batched_tokens > 0 ? options.max_num_batched_tokens
                     : on_host                          ? 512
                                                        : 2048;
  return std::max(tokens, options.max_num_seqs);
}

std::vector<int> capture_sizes(const EngineOptions& options) {
  if (options.enforce_eager || options.cudagraph_mode == "none") return {};
  std::vector<int> sizes;
  for (const int size : options.cudagraph_capture_sizes)
    if (size >= 1 && size <= options.max_num_seqs) sizes.push_back(size);
  if (options.cudagraph_capture_sizes.empty()) {
    // vLLM's sizes, up to its default limit.
    constexpr int kLargest = 256;
    const int largest = std::min(options.max_num_seqs, kLargest);
    for (int size = 1; size <= largest; size = size < 8 ? 2 * size : size + 8)
      sizes.push_back(size);
    sizes.push_back(largest);
  }
  std::sort(sizes.begin(), sizes.end());
  sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
  return sizes;
}

Result<DType> parse_activation_dtype(const std::string& name, DType natural) {
  if (name == "auto") return natural;
  if (name == "float32" || name == "float") return DType::kF32;
  if (name == "bfloat16") return DType::kBF16;
  if (name == "float16" || name == "half") return DType::kF16;
  return make_error(ErrorCode::kInvalidArgument,
                    "--dtype {}: unknown; use auto, float32, bfloat16 or float16", name);
}

Result<DType> parse_kv_cache_dtype(const std::string& name, DType activation) {
  if (name == "auto") return activation;
  if (name == "float32") return DType::kF32;
  if (name == "bfloat16") return DType::kBF16;
  if (name == "float16") return DType::kF16;
  if (name == "fp8" || name == "fp8_e4m3") return DType::kF8E4M3;
  if (name == "fp8_e5m2") return DType::kF8E5M2;
  return make_error(ErrorCode::kInvalidArgument,
                    "--kv-cache-dtype {}: unknown; use auto, float32, bfloat16, float16, fp8 (= "
                    "fp8_e4m3) or fp8_e5m2",
                    name);
}

}  // namespace nibble
