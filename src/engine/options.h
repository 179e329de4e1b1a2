// Engine flags, with vLLM's names and meanings.
#pragma once

#include <cstddef>
#include <string>

#include "device/device.h"

namespace nibble {

struct EngineOptions {
  Backend backend = Backend::kAuto;
  int num_threads = 0;                  // 0: all
  std::string dtype = "float32";        // activations: float32, bfloat16, float16
  std::string kv_cache_dtype = "auto";  // auto (the activation dtype), float32, bfloat16, float16
  int max_model_len = 0;                // 0: the model's own limit, or what fits
  int max_num_seqs = 16;
  int max_num_batched_tokens = 512;  // prompt chunk and step budget
  int block_size = 16;
  size_t kv_cache_bytes = 0;  // 0: enough for max_num_seqs / 4 full-length sequences, at least 1
  int max_queue = 256;        // waiting requests

  // Scheduling.
  std::string scheduling_policy = "fcfs";  // or priority
  int long_prefill_token_threshold = 0;    // most tokens of one prompt in a step, 0: no limit
  bool batch_invariant = false;            // the same tokens alone and in a crowd

  // Kept prefixes.
  bool enable_prefix_caching = true;
  int num_state_snapshots = -1;  // slots for kept prefixes of hybrid models; -1: choose
  float kv_offloading_size = 0;  // GiB of host memory behind the device's cache
  std::string cache_dir = {};    // files behind host memory; empty: none
  float cache_dir_size = 16;     // GiB of them

  template <class V>
  void visit(V& v) {
    v.option("max-model-len", &max_model_len, "context, 0 for the model's own or what fits");
    v.option("max-num-seqs", &max_num_seqs, "sequences in a batch");
    v.option("max-num-batched-tokens", &max_num_batched_tokens, "tokens in a step");
    v.option("block-size", &block_size, "tokens in a KV block");
    v.option("dtype", &dtype, "of activations");
    v.option("kv-cache-dtype", &kv_cache_dtype, "auto: the activations' dtype");
    v.option("kv-cache-memory-bytes", &kv_cache_bytes, "KV cache size, 0 to choose");
    v.option("scheduling-policy", &scheduling_policy,
             "fcfs: by arrival, fair between clients; priority: lowest first",
             {"fcfs", "priority"});
    v.option("long-prefill-token-threshold", &long_prefill_token_threshold,
             "most tokens of one prompt in a step, 0 for no limit");
    v.option("batch-invariant", &batch_invariant,
             "a request's greedy tokens do not depend on its company (always so on a CPU)");
    v.option("enable-prefix-caching", &enable_prefix_caching, "keep and share computed prefixes");
    v.option("num-state-snapshots", &num_state_snapshots,
             "kept recurrent states of prefixes, -1 to choose");
    v.option("kv-offloading-size", &kv_offloading_size,
             "GiB of host memory behind the device's prefix cache, 0 for none");
    v.option("cache-dir", &cache_dir,
             "folder where prefixes outlive eviction and restarts, empty for none");
    v.option("cache-dir-size", &cache_dir_size, "GiB that --cache-dir may take");
    v.option("max-queue", &max_queue, "requests that may wait; more get 503");
    v.option("num-threads", &num_threads, "threads, 0 for all");
  }
};

// The named dtypes, or an error that lists them. auto: float32 on a CPU.
Result<DType> parse_activation_dtype(const std::string& name);
// auto: `activation`.
Result<DType> parse_kv_cache_dtype(const std::string& name, DType activation);

}  // namespace nibble
