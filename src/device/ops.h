// The seam: every operation the model needs, as one abstract class. ref/, cpu/ and cuda/ implement
// it; wrap/ holds wrappers around any implementation.
//
// Rules for every op. Tensors are contiguous. Activations (x, q, k, v, out...) share one dtype, the
// activation dtype: F32, or BF16/F16, in which case arithmetic is f32 and each op rounds once where
// it stores. Weights may have any floating dtype. An op allocates nothing, cannot fail (shapes are
// the caller's contract; CheckedOps verifies them), and enqueues on its device's compute stream: on
// the CPU it is done when it returns. Zero tokens or zero sequences are legal and do nothing.
//
// A ragged batch: the new tokens of all sequences of a step, one after the other, sequence s owning
// rows query_start[s] .. query_start[s+1]. Counts of tokens are int32.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <span>

#include "tensor/kv_format.h"
#include "tensor/linear_weight.h"
#include "tensor/tensor.h"

namespace nibble {

struct RaggedBatch {
  int32_t num_tokens = 0;
  int32_t num_seqs = 0;
  const int32_t* query_start = nullptr;  // [num_seqs + 1]
  const int32_t* context_len = nullptr;  // [num_seqs] tokens already cached before this step
  const int32_t* block_table = nullptr;  // [num_seqs, max_blocks]; entries past the end are unused
  int32_t max_blocks = 0;                // per sequence
  int32_t block_size = 0;                // tokens per KV block
  const int32_t* state_slot = nullptr;   // [num_seqs] row of the recurrent and conv states
  const uint8_t* state_is_fresh = nullptr;  // [num_seqs] 1: treat the stored state as zeros
};

// Keys and values of one layer in fixed-size blocks:
// k, v [num_blocks, block_size, num_kv_heads, head_dim] of format.dtype
struct KvCache {
  Tensor k;
  Tensor v;
  KvFormat format;
};

struct RopeArgs {
  Tensor x;                  // [num_tokens, num_heads, head_dim], rotated in place
  const int32_t* positions;  // [3, num_tokens]: time, height, width; text has all three equal
  const float* inv_freq;     // [rotary_dim / 2], at most 128; host memory on every device
  int32_t rotary_dim;        // leading dims that rotate; the rest pass through
  // Frequency i turns by axis 1 if i % 3 == 1 and i < 3 * mrope_section[1], by axis 2 if i % 3 == 2
  // and i < 3 * mrope_section[2], else by axis 0. All zero for one-axis models.
  int32_t mrope_section[3];
  float attention_scaling;  // multiplies cos and sin; 1 except for scaled rope types
};

struct AttentionArgs {
  Tensor q;              // [num_tokens, num_heads, head_dim]
  Tensor out;            // the same
  KvCache cache;         // already holds this step's keys and values
  int32_t num_kv_heads;  // query head h reads kv head h / (num_heads / num_kv_heads)
  float softmax_scale;
};

struct ConvArgs {
  Tensor x;       // [num_tokens, channels]
  Tensor weight;  // [channels, kernel]; the last column multiplies the current token
  Tensor state;   // [num_slots, channels, kernel - 1], the newest raw inputs, oldest first
  Tensor out;     // [num_tokens, channels] = silu(conv(x))
};

struct GatedDeltaNetArgs {
  Tensor q;          // [num_tokens, num_k_heads, head_k_dim]
  Tensor k;          // [num_tokens, num_k_heads, head_k_dim]
  Tensor v;          // [num_tokens, num_v_heads, head_v_dim]
  Tensor log_decay;  // [num_tokens, num_v_heads] F32, <= 0
  Tensor beta;       // [num_tokens, num_v_heads] F32, 0..1
  Tensor state;      // [num_slots, num_v_heads, head_k_dim, head_v_dim] F32
  Tensor out;        // [num_tokens, num_v_heads, head_v_dim]
};

// One of several products of the same input.
struct LinearPart {
  const LinearWeight* weight;
  Tensor out;  // [num_tokens, out_features]
};

// What lies between the projections of a linear-attention layer and its delta rule.
struct DeltaNetInputsArgs {
  ConvArgs conv;     // of channels [q | k | v]; its out is scratch
  Tensor q;          // [num_tokens, num_k_heads, head_k_dim]
  Tensor k;          // the same
  Tensor v;          // [num_tokens, num_v_heads, head_v_dim]
  Tensor a;          // [num_tokens, num_v_heads]
  Tensor b;          // the same
  Tensor a_log;      // [num_v_heads]
  Tensor dt_bias;    // the same
  Tensor log_decay;  // F32 [num_tokens, num_v_heads]
  Tensor beta;       // the same
};

// What lies between the projections of a full-attention layer and its softmax.
struct AttentionInputsArgs {
  Tensor q_and_gate;  // [num_tokens, num_heads, 2, head_dim]; empty: q holds the queries already
  Tensor q;           // [num_tokens, num_heads, head_dim]
  Tensor gate;        // the same; empty like q_and_gate
  Tensor k;           // [num_tokens, num_kv_heads, head_dim]; unspecified afterwards
  Tensor v;           // the same, untouched
  Tensor q_norm;      // [head_dim]; empty: no norm of queries and keys
  Tensor k_norm;
  float norm_eps;
  float norm_weight_offset;
  RopeArgs rope;  // its x is not used
  KvCache cache;
};

class Ops {
 public:
  virtual ~Ops() = default;

