// Paged attention, and the writes into its cache.
#include <algorithm>
#include <cmath>

#include "device/ref/float_types.h"
#include "device/ref/ref_ops.h"

namespace nibble::ref {
namespace {

// Row of the cache, counted in tokens, that holds position `position` of sequence `s`.
int64_t cache_row(const RaggedBatch& batch, int32_t s, int32_t position) {
  const int32_t block =
      batch.block_table[static_cast<int64_t>(s) * batch.max_blocks + position / batch.block_size];
  return static_cast<int64_t>(block) * batch.block_size + position % batch.block_size;
}

}  // namespace

void RefOps::kv_append(const Tensor& k, const Tensor& v, const RaggedBatch& batch,
                       const KvCache& cache) {
  if (batch.num_tokens == 0) return;
  const int64_t row = k.num_elements() / k.shape[0];  // num_kv_heads * head_dim
  with_float_type(k.dtype, [&]<class T>(T) {
    with_kv_type(cache.format.dtype, [&]<class C>(C) {
      for (int32_t s = 0; s < batch.num_seqs; ++s) {
        for (int32_t t = batch.query_start[s]; t < batch.query_start[s + 1]; ++t) {
          const int32_t position = batch.context_len[s] + t - batch.query_start[s];
          const int64_t to = cache_row(batch, s, position) * row;
          for (int64_t i = 0; i < row; ++i) {
            cache.k.as<C>()[to + i] = C(static_cast<float>(k.as<const T>()[t * row + i]));
            cache.v.as<C>()[to + i] = C(static_cast<float>(v.as<const T>()[t * row + i]));
          }
        }
      }
    });
  });
}

void RefOps::attention(const AttentionArgs& args, const RaggedBatch& batch) {
  if (batch.num_tokens == 0) return;
  const int64_t num_heads = args.q.shape[1];
  const int64_t head_dim = args.q.shape[2];
  const int64_t heads_per_kv = num_heads / args.num_kv_heads;
  const int64_t row = args.num_kv_heads * head_dim;
  thread_local std::vector<float> scores;
  thread_local std::vector<float> sum;
  sum.resize(static_cast<size_t>(head_dim));
  with_float_type(args.q.dtype, [&]<class T>(T) {
    with_kv_type(args.cache.format.dtype, [&]<class C>(C) {
      const C* keys = args.cache.k.as<const C>();
      const C* values = args.cache.v.as<const C>();
      for (int32_t s = 0; s < batch.num_seqs; ++s) {
        for (int32_t t = batch.query_start[s]; t < batch.query_start[s + 1]; ++t) {
          const int32_t num_visible = batch.context_len[s] + t - batch.query_start[s] + 1;
          scores.resize(static_cast<size_t>(num_visible));
          for (int64_t h = 0; h < num_heads; ++h) {
            const T* q = args.q.as<const T>() + (t * num_heads + h) * head_dim;
            const int64_t head_offset = h / heads_per_kv * head_dim;
            float largest = -INFINITY;
            for (int32_t p = 0; p < num_visible; ++p) {
              const C* key = keys + cache_row(batch, s, p) * row + head_offset;
              float score = 0;
              for (int64_t i = 0; i < head_dim; ++i)
                score += static_cast<float>(q[i]) * static_cast<float>(key[i]);
              scores[static_cast<size_t>(p)] = score * args.softmax_scale;
              largest = std::max(largest, scores[static_cast<size_t>(p)]);
            }
            double total = 0;
            for (float& score : scores) {
              score = std::exp(score - largest);
              total += score;
            }
            std::ranges::fill(sum, 0.0f);
            for (int32_t p = 0; p < num_visible; ++p) {
              const C* value = values + cache_row(batch, s, p) * row + head_offset;
              const auto weight = static_cast<float>(scores[static_cast<size_t>(p)] / total);
              for (int64_t i = 0; i < head_dim; ++i)
                sum[static_cast<size_t>(i)] += weight * static_cast<float>(value[i]);
            }
            T* out = args.out.as<T>() + (t * num_heads + h) * head_dim;
            for (int64_t i = 0; i < head_dim; ++i) out[i] = T(sum[static_cast<size_t>(i)]);
          }
        }
      }
    });
  });
}

}  // namespace nibble::ref
