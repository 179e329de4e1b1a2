// Engine flags, with vLLM's names and meanings.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "device/device.h"

namespace nibble {

struct EngineOptions {
  std::string device = "auto";          // auto, cpu, cuda, reference
  int num_threads = 0;                  // 0: all
  std::string dtype = "auto";           // activations: auto, float32, bfloat16, float16
  std::string kv_cache_dtype = "auto";  // auto: the activation dtype; see parse_kv_cache_dtype
  int max_model_len = 0;  // below 1: the largest that fits, up to the model's own limit
  int max_num_seqs = 16;
  int max_num_batched_tokens = 0;  // prompt chunk and step budget; 0: batched_tokens() chooses
  int block_size = 16;
  int max_queue = 256;  // waiting requests

  // Memory (docs/guide/memory.md).
  float gpu_memory_utilization = 0.9f;  // share of the device's memory this instance may use in all
  size_t kv_cache_bytes = 0;            // of the KV cache, whatever the share says; 0: choose
  int num_gpu_blocks_override = 0;      // KV blocks; 0: choose
  // The KV cache is at most max_num_seqs full-length sequences times this; below 1 counts as 1, 0
  // lifts the limit.
  float kv_cache_auto_trim_ratio = 1.05f;
  // Hold BF16 Linears in 12 bits, without loss, on GPUs that compute with them so. auto: where at
  // most Device::compact_seqs() sequences decode at once; more are faster with plain ones.
  std::string compact_weights = "auto";
  int num_state_snapshots = -1;  // slots for kept prefixes of hybrid models; -1: from what is left
  int tensor_parallel_size = 1;

  // Sampling.
  std::string logprobs_mode = "raw_logprobs";
  std::string loop_guard = "off";

  // Scheduling.
  std::string scheduling_policy = "fcfs";  // or priority
  int long_prefill_token_threshold = 0;    // most tokens of one prompt in a step, 0: no limit
  bool batch_invariant = false;            // the same tokens alone and in a crowd

  // Recorded steps (CUDA graphs), with vLLM's names: none runs every step launch by launch. All
  // other modes record steps of one token per sequence; steps with prompt tokens always run launch
  // by launch, for their grids follow the prompts.
  std::string cudagraph_mode = "full_and_piecewise";
  bool enforce_eager = false;                     // the same as mode none
  std::vector<int> cudagraph_capture_sizes = {};  // sequences; empty: 1, 2, 4, then every eighth

  // Kept prefixes.
  bool enable_prefix_caching = true;
  float kv_offloading_size = 0;  // GiB of host memory behind the device's cache
  std::string cache_dir = {};    // files behind host memory; empty: none
  float cache_dir_size = 16;     // GiB of them

  template <class V>
  void visit(V& v) {
    v.option("device", &device, "what computes: auto is the GPU if one is usable, else the CPU",
             {"auto", "cpu", "cuda", "reference"});
    v.option("max-model-len", &max_model_len,
             "context in tokens; auto or -1: the largest that fits, up to the model's own");
    v.option("max-num-seqs", &max_num_seqs, "sequences in a batch");
    v.option("max-num-batched-tokens", &max_num_batched_tokens,
             "tokens in a step, 0 to choose: 2048 on a GPU, 512 on a CPU");
    v.option("block-size", &block_size, "tokens in a KV block");
    v.option("dtype", &dtype, "of activations");
    v.option(
        "kv-cache-dtype", &kv_cache_dtype,
        "auto (the activations' dtype), float32, bfloat16, float16, fp8 (= fp8_e4m3), fp8_e5m2");
    v.option("gpu-memory-utilization", &gpu_memory_utilization,
             "share of a GPU's memory to use in all, above 0 and at most 1; on a CPU, of the "
             "memory available");
    v.option("kv-cache-memory-bytes", &kv_cache_bytes, "KV cache size on each device, 0 to choose");
    v.option("num-gpu-blocks-override", &num_gpu_blocks_override, "KV blocks, 0 to choose");
    v.option("kv-cache-auto-trim-ratio", &kv_cache_auto_trim_ratio,
             "KV cache at most this many times max-num-seqs full contexts, 0 for no limit");
    v.option("num-state-snapshots", &num_state_snapshots,
             "kept recurrent states of prefixes, -1 to choose");
    v.option("compact-weights", &compact_weights,
             "hold bfloat16 weights in 12 bits, without loss, on GPUs that can; auto: for "
             "max-num-seqs up to 16, on Hopper up to 64, where it is faster",
             {"auto", "on", "off"});
    v.option("tensor-parallel-size", &tensor_parallel_size, "devices a model is spread over");
    v.option("logprobs-mode", &logprobs_mode,
             "what logprobs report: before (raw) or after (processed) penalties and filters",
             {"raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"});
    v.option("loop-guard", &loop_guard,
             "when a reply repeats itself: stop it, or raise its repetition penalty",
             {"off", "stop", "penalize"});
    v.option("scheduling-policy", &scheduling_policy,
             "fcfs: by arrival, fair between clients; priority: lowest first",
             {"fcfs", "priority"});
    v.option("long-prefill-token-threshold", &long_prefill_token_threshold,
             "most tokens of one prompt in a step, 0 for no limit");
    v.option("enforce-eager", &enforce_eager, "never record steps as CUDA graphs");
    v.option("batch-invariant", &batch_invariant,
             "a request's greedy tokens do not depend on its company (always so on a CPU)");
    v.option("enable-prefix-caching", &enable_prefix_caching, "keep and share computed prefixes");
    v.option("kv-offloading-size", &kv_offloading_size,
             "GiB of host memory behind the device's prefix cache, 0 for none");
    v.option("cache-dir", &cache_dir,
             "folder where prefixes outlive eviction and restarts, empty for none");
    v.option("cache-dir-size", &cache_dir_size, "GiB that --cache-dir may take");
    v.option("max-queue", &max_queue, "requests that may wait; more get 503");
    v.option("num-threads", &num_threads, "threads, 0 for all");
  }
};

// The device that the options name.
Result<std::unique_ptr<Device>> open_device(const EngineOptions& options);
// What the options say about a model's weights on this device.
DenseStorage dense_storage(const EngineOptions& options, const Device& device);
// Tokens in a step, chosen where the options leave it open: on a GPU chunks of 2048 are within 2 %
// of the pace of 8192 and hold others up for a quarter of the time (docs/performance.md).
int batched_tokens(const EngineOptions& options, bool on_host);
// The numbers of sequences for which steps are recorded, rising, at most max_num_seqs; empty for
// none. Every step of at most the last of them has one that is as large or larger.
std::vector<int> capture_sizes(const EngineOptions& options);
// The named dtypes, or an error that lists them. auto: `natural`, the device's own.
Result<DType> parse_activation_dtype(const std::string& name, DType natural = DType::kF32);
// auto: `activation`.
Result<DType> parse_kv_cache_dtype(const std::string& name, DType activation);

}  // namespace nibble
