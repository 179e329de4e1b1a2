// Paged attention for f32 activations: one task per (sequence token tile, kv head).
//
// A tile is up to kTileTokens new tokens with all query heads of one kv head, so each key and value
// is read once per tile instead of once per query head and token:
//
//   rows = tokens x heads_per_kv      scores [rows, positions] in a per-thread buffer
//
// Per row: dot products with every visible key, a softmax over the whole row (max, exp, sum), then
// the weighted sum of values in order of position. Nothing depends on where the tile begins, so
// prefill in any chunks and decode give the same bits.
//
// Keys and values may be stored in F32, F16, BF16 or an 8-bit float: each is widened to f32,
// exactly, once per tile and position, and the arithmetic is the same.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "device/cpu/attention.cc"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "device/cpu/cpu_ops.h"
#include "device/cpu/vectors-inl.h"
#include "tensor/float8.h"

// Shared by every target: foreach_target.h compiles this file once a target.
#ifndef NIBBLE_DEVICE_CPU_ATTENTION_TILE
#define NIBBLE_DEVICE_CPU_ATTENTION_TILE
namespace nibble::cpu {
struct AttentionTile {
  const float* q;  // first token's row of all heads
  float* out;
  int64_t q_stride;    // floats between tokens: num_heads * head_dim
  int64_t head_begin;  // first query head of this kv head
  int64_t heads;       // query heads per kv head
  int64_t head_dim;
  int32_t tokens;          // in this tile
  int32_t first_position;  // absolute, of the first token
  float scale;
  const std::byte* keys;  // of this kv head
  const std::byte* values;
  DType kv_dtype;
  int64_t row_bytes;      // between positions: num_kv_heads * head_dim elements
  const int32_t* blocks;  // block table of the sequence
  int32_t block_size;
};

}  // namespace nibble::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace nibble::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Row `row` (of head_dim stored elements) as floats: in place when it is F32, else in `widened`.
const float* widen(const std::byte* row, DType dtype, int64_t n, float* widened) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  switch (dtype) {
    case DType::kF32: return reinterpret_cast<const float*>(row);
    case DType::kF16: {
      const auto* from = reinterpret_cast<const Float16*>(row);
      const hn::Rebind<hwy::float16_t, decltype(d)> half;
      for (; i + lanes <= n; i += lanes)
        hn::StoreU(
            hn::PromoteTo(d, hn::LoadU(half, reinterpret_cast<const hwy::float16_t*>(from + i))), d,
            widened + i);
      for (; i < n; ++i) widened[i] = from[i];
      return widened;
    }
    case DType::kBF16: {
      const auto* from = reinterpret_cast<const BFloat16*>(row);
      const hn::Rebind<hwy::bfloat16_t, decltype(d)> half;
      for (; i + lanes <= n; i += lanes)
        hn::StoreU(
            hn::PromoteTo(d, hn::LoadU(half, reinterpret_cast<const hwy::bfloat16_t*>(from + i))),
            d, widened + i);
      for (; i < n; ++i) widened[i] = from[i];
      return widened;
    }
    default: {  // 256 values: a table in L1 serves both formats, and every code exactly
      const float* table =
          dtype == DType::kF8E5M2 ? Float8E5M2::kValues.data() : Float8E4M3::kValues.data();
      const auto* from = reinterpret_cast<const uint8_t*>(row);
      const hn::Rebind<uint8_t, decltype(d)> bytes;
      const hn::RebindToSigned<decltype(d)> index;
      for (; i + lanes <= n; i += lanes)
        hn::StoreU(hn::GatherIndex(d, table, hn::PromoteTo(index, hn::LoadU(bytes, from + i))), d,
                   widened + i);
      for (; i < n; ++i) widened[i] = table[from[i]];
      return widened;
    }
  }
}

