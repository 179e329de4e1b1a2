// One function per op: the contract of ops.h as checks.
#include "device/wrap/checked_ops.h"

#include <algorithm>
#include <cmath>

namespace nibble {
namespace {

// Checks on behalf of one call of `op`; every failure aborts and names it.
class Call {
 public:
  explicit Call(const char* op) : op_(op) {}

  void shape(const char* name, const Tensor& tensor, const Shape& expected) const {
    NB_CHECK(tensor.shape == expected, "%s: %s is %s, expected %s", op_, name,
             tensor.shape.to_string().c_str(), expected.to_string().c_str());
    NB_CHECK(tensor.num_elements() == 0 || !tensor.empty(), "%s: %s has no memory", op_, name);
  }
  void rank(const char* name, const Tensor& tensor, int expected) const {
    NB_CHECK(tensor.shape.rank() == expected, "%s: %s is %s, expected rank %d", op_, name,
             tensor.shape.to_string().c_str(), expected);
  }
  void dtype(const char* name, const Tensor& tensor, DType expected) const {
    NB_CHECK(tensor.dtype == expected, "%s: %s is %s, expected %s", op_, name,
             dtype_name(tensor.dtype).data(), dtype_name(expected).data());
  }
  // F32, BF16 or F16.
  void activation(const char* name, const Tensor& tensor) const {
    NB_CHECK(
        tensor.dtype == DType::kF32 || tensor.dtype == DType::kBF16 || tensor.dtype == DType::kF16,
        "%s: %s is %s, expected F32, BF16 or F16", op_, name, dtype_name(tensor.dtype).data());
  }
  void in_range(const char* name, int64_t value, int64_t end) const {
    NB_CHECK(0 <= value && value < end, "%s: %s is %lld, expected 0 to %lld", op_, name,
             static_cast<long long>(value), static_cast<long long>(end - 1));
  }
  void that(bool holds, const char* law) const { NB_CHECK(holds, "%s: %s", op_, law); }

  void finite(const char* name, const Tensor& tensor) const {
    switch (tensor.dtype) {
      case DType::kF32: return finite_values<float>(name, tensor);
      case DType::kBF16: return finite_values<BFloat16>(name, tensor);
      case DType::kF16: return finite_values<Float16>(name, tensor);
      default: return;
    }
  }

  void batch(const RaggedBatch& batch, int64_t num_tokens) const {
    that(batch.num_tokens == num_tokens, "batch.num_tokens is not the number of rows");
    if (batch.num_seqs == 0) return that(num_tokens == 0, "tokens without a sequence");
    that(batch.query_start[0] == 0, "query_start does not begin at 0");
    for (int32_t s = 0; s < batch.num_seqs; ++s) {
      that(batch.query_start[s] <= batch.query_start[s + 1], "query_start falls");
      that(batch.context_len[s] >= 0, "context_len is negative");
    }
    that(batch.query_start[batch.num_seqs] == num_tokens, "query_start does not end at num_tokens");
  }
  void blocks(const RaggedBatch& batch, const KvCache& cache) const {
    const int64_t num_blocks = cache.k.shape[0];
    for (int32_t s = 0; s < batch.num_seqs; ++s) {
      const int32_t length = batch.context_len[s] + batch.query_start[s + 1] - batch.query_start[s];
      that(length <= batch.max_blocks * int64_t{1} * batch.block_size,
           "a sequence is longer than its block table");
      for (int32_t b = 0; b * batch.block_size < length; ++b)
        in_range("block", batch.block_table[int64_t{s} * batch.max_blocks + b], num_blocks);
    }
  }
  void slots(const RaggedBatch& batch, int64_t num_slots) const {
    for (int32_t s = 0; s < batch.num_seqs; ++s) {
      in_range("state_slot", batch.state_slot[s], num_slots);
      that(std::find(batch.state_slot, batch.state_slot + s, batch.state_slot[s]) ==
               batch.state_slot + s,
           "two sequences share a state slot");
    }
  }
  void cache(const KvCache& cache, int32_t block_size, int64_t num_kv_heads,
             int64_t head_dim) const {
    const Shape expected{cache.k.shape[0], block_size, num_kv_heads, head_dim};
    shape("keys", cache.k, expected);
    shape("values", cache.v, expected);
    dtype("keys", cache.k, cache.format.dtype);
    dtype("values", cache.v, cache.format.dtype);
  }
  void weight(const LinearWeight& weight) const {
    if (weight.compacted()) return;  // a GPU's own layout
    if (!weight.quantized())
      return shape("weight", weight.dense, {weight.out_features, weight.in_features});
    // The layout of `packed` belongs to the backend; scales and zero points are common to all.
    rank("scale", weight.scale, 2);
    const Shape groups{weight.out_features, weight.scale.shape[1]};
    shape("scale", weight.scale, groups);
    that(weight.in_features % groups[1] == 0, "groups do not divide the input");
    if (!weight.zero_point.empty()) shape("zero_point", weight.zero_point, groups);
    finite("scale", weight.scale);
  }

