// Attention whose context was divided among blocks: the parts are weighed and joined, which also
// does what follows attention, the gate and fixed point for the next product.
//
// All weights first, then one sum without a chain of dependent loads (with the chain, 32768 tokens
// took 71 us a layer on an H100, now 41). Launching the merge while the parts still run
// (programmatic dependent launch) lost: 53 us, its waiting blocks crowd out those that work. The
// same holds for the recurrent delta rule.
#include <algorithm>

#include "device/cuda/attention_kernels.h"
#include "device/cuda/attention_split.cuh"
#include "device/cuda/fixed_rows.cuh"
#include "device/cuda/overlap.cuh"
#include "device/cuda/ragged.cuh"

namespace nibble::cuda {
namespace {

// Grid (rows, num_kv_heads, items), a thread per dim and, of many parts, per quarter of them:
// reading one part after the other is what takes the time.
constexpr int kMergers = 4;
constexpr int kManySplits = 16;
__global__ void __launch_bounds__(256 * kMergers)
    merge_kernel(AttentionParams params, Tiling tiling, int num_splits, int rows_per_item) {
  __shared__ float weights[kMostSplits];
  __shared__ float sums[kMostSplits];
  __shared__ float shares[kMergers][2][256];  // of value and sum
  let_next_kernel_start();
  const TilePlace place = find_tile(tiling, static_cast<int32_t>(blockIdx.z));
  const AttentionLaunch& args = params.args;
  const int seq = max(place.seq, 0);
  const int32_t seq_begin = params.batch.query_start[seq];
  const int32_t first_token = place.tile * tiling.tile_tokens;
  const int32_t num_tokens =
      min(tiling.tile_tokens, params.batch.query_start[seq + 1] - seq_begin - first_token);
  const int row = static_cast<int>(blockIdx.x);
  const int32_t visible = params.batch.context_len[seq] + first_token + num_tokens;
  wait_for_previous_kernel();
  if (place.seq < 0 || row >= num_tokens * params.group) return;
  const int kv_head = static_cast<int>(blockIdx.y);
  const int dim = static_cast<int>(threadIdx.x);
  const auto merger = static_cast<int>(threadIdx.y);
  const auto mergers = static_cast<int>(blockDim.y);
  const int64_t first =
      (static_cast<int64_t>(blockIdx.z) * args.num_kv_heads + kv_head) * num_splits;
  const int32_t length = split_length(visible, num_splits);
  const int parts = min(num_splits, (visible + length - 1) / length);
  for (int part = merger * static_cast<int>(blockDim.x) + dim; part < parts;
       part += mergers * static_cast<int>(blockDim.x)) {
    const Partial partial =
        partial_of(params.workspace.scratch, first + part, rows_per_item, args.head_dim);
    weights[part] = partial.stats[2 * row];
    sums[part] = partial.stats[2 * row + 1];
  }
  __syncthreads();
  float peak = -INFINITY;  // finite in the end: every token sees itself
#pragma unroll 8
  for (int part = 0; part < parts; ++part) peak = fmaxf(peak, weights[part]);
  float sum = 0;
  float value = 0;
  const float* values =
      partial_of(params.workspace.scratch, first, rows_per_item, args.head_dim).values +
      row * args.head_dim + dim;
  const int64_t stride = static_cast<int64_t>(rows_per_item) * (args.head_dim + 2);
#pragma unroll 8
  for (int part = merger; part < parts; part += mergers) {
    const float weight = exp2f(weights[part] - peak);
    sum += weight * sums[part];
    value += weight * values[part * stride];
  }
  shares[merger][0][dim] = value;
  shares[merger][1][dim] = sum;
  __syncthreads();
  const int64_t token = seq_begin + first_token + row / params.group;
  const int64_t first_dim =
      (token * args.num_heads + kv_head * params.group + row % params.group) * args.head_dim;
  if (merger == 0) {
    for (int other = 1; other < mergers; ++other) {
      value += shares[other][0][dim];
      sum += shares[other][1][dim];
    }
    shares[0][0][dim] = store_attended(args, first_dim + dim, value / sum);
  }
  if (args.gate == nullptr || args.fixed.digits == nullptr) return;
  __syncthreads();
  if (merger != 0 || dim >= args.head_dim / 8) return;
  float x[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = shares[0][0][dim * 8 + i];
  write_fixed(x, static_cast<int>(token), first_dim % args.fixed.in_features / 8 + dim, args.fixed);
}

}  // namespace

int splits_of(const AttentionParams& params, int64_t num_items, int64_t places, int rows_per_item) {
  const int64_t partial_bytes =
      rows_per_item * (params.args.head_dim + 2) * static_cast<int64_t>(sizeof(float));
  const int64_t room = params.workspace.scratch == nullptr
                           ? 1
                           : static_cast<int64_t>(params.workspace.scratch_size) /
                                 (partial_bytes * num_items * params.args.num_kv_heads);
  const int64_t longest = static_cast<int64_t>(params.batch.max_blocks) * params.batch.block_size;
  const int64_t splits =
      std::min({places / num_items, room, (longest + kLeastSplit - 1) / kLeastSplit,
                static_cast<int64_t>(kMostSplits)});
  return static_cast<int>(std::max<int64_t>(splits, 1));
}

AttentionEnd end_splits(const AttentionParams& params, const Tiling& tiling, int64_t num_items,
                        int splits, int rows_per_item, cudaStream_t stream) {
  const AttentionLaunch& args = params.args;
  if (splits > 1) {
    const auto rows =
        static_cast<unsigned>(std::min(rows_per_item, tiling.tile_tokens * params.group));
    launch_overlapped(
        merge_kernel,
        dim3(rows, static_cast<unsigned>(args.num_kv_heads), static_cast<unsigned>(num_items)),
        dim3(static_cast<unsigned>(args.head_dim), splits < kManySplits ? 1 : kMergers), 0, stream,
        params.workspace.compute_capability, params, tiling, splits, rows_per_item);
  }
  if (args.gate == nullptr) return AttentionEnd::kAttended;
  return splits > 1 && args.fixed.digits != nullptr ? AttentionEnd::kGatedAndFixed
                                                    : AttentionEnd::kGated;
}

}  // namespace nibble::cuda