  // out[t] = table[ids[t]]. table [vocab_size, hidden]; ids must be in range.
  virtual void embed(const Tensor& table, const int32_t* ids, const Tensor& out) = 0;

  // out[i] = x[rows[i]], rows [num_rows] int32; x [num_tokens, n], out [num_rows, n].
  virtual void gather_rows(const Tensor& x, const int32_t* rows, const Tensor& out) = 0;

  // RMSNorm over the last dimension: f32 throughout, one rounding.
  // out = x * rsqrt(mean(x^2) + eps) * (weight + weight_offset); weight_offset is 1 for the
  // zero-centred norms of Qwen3.5, 0 for ordinary ones. out may be x. weight [n].
  virtual void rms_norm(const Tensor& x, const Tensor& weight, float eps, float weight_offset,
                        const Tensor& out) = 0;

  // The gated norm after the delta rule, per head over the last dimension:
  // out = weight * norm(x) * silu(gate); norm first, gate second. All [num_tokens, heads, n].
  virtual void gated_rms_norm(const Tensor& x, const Tensor& gate, const Tensor& weight, float eps,
                              const Tensor& out) = 0;

  // out = x W'. x [num_tokens, in], out [num_tokens, out_features]. out may have dtype F32 when x
  // is 16-bit (logits).
  virtual void linear(const Tensor& x, const LinearWeight& weight, const Tensor& out) = 0;

  // x += y, elementwise.
  virtual void add(const Tensor& x, const Tensor& y) = 0;

  // x [num_tokens, num_heads, 2, n] -> first, second [num_tokens, num_heads, n]: Qwen3.5's q_proj
  // interleaves query and output gate per head.
  virtual void split_pairs(const Tensor& x, const Tensor& first, const Tensor& second) = 0;

  // Copies columns: x [num_tokens, n] -> out [num_tokens, m] = x[:, begin : begin + m].
  virtual void slice_columns(const Tensor& x, int64_t begin, const Tensor& out) = 0;

  // x *= sigmoid(gate), elementwise; or per row when gate is [num_tokens, 1].
  virtual void sigmoid_mul(const Tensor& x, const Tensor& gate) = 0;

  // out = silu(gate) * up, elementwise. out may be gate.
  virtual void silu_mul(const Tensor& gate, const Tensor& up, const Tensor& out) = 0;

  // Rotary position embedding, half-split pairs (i, i + rotary_dim / 2).
  // Source: Su et al., RoFormer, arXiv:2104.09864; interleaved axes: Qwen3.5 model card.
  virtual void rope(const RopeArgs& args) = 0;

  // Writes this step's keys and values at positions context_len[s].. of each sequence's blocks.
  // k, v [num_tokens, num_kv_heads, head_dim].
  virtual void kv_append(const Tensor& k, const Tensor& v, const RaggedBatch& batch,
                         const KvCache& cache) = 0;

  // Causal softmax attention of each new token over its sequence's cached tokens up to itself.
  // f32 softmax and accumulation.
  virtual void attention(const AttentionArgs& args, const RaggedBatch& batch) = 0;

  // Depthwise causal convolution and SiLU; reads and advances the conv state of each sequence.
  virtual void causal_conv1d(const ConvArgs& args, const RaggedBatch& batch) = 0;

  // log_decay = -exp(a_log) * softplus(a + dt_bias), beta = sigmoid(b). a, b [num_tokens,
  // num_v_heads]; a_log, dt_bias [num_v_heads]; log_decay, beta F32.
  virtual void delta_gates(const Tensor& a, const Tensor& b, const Tensor& a_log,
                           const Tensor& dt_bias, const Tensor& log_decay, const Tensor& beta) = 0;