// `widened` holds one row of head_dim floats.
void attend_tile(const AttentionTile& tile, float* scores, float* widened) {
  const int32_t num_positions = tile.first_position + tile.tokens;
  const int64_t num_rows = tile.tokens * tile.heads;
  const auto query = [&](int64_t row) {
    return row / tile.heads * tile.q_stride + (tile.head_begin + row % tile.heads) * tile.head_dim;
  };
  const auto cache_row = [&](int32_t position) {
    return (static_cast<int64_t>(tile.blocks[position / tile.block_size]) * tile.block_size +
            position % tile.block_size) *
           tile.row_bytes;
  };
  for (int32_t p = 0; p < num_positions; ++p) {
    const float* key = widen(tile.keys + cache_row(p), tile.kv_dtype, tile.head_dim, widened);
    const int64_t first_row = std::max(0, p - tile.first_position) * tile.heads;
    for (int64_t row = first_row; row < num_rows; ++row)
      scores[row * num_positions + p] = dot(tile.q + query(row), key, tile.head_dim) * tile.scale;
  }
  for (int64_t row = 0; row < num_rows; ++row) {
    const auto visible = tile.first_position + static_cast<int32_t>(row / tile.heads) + 1;
    float* line = scores + row * num_positions;
    const float largest = *std::max_element(line, line + visible);
    double total = 0;
    for (int32_t p = 0; p < visible; ++p) {
      line[p] = std::exp(line[p] - largest);
      total += line[p];
    }
    const auto inverse = static_cast<float>(1.0 / total);
    for (int32_t p = 0; p < visible; ++p) line[p] *= inverse;
    std::fill_n(tile.out + query(row), tile.head_dim, 0.0f);
  }
  for (int32_t p = 0; p < num_positions; ++p) {
    const float* value = widen(tile.values + cache_row(p), tile.kv_dtype, tile.head_dim, widened);
    const int64_t first_row = std::max(0, p - tile.first_position) * tile.heads;
    for (int64_t row = first_row; row < num_rows; ++row)
      axpy(scores[row * num_positions + p], value, tile.head_dim, tile.out + query(row));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble::cpu {

HWY_EXPORT(attend_tile);

namespace {
constexpr int32_t kTileTokens = 8;
constexpr int64_t kMinParallelWork = 1 << 18;  // multiply-adds
}  // namespace

// Scores a thread has room for from its first tile on, so that short contexts never grow them.
constexpr size_t kMinScores = size_t{1} << 16;

size_t CpuOps::attention_scratch_bytes(int32_t num_heads_per_kv_head, int32_t head_dim,
                                       int32_t max_context) const {
  const auto scores = std::max(kMinScores, static_cast<size_t>(kTileTokens) *
                                               static_cast<size_t>(num_heads_per_kv_head) *
                                               static_cast<size_t>(max_context));
  return static_cast<size_t>(pool_.num_threads()) * sizeof(float) *
         (scores + static_cast<size_t>(head_dim));
}

void CpuOps::attention(const AttentionArgs& args, const RaggedBatch& batch) {
  if (args.q.dtype != DType::kF32) {
    RefOps::attention(args, batch);
    return;
  }
  const int64_t num_heads = args.q.shape[1];
  const int64_t head_dim = args.q.shape[2];
  const int64_t heads = num_heads / args.num_kv_heads;
  for (int32_t s = 0; s < batch.num_seqs; ++s) {
    const int32_t begin = batch.query_start[s];
    const int32_t count = batch.query_start[s + 1] - begin;
    const int32_t num_tiles = (count + kTileTokens - 1) / kTileTokens;
    const auto run = [&](size_t first, size_t last) {
      thread_local std::vector<float> scores;
      thread_local std::vector<float> widened;
      if (widened.size() < static_cast<size_t>(head_dim))
        widened.resize(static_cast<size_t>(head_dim));
      for (size_t task = first; task < last; ++task) {
        const auto kv_head = static_cast<int64_t>(task) % args.num_kv_heads;
        const auto offset =
            static_cast<int32_t>(static_cast<int64_t>(task) / args.num_kv_heads) * kTileTokens;
        AttentionTile tile;
        tile.q_stride = num_heads * head_dim;
        tile.q = args.q.as<const float>() + (begin + offset) * tile.q_stride;
        tile.out = args.out.as<float>() + (begin + offset) * tile.q_stride;
        tile.head_begin = kv_head * heads;
        tile.heads = heads;
        tile.head_dim = head_dim;
        tile.tokens = std::min(kTileTokens, count - offset);
        tile.first_position = batch.context_len[s] + offset;
        tile.scale = args.softmax_scale;
        tile.kv_dtype = args.cache.format.dtype;
        const auto element = static_cast<int64_t>(dtype_size(tile.kv_dtype));
        tile.keys = static_cast<const std::byte*>(args.cache.k.data) + kv_head * head_dim * element;
        tile.values =
            static_cast<const std::byte*>(args.cache.v.data) + kv_head * head_dim * element;
        tile.row_bytes = args.num_kv_heads * head_dim * element;
        tile.blocks = batch.block_table + static_cast<int64_t>(s) * batch.max_blocks;
        tile.block_size = batch.block_size;
        const auto needed = static_cast<size_t>(tile.tokens * heads) *
                            static_cast<size_t>(tile.first_position + tile.tokens);
        if (scores.size() < needed) scores.resize(std::max(needed, kMinScores));
        HWY_DYNAMIC_DISPATCH(attend_tile)(tile, scores.data(), widened.data());
      }
    };
    const auto num_tasks = static_cast<size_t>(num_tiles * args.num_kv_heads);
    const int64_t work = int64_t{2} * count * num_heads * head_dim * (batch.context_len[s] + count);
    if (work < kMinParallelWork) {
      run(0, num_tasks);
    } else {
      pool_.parallel_for(num_tasks, 1, run);
    }
  }
}

}  // namespace nibble::cpu
#endif  // HWY_ONCE
