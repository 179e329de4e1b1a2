// Attention whose context is divided among blocks: which part a block has, where it leaves its
// result for the merge, and how a result is stored.
#pragma once

#include "device/cuda/activation.cuh"
#include "device/cuda/attention_kernels.h"
#include "device/cuda/ragged.cuh"

namespace nibble::cuda {

constexpr int kLeastSplit = 256;  // tokens
constexpr int kSplitUnit = 16;    // of which splits hold a whole number
constexpr int kMostSplits = 128;

// Part of the context that one split covers, the same for all kernels.
struct SplitRange {
  int32_t begin;
  int32_t end;
};
__device__ inline int32_t split_length(int32_t visible, int32_t num_splits) {
  const int32_t length = (visible + num_splits - 1) / num_splits;
  return max(kLeastSplit, (length + kSplitUnit - 1) / kSplitUnit * kSplitUnit);
}
__device__ inline SplitRange split_range(int32_t visible, int32_t num_splits, int32_t split) {
  const int32_t length = split_length(visible, num_splits);
  return {min(visible, split * length), min(visible, (split + 1) * length)};
}

// Where the results of (item, kv head, split) go: rows of [head_dim] floats, then max and sum.
struct Partial {
  float* values;  // [rows, head_dim]
  float* stats;   // [rows, 2]
};
__device__ inline Partial partial_of(void* workspace, int64_t index, int rows, int head_dim) {
  float* base = static_cast<float*>(workspace) + index * rows * (head_dim + 2);
  return {base, base + static_cast<int64_t>(rows) * head_dim};
}

// With the gate, if there is one. Returns what is stored.
template <class T>
__device__ __forceinline__ float store_attended_of(const AttentionLaunch& args, int64_t at,
                                                   float value) {
  T result = Round<T>::of(value);
  if (args.gate != nullptr) result = sigmoid_mul(result, static_cast<const T*>(args.gate)[at]);
  static_cast<T*>(args.out)[at] = result;
  return to_float(result);
}
__device__ __forceinline__ float store_attended(const AttentionLaunch& args, int64_t at,
                                                float value) {
  return args.type == Scalar::kBF16 ? store_attended_of<BFloat>(args, at, value)
                                    : store_attended_of<Half>(args, at, value);
}

// Parts that a context may be divided into, where a part of all items takes `places` blocks at
// most and partial results have `rows_per_item` rows in the scratch memory of the workspace.
int splits_of(const AttentionParams& params, int64_t num_items, int64_t places, int rows_per_item);

// Joins the parts, if there are more than one. Returns what has been done, the kernel before it
// having stored with store_attended() if there is one part.
AttentionEnd end_splits(const AttentionParams& params, const Tiling& tiling, int64_t num_items,
                        int splits, int rows_per_item, cudaStream_t stream);

}  // namespace nibble::cuda
