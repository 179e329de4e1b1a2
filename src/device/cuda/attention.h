// Launchers of paged attention and of what prepares its inputs. Contracts: Ops::attention and
// Ops::attention_inputs in device/ops.h.
#pragma once

#include "device/cuda/device_batch.h"
#include "device/cuda/elementwise.h"
#include "device/cuda/fixed_rows.h"

namespace nibble::cuda {

// Which kernels run. kAuto picks by card, types and lengths; the others are for tests and
// benchmarks, where they apply: kPlain is the one for every shape and type, kLanes is without
// tensor cores, over a bf16 cache, kSmall is what GPUs before sm_80 take, kQuads the same with
// sm_70's instructions.
enum class AttentionForm : uint8_t { kAuto, kPlain, kLanes, kSmall, kQuads };

struct AttentionLaunch {
  const void* q;  // [num_tokens, num_heads, head_dim] of type
  void* out;
  const void* k_cache;  // [num_blocks, block_size, num_kv_heads, head_dim] of cache_type
  const void* v_cache;
  Scalar type;
  Scalar cache_type;
  int32_t num_heads;
  int32_t num_kv_heads;
  int32_t head_dim;  // at most 256
  float softmax_scale;
  AttentionForm form = AttentionForm::kAuto;
  // Like out: out *= sigmoid(gate) follows, and `fixed`, if it has digits, is left for the product
  // after that. Both may be done here.
  const void* gate = nullptr;
  FixedRows fixed = {};
};
enum class AttentionEnd : uint8_t { kAttended, kGated, kGatedAndFixed };
// Splits long contexts as far as workspace.scratch has room for the parts
// (attention_scratch_bytes() is enough for every step). Returns what has been done.
AttentionEnd launch_attention(const AttentionLaunch& attention, const DeviceBatch& batch,
                              const Workspace& workspace, cudaStream_t stream);

size_t attention_scratch_bytes(int32_t head_dim, int32_t num_sms);

struct AttentionInputsLaunch {
  const void* q_and_gate;  // [num_tokens, num_heads, 2, head_dim], or null: q holds the queries
  void* q;                 // [num_tokens, num_heads, head_dim]
  void* gate;              // the same
  const void* k;           // [num_tokens, num_kv_heads, head_dim]
  const void* v;
  const void* q_norm;  // [head_dim], or null
  const void* k_norm;
  void* k_cache;  // as in AttentionLaunch
  void* v_cache;
  Scalar type;
  Scalar norm_type;
  Scalar cache_type;
  int32_t num_heads;
  int32_t num_kv_heads;
  int32_t head_dim;  // at most 256
  float norm_eps;
  float norm_weight_offset;
  RopeLaunch rope;  // without x and its sizes
};
void launch_attention_inputs(const AttentionInputsLaunch& inputs, const DeviceBatch& batch,
                             const Workspace& workspace, cudaStream_t stream);

}  // namespace nibble::cuda
