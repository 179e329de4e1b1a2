// Every byte the engine will hold on one device, computed before any is reserved. The walk that
// counts here, place_engine(), is the walk that places in engine/model_runner.cc, and activations
// are counted by the forward pass itself, so plan and placement cannot disagree.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "device/cards.h"
#include "engine/options.h"
#include "model/model.h"

namespace nibble {

// The memory a plan is made for: a device of this machine, or a card that is elsewhere.
struct MemoryTarget {
  std::string name;  // "cpu", "V100-32GB"
  int num_devices = 1;
  size_t total_bytes = 0;          // of one device
  size_t free_bytes = 0;           // of it, before this program puts anything there
  bool is_host = false;            // weights stay in mapped files; the share is of what is free
  const Device* device = nullptr;  // counts the scratch of its own operations
  std::string holders;             // who has the rest, or ""
  // What the driver and libraries take outside our arenas. Zero on a CPU, and on a GPU of this
  // machine, where free_bytes is already without it.
  size_t context_bytes = 0;
  size_t graph_bytes = 0;
  size_t workspace_bytes = 0;
  size_t margin_bytes = 0;
};

// A device of this machine. `before` is its memory before weights were loaded.
MemoryTarget memory_target(const Device& device, const DeviceMemoryInfo& before);
// A card that is not here, nothing else on it; the reserves are stated in docs/guide/memory.md.
MemoryTarget memory_target(const CardSet& cards, const Model& model);

// Slots of the prefix cache's second tier, in host memory (--kv-offloading-size, --cache-dir).
struct HostTierShape {
  int32_t num_blocks = 0;
  int32_t num_snapshots = 0;
  size_t block_bytes = 0;  // of a slot
  size_t snapshot_bytes = 0;
  size_t num_bytes() const {
    return static_cast<size_t>(num_blocks) * block_bytes +
           static_cast<size_t>(num_snapshots) * snapshot_bytes;
  }
};

struct MemoryTerm {
  std::string name;    // stable, for --json: "weights.quantized"
  std::string detail;  // for people
  size_t bytes = 0;
};

// Bytes are of one device.
struct MemoryPlan {
  int32_t max_model_len = 0;  // tokens of the longest sequence; as asked when that does not fit
  CacheShape caches;
  HostTierShape host_tier;
  int32_t max_num_seqs = 0;
  int32_t max_num_batched_tokens = 0;
  DType activation_dtype = DType::kF32;
  int64_t logits_width = 0;  // vocabulary entries of a gathered row of logits

  WeightBytes weights;
  size_t kv_bytes = 0;             // KV blocks of all layers
  size_t recurrent_bytes = 0;      // recurrent states of running sequences
  size_t conv_bytes = 0;           // their convolution states
  size_t snapshot_bytes = 0;       // both, of kept prefixes
  size_t activation_bytes = 0;     // scratch of the largest step
  size_t logits_bytes = 0;         // of all sequences; with several devices also the gathered rows
  size_t batch_bytes = 0;          // ids, positions, block tables on the device
  size_t operation_bytes = 0;      // what operations keep themselves (attention scores)
  size_t sampling_bytes = 0;       // 0: the sampler works in host memory
  size_t communication_bytes = 0;  // collectives' buffers; 0 on one device
  size_t graph_bytes = 0;          // captured graphs
  size_t context_bytes = 0;        // driver context and modules
  size_t margin_bytes = 0;         // kept free
  size_t alignment_bytes = 0;      // between tensors
  // In host memory, pinned for a GPU: copies of batch and logits, and the second tier of the prefix
  // cache. Terms of the plan where the device's memory is the host's, beside it elsewhere.
  size_t staging_bytes = 0;
  size_t tier_bytes = 0;
  bool device_is_host = false;

  size_t device_bytes = 0;         // the device's total
  size_t others_bytes = 0;         // taken before we came
  size_t budget_bytes = 0;         // what this instance may use of it
  size_t kv_bytes_per_token = 0;   // all layers, keys and values
  size_t state_bytes_per_seq = 0;  // one slot, recurrent and convolution
  int64_t fitting_model_len = 0;   // the longest context that fits with these flags, 0 for none
  size_t shortfall_bytes = 0;      // 0: it fits
  bool busy = false;               // less is free than the share asks for

  bool fits() const { return shortfall_bytes == 0; }
  size_t total_bytes() const;      // all terms
  size_t headroom_bytes() const {  // of the budget
    return budget_bytes > total_bytes() ? budget_bytes - total_bytes() : 0;
  }
  // What one sequence of max_model_len needs, without snapshots and further KV blocks; and what of
  // the budget is left beside it.
  size_t single_bytes() const;
  size_t spare_bytes() const {
    return budget_bytes > single_bytes() ? budget_bytes - single_bytes() : 0;
  }
  // Tokens of KV cache, and how many sequences of max_model_len that is.
  int64_t kv_tokens() const { return int64_t{1} * caches.num_blocks * caches.block_size; }
  double concurrency() const {
    return static_cast<double>(kv_tokens()) / std::max(1, max_model_len);
  }
  std::vector<MemoryTerm> terms() const;  // every term, zero ones too, in the order above
};

// The flat batch of the largest step; a step fills the front of each array.
struct BatchArrays {
  int32_t* token_ids = nullptr;    // [max_num_batched_tokens]
  int32_t* positions = nullptr;    // [3, tokens of the step]
  int32_t* query_start = nullptr;  // [max_num_seqs + 1]
  int32_t* context_len = nullptr;  // [max_num_seqs], like the next three
  int32_t* state_slot = nullptr;
  uint8_t* state_is_fresh = nullptr;
  int32_t* logit_rows = nullptr;
  int32_t* block_table = nullptr;  // [max_num_seqs, most blocks of a sequence of the step]; last
};
BatchArrays place_batch(int32_t max_num_batched_tokens, int32_t max_num_seqs, int64_t max_model_len,
                        int32_t block_size, Arena& arena);

// What ModelRunner keeps on the device, in one arena.
struct EngineBuffers {
  ModelCaches caches;
  Tensor logits;           // [max_num_seqs, vocab_size of this rank] F32
  Tensor gathered_logits;  // [max_num_seqs, whole vocabulary] F32; empty on one device
  void* scratch = nullptr;
  std::byte* batch_base = nullptr;
  BatchArrays batch;
};
EngineBuffers place_engine(const ModelSpec& spec, const MemoryPlan& plan, Arena& arena);

// Chooses what the options leave open and counts; a plan that does not fit has a shortfall.
// `model` is one rank's (model/sharding.h), loaded or of shapes only. kInvalidArgument for options
// that contradict themselves or the model.
Result<MemoryPlan> count_memory(const Model& model, const EngineOptions& options,
                                const MemoryTarget& target);

// One change of flags and what it gives.
struct PlanChange {
  std::string flags;              // "--max-model-len 180224"
  std::string cost;               // "shorter context"
  size_t freed_bytes = 0;         // on one device, before anything else grows into it
  bool fits = false;              // alone
  int64_t fitting_model_len = 0;  // with it
};
// The changes that help, those that fit alone first, cheaper ones before dearer ones.
std::vector<PlanChange> cheapest_changes(const Model& model, const EngineOptions& options,
                                         const MemoryTarget& target, const MemoryPlan& plan);

// The same as count_memory, and kOutOfMemory when it does not fit: one line with the numbers, who
// holds the rest, and the nearest flags that fit.
Result<MemoryPlan> plan_memory(const Model& model, const EngineOptions& options,
                               const MemoryTarget& target);

}  // namespace nibble