  // Advances the gated delta rule over a ragged batch; updates each sequence's state in place.
  // q and k are L2-normalised here (eps 1e-6 inside the root, added to the sum), then q is scaled
  // by head_k_dim^-1/2. Value head h reads key head h / (num_v_heads / num_k_heads). Per head and
  // token:
  //   S <- e^g S;  d = beta (v - S' k);  S <- S + k d';  out = S' q
  // One token per sequence takes the recurrent form, more take the chunked form (chunks of 64);
  // the two agree to rounding.
  // Source: Yang, Kautz, Hatamizadeh, "Gated Delta Networks", arXiv:2412.06464.
  virtual void gated_delta_net(const GatedDeltaNetArgs& args, const RaggedBatch& batch) = 0;

  // Router: softmax over experts in f32, top_k largest, weights renormalised to sum 1.
  // logits [num_tokens, num_experts]; experts I32 and weights F32 [num_tokens, top_k], by falling
  // weight. Of NaN logits the experts are any that there are, and weights are NaN.
  virtual void moe_route(const Tensor& logits, int32_t top_k, const Tensor& experts,
                         const Tensor& weights) = 0;

  // out[t] = sum over the token's top_k experts e of weight * down_e(silu(gate_e(x)) * up_e(x)).
  // gate, up, down: a weight of each expert. scratch F32 [3, max(intermediate, hidden)].
  virtual void moe_mlp(const Tensor& x, const Tensor& experts, const Tensor& weights,
                       std::span<const LinearWeight> gate, std::span<const LinearWeight> up,
                       std::span<const LinearWeight> down, const Tensor& scratch,
                       const Tensor& out) = 0;

  // Up to how many tokens moe_mlp() over these experts can be recorded: it then enqueues the same
  // whichever experts are chosen.
  virtual int64_t recordable_moe_tokens(std::span<const LinearWeight> /*gate*/,
                                        std::span<const LinearWeight> /*up*/,
                                        std::span<const LinearWeight> /*down*/) const {
    return std::numeric_limits<int64_t>::max();
  }

  // ids[r] = the lowest index among the largest values of row r, -1 if the row has no value above
  // -infinity (NaN is none). logits [num_rows, vocab_size] F32, ids [num_rows] I32.
  virtual void argmax(const Tensor& logits, const Tensor& ids) = 0;

  // Fused forms. Each is what its body says, value for value; a backend overrides it where fewer
  // launches or fewer passes over memory pay. Wrappers need not: they see the calls of the body.

  virtual void add_rms_norm(const Tensor& x, const Tensor& y, const Tensor& weight, float eps,
                            float weight_offset, const Tensor& out) {
    add(x, y);
    rms_norm(x, weight, eps, weight_offset, out);
  }

  virtual void linear_group(const Tensor& x, std::initializer_list<LinearPart> parts) {
    for (const LinearPart& part : parts) linear(x, *part.weight, part.out);
  }

  virtual void delta_net_inputs(const DeltaNetInputsArgs& args, const RaggedBatch& batch) {
    causal_conv1d(args.conv, batch);
    delta_gates(args.a, args.b, args.a_log, args.dt_bias, args.log_decay, args.beta);
    if (args.q.num_elements() == 0) return;
    const int64_t key_dim = args.q.num_elements() / args.q.shape[0];
    slice_columns(args.conv.out, 0, args.q);
    slice_columns(args.conv.out, key_dim, args.k);
    slice_columns(args.conv.out, 2 * key_dim, args.v);
  }

  // The delta rule and the gated norm of its output, which ends up in args.out.
  virtual void gated_delta_net_normed(const GatedDeltaNetArgs& args, const RaggedBatch& batch,
                                      const Tensor& gate, const Tensor& norm_weight, float eps) {
    gated_delta_net(args, batch);
    gated_rms_norm(args.out, gate, norm_weight, eps, args.out);
  }

  // attention(), then args.out *= sigmoid(gate), elementwise.
  virtual void attention_gated(const AttentionArgs& args, const RaggedBatch& batch,
                               const Tensor& gate) {
    attention(args, batch);
    sigmoid_mul(args.out, gate);
  }

  virtual void attention_inputs(const AttentionInputsArgs& args, const RaggedBatch& batch) {
    if (args.q_and_gate.shape.rank() > 0) split_pairs(args.q_and_gate, args.q, args.gate);
    if (args.q_norm.shape.rank() > 0) {
      rms_norm(args.q, args.q_norm, args.norm_eps, args.norm_weight_offset, args.q);
      rms_norm(args.k, args.k_norm, args.norm_eps, args.norm_weight_offset, args.k);
    }
    RopeArgs rotary = args.rope;
    rotary.x = args.q;
    rope(rotary);
    rotary.x = args.k;
    rope(rotary);
    kv_append(args.k, args.v, batch, args.cache);
  }
};

}  // namespace nibble
