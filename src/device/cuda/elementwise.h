// Launchers of copies, activations, norms, rotary embedding and the cache write. Contracts:
// device/ops.h; here only pointers, counts of elements and strides. Zero rows launch nothing.
#pragma once

#include <cuda_runtime.h>

#include "device/cuda/fixed_rows.h"
#include "device/cuda/scalar.h"
#include "device/cuda/workspace.h"

namespace nibble::cuda {

// out[r] = table[rows[r]], rows of n elements.
struct GatherLaunch {
  const void* table;
  Scalar table_type;
  const int32_t* rows;  // device
  void* out;
  Scalar out_type;
  int64_t num_rows;
  int64_t n;
};
void launch_gather(const GatherLaunch& args, cudaStream_t stream);

// Rows of `width` bytes from one pitch to another: split_pairs and slice_columns.
struct CopyRowsLaunch {
  const void* from;
  void* to;
  int64_t num_rows;
  int64_t width_bytes;
  int64_t from_pitch_bytes;
  int64_t to_pitch_bytes;
};
void launch_copy_rows(const CopyRowsLaunch& args, cudaStream_t stream);

// One binary operation over `count` elements of one type.
enum class Binary { kAdd, kSigmoidMul, kSiluMul };
struct BinaryLaunch {
  Binary operation;
  const void* x;  // kSiluMul: the gate
  const void* y;  // kSigmoidMul: the gate, one element per `per_y` elements of x
  void* out;
  Scalar type;
  int64_t count;
  int64_t per_y = 1;
  FixedRows fixed = {};  // with digits: out goes there as well
};
void launch_binary(const BinaryLaunch& args, const Workspace& workspace, cudaStream_t stream);

// out = x * rsqrt(mean(x^2) + eps) * (weight + weight_offset), or with `gate` the gated norm; with
// `addend` x += addend comes first.
struct NormLaunch {
  const void* x;
  const void* gate;  // null: the plain norm
  const void* weight;
  void* out;
  Scalar type;
  Scalar weight_type;
  int64_t num_rows;
  int64_t n;
  float eps;
  float weight_offset;
  const void* addend = nullptr;  // like x, which is then written
  FixedRows fixed = {};          // with digits: out goes there as well
};
void launch_norm(const NormLaunch& args, const Workspace& workspace, cudaStream_t stream);

// The frequencies travel by value, so that a captured graph keeps them.
struct RopeLaunch {
  static constexpr int kMaxFrequencies = 128;
  void* x;
  Scalar type;
  const int32_t* positions;  // device, [3, num_tokens]
  int64_t num_tokens;
  int64_t num_heads;
  int64_t head_dim;
  int32_t half;  // rotary_dim / 2
  int32_t mrope_section[3];
  float attention_scaling;
  float inv_freq[kMaxFrequencies];
};
void launch_rope(const RopeLaunch& args, cudaStream_t stream);

struct KvAppendLaunch {
  const void* k;
  const void* v;
  Scalar type;
  void* cache_k;
  void* cache_v;
  Scalar cache_type;
  int64_t row;  // num_kv_heads * head_dim
  int32_t num_tokens;
  int32_t num_seqs;
  const int32_t* query_start;  // device, as in RaggedBatch
  const int32_t* context_len;
  const int32_t* block_table;
  int32_t max_blocks;
  int32_t block_size;
};
void launch_kv_append(const KvAppendLaunch& args, cudaStream_t stream);

}  // namespace nibble::cuda