 private:
  template <class T>
  void finite_values(const char* name, const Tensor& tensor) const {
    if (tensor.empty()) return;
    const int64_t count = tensor.num_elements();
    for (int64_t i = 0; i < count; ++i) {
      const float value = tensor.as<const T>()[i];
      NB_CHECK(std::isfinite(value), "%s: %s[%lld] of %s is %f", op_, name,
               static_cast<long long>(i), tensor.shape.to_string().c_str(),
               static_cast<double>(value));
    }
  }

  const char* op_;
};

}  // namespace

void CheckedOps::embed(const Tensor& table, const int32_t* ids, const Tensor& out) {
  const Call call("embed");
  call.rank("table", table, 2);
  call.rank("out", out, 2);
  call.shape("out", out, {out.shape[0], table.shape[1]});
  for (int64_t t = 0; t < out.shape[0]; ++t) call.in_range("token id", ids[t], table.shape[0]);
  ForwardingOps::embed(table, ids, out);
  call.finite("out", out);
}

void CheckedOps::gather_rows(const Tensor& x, const int32_t* rows, const Tensor& out) {
  const Call call("gather_rows");
  call.rank("x", x, 2);
  call.shape("out", out, {out.shape[0], x.shape[1]});
  call.dtype("out", out, x.dtype);
  for (int64_t i = 0; i < out.shape[0]; ++i) call.in_range("row", rows[i], x.shape[0]);
  ForwardingOps::gather_rows(x, rows, out);
}

void CheckedOps::rms_norm(const Tensor& x, const Tensor& weight, float eps, float weight_offset,
                          const Tensor& out) {
  const Call call("rms_norm");
  call.activation("x", x);
  call.shape("weight", weight, {x.shape[-1]});
  call.shape("out", out, x.shape);
  call.dtype("out", out, x.dtype);
  ForwardingOps::rms_norm(x, weight, eps, weight_offset, out);
  call.finite("out", out);
}

void CheckedOps::gated_rms_norm(const Tensor& x, const Tensor& gate, const Tensor& weight,
                                float eps, const Tensor& out) {
  const Call call("gated_rms_norm");
  call.activation("x", x);
  call.shape("weight", weight, {x.shape[-1]});
  call.shape("gate", gate, x.shape);
  call.dtype("gate", gate, x.dtype);
  call.shape("out", out, x.shape);
  call.dtype("out", out, x.dtype);
  ForwardingOps::gated_rms_norm(x, gate, weight, eps, out);
  call.finite("out", out);
}

void CheckedOps::linear(const Tensor& x, const LinearWeight& weight, const Tensor& out) {
  const Call call("linear");
  call.activation("x", x);
  call.activation("out", out);
  call.that(out.dtype == x.dtype || out.dtype == DType::kF32, "out has neither x's dtype nor F32");
  call.weight(weight);
  call.that(weight.in_features > 0 && x.num_elements() % weight.in_features == 0,
            "x is not rows of in_features");
  call.that(x.num_elements() / weight.in_features * weight.out_features == out.num_elements(),
            "out is not one row of out_features per row of x");
  call.that(x.data != out.data || x.num_elements() == 0, "out is x");
  ForwardingOps::linear(x, weight, out);
  call.finite("out", out);
}

void CheckedOps::add(const Tensor& x, const Tensor& y) {
  const Call call("add");
  call.activation("x", x);
  call.shape("y", y, x.shape);
  call.dtype("y", y, x.dtype);
  ForwardingOps::add(x, y);
  call.finite("x", x);
}

void CheckedOps::split_pairs(const Tensor& x, const Tensor& first, const Tensor& second) {
  const Call call("split_pairs");
  call.rank("first", first, 3);
  call.shape("second", second, first.shape);
  call.that(x.num_elements() == 2 * first.num_elements(), "x is not twice the size of a part");
  call.dtype("first", first, x.dtype);
  call.dtype("second", second, x.dtype);
  ForwardingOps::split_pairs(x, first, second);
}

void CheckedOps::slice_columns(const Tensor& x, int64_t begin, const Tensor& out) {
  const Call call("slice_columns");
  call.rank("x", x, 2);
  call.dtype("out", out, x.dtype);
  call.that(out.shape[0] == x.shape[0], "x and out differ in rows");
  if (x.shape[0] > 0)
    call.that(begin >= 0 && begin + out.num_elements() / x.shape[0] <= x.shape[1],
              "columns past the end of x");
  ForwardingOps::slice_columns(x, begin, out);
}

void CheckedOps::sigmoid_mul(const Tensor& x, const Tensor& gate) {
  const Call call("sigmoid_mul");
  call.activation("x", x);
  call.dtype("gate", gate, x.dtype);
  if (!(gate.shape == Shape{x.shape[0], 1})) call.shape("gate", gate, x.shape);
  ForwardingOps::sigmoid_mul(x, gate);
  call.finite("x", x);
}

void CheckedOps::silu_mul(const Tensor& gate, const Tensor& up, const Tensor& out) {
  const Call call("silu_mul");
  call.activation("gate", gate);
  call.shape("up", up, gate.shape);
  call.shape("out", out, gate.shape);
  call.dtype("up", up, gate.dtype);
  call.dtype("out", out, gate.dtype);
  ForwardingOps::silu_mul(gate, up, out);
  call.finite("out", out);
}

void CheckedOps::rope(const RopeArgs& args) {
  const Call call("rope");
  call.activation("x", args.x);
  call.rank("x", args.x, 3);
  call.that(args.rotary_dim > 0 && args.rotary_dim % 2 == 0 && args.rotary_dim <= args.x.shape[2],
            "rotary_dim is not an even part of head_dim");
  for (int64_t i = 0; i < 3 * args.x.shape[0]; ++i)
    call.that(args.positions[i] >= 0, "a position is negative");
  ForwardingOps::rope(args);
  call.finite("x", args.x);
}

void CheckedOps::kv_append(const Tensor& k, const Tensor& v, const RaggedBatch& batch,
                           const KvCache& cache) {
  const Call call("kv_append");
  call.rank("k", k, 3);
  call.activation("k", k);
  call.shape("v", v, k.shape);
  call.dtype("v", v, k.dtype);
  call.batch(batch, k.shape[0]);
  if (batch.num_tokens > 0) call.cache(cache, batch.block_size, k.shape[1], k.shape[2]);
  call.blocks(batch, cache);
  call.finite("k", k);
  call.finite("v", v);
  ForwardingOps::kv_append(k, v, batch, cache);
}

void CheckedOps::attention(const AttentionArgs& args, const RaggedBatch& batch) {
  const Call call("attention");
  call.rank("q", args.q, 3);
  call.activation("q", args.q);
  call.shape("out", args.out, args.q.shape);
  call.dtype("out", args.out, args.q.dtype);
  call.that(args.num_kv_heads > 0 && args.q.shape[1] % args.num_kv_heads == 0,
            "num_kv_heads does not divide num_heads");
  call.batch(batch, args.q.shape[0]);
  if (batch.num_tokens > 0)
    call.cache(args.cache, batch.block_size, args.num_kv_heads, args.q.shape[2]);
  call.blocks(batch, args.cache);
  ForwardingOps::attention(args, batch);
  call.finite("out", args.out);
}

void CheckedOps::causal_conv1d(const ConvArgs& args, const RaggedBatch& batch) {
  const Call call("causal_conv1d");
  call.rank("x", args.x, 2);
  call.activation("x", args.x);
  call.rank("weight", args.weight, 2);
  call.shape("weight", args.weight, {args.x.shape[1], args.weight.shape[1]});
  call.shape("out", args.out, args.x.shape);
  call.dtype("out", args.out, args.x.dtype);
  call.shape("state", args.state, {args.state.shape[0], args.x.shape[1], args.weight.shape[1] - 1});
  call.dtype("state", args.state, args.x.dtype);
  call.batch(batch, args.x.shape[0]);
  call.slots(batch, args.state.shape[0]);
  ForwardingOps::causal_conv1d(args, batch);
  call.finite("out", args.out);
}

void CheckedOps::delta_gates(const Tensor& a, const Tensor& b, const Tensor& a_log,
                             const Tensor& dt_bias, const Tensor& log_decay, const Tensor& beta) {
  const Call call("delta_gates");
  call.rank("a", a, 2);
  call.activation("a", a);
  call.shape("b", b, a.shape);
  call.dtype("b", b, a.dtype);
  call.shape("a_log", a_log, {a.shape[1]});
  call.shape("dt_bias", dt_bias, {a.shape[1]});
  for (const Tensor& out : {log_decay, beta}) {
    call.shape("out", out, a.shape);
    call.dtype("out", out, DType::kF32);
  }
  ForwardingOps::delta_gates(a, b, a_log, dt_bias, log_decay, beta);
  call.finite("log_decay", log_decay);
  call.finite("beta", beta);
}

void CheckedOps::gated_delta_net(const GatedDeltaNetArgs& args, const RaggedBatch& batch) {
  const Call call("gated_delta_net");
  call.rank("q", args.q, 3);
  call.rank("v", args.v, 3);
  call.activation("q", args.q);
  call.shape("k", args.k, args.q.shape);
  call.dtype("k", args.k, args.q.dtype);
  const int64_t num_tokens = args.q.shape[0];
  const int64_t num_v_heads = args.v.shape[1];
  call.that(num_v_heads % args.q.shape[1] == 0, "num_k_heads does not divide num_v_heads");
  call.shape("v", args.v, {num_tokens, num_v_heads, args.v.shape[2]});
  call.dtype("v", args.v, args.q.dtype);
  call.shape("out", args.out, args.v.shape);
  call.dtype("out", args.out, args.q.dtype);
  call.shape("log_decay", args.log_decay, {num_tokens, num_v_heads});
  call.dtype("log_decay", args.log_decay, DType::kF32);
  call.shape("beta", args.beta, {num_tokens, num_v_heads});
  call.dtype("beta", args.beta, DType::kF32);
  call.shape("state", args.state,
             {args.state.shape[0], num_v_heads, args.q.shape[2], args.v.shape[2]});
  call.dtype("state", args.state, DType::kF32);
  call.batch(batch, num_tokens);
  call.slots(batch, args.state.shape[0]);
  for (int64_t i = 0; i < args.log_decay.num_elements(); ++i)
    call.that(args.log_decay.as<const float>()[i] <= 0.0f, "log_decay is positive");
  ForwardingOps::gated_delta_net(args, batch);
  call.finite("out", args.out);
  for (int32_t s = 0; s < batch.num_seqs; ++s)
    call.finite("state", args.state.rows(batch.state_slot[s], batch.state_slot[s] + 1));
}

void CheckedOps::moe_route(const Tensor& logits, int32_t top_k, const Tensor& experts,
                           const Tensor& weights) {
  const Call call("moe_route");
  call.rank("logits", logits, 2);
  call.activation("logits", logits);
  call.that(0 < top_k && top_k <= logits.shape[1], "top_k is not 1 to num_experts");
  call.shape("experts", experts, {logits.shape[0], top_k});
  call.dtype("experts", experts, DType::kI32);
  call.shape("weights", weights, {logits.shape[0], top_k});
  call.dtype("weights", weights, DType::kF32);
  ForwardingOps::moe_route(logits, top_k, experts, weights);
  for (int64_t i = 0; i < experts.num_elements(); ++i)
    call.in_range("expert", experts.as<const int32_t>()[i], logits.shape[1]);
  call.finite("weights", weights);
}

void CheckedOps::moe_mlp(const Tensor& x, const Tensor& experts, const Tensor& weights,
                         std::span<const LinearWeight> gate, std::span<const LinearWeight> up,
                         std::span<const LinearWeight> down, const Tensor& scratch,
                         const Tensor& out) {
  const Call call("moe_mlp");
  call.rank("x", x, 2);
  call.activation("x", x);
  call.rank("experts", experts, 2);
  call.dtype("experts", experts, DType::kI32);
  call.shape("experts", experts, {x.shape[0], experts.shape[1]});
  call.shape("weights", weights, experts.shape);
  call.dtype("weights", weights, DType::kF32);
  call.shape("out", out, x.shape);
  call.dtype("out", out, x.dtype);
  call.that(x.data != out.data || x.num_elements() == 0, "out is x");
  call.dtype("scratch", scratch, DType::kF32);
  for (int64_t i = 0; i < experts.num_elements(); ++i) {
    const auto e = static_cast<size_t>(experts.as<const int32_t>()[i]);
    call.that(e < gate.size() && e < up.size() && e < down.size(), "no such expert");
    for (const LinearWeight* weight : {&gate[e], &up[e], &down[e]}) call.weight(*weight);
    call.that(gate[e].in_features == x.shape[1] && up[e].in_features == x.shape[1] &&
                  down[e].out_features == x.shape[1],
              "an expert's weights do not fit x");
    call.that(
        gate[e].out_features == up[e].out_features && gate[e].out_features == down[e].in_features,
        "an expert's weights do not fit each other");
    call.shape("scratch", scratch, {3, std::max(x.shape[1], gate[e].out_features)});
  }
  ForwardingOps::moe_mlp(x, experts, weights, gate, up, down, scratch, out);
  call.finite("out", out);
}

void CheckedOps::argmax(const Tensor& logits, const Tensor& ids) {
  const Call call("argmax");
  call.rank("logits", logits, 2);
  call.dtype("logits", logits, DType::kF32);
  call.shape("ids", ids, {logits.shape[0]});
  call.dtype("ids", ids, DType::kI32);
  ForwardingOps::argmax(logits, ids);
}

}  // namespace nibble
