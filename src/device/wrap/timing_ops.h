// Passes every op on and takes its time, with the device idle before and after: where a step's time
// goes. Waiting for each op costs more than the step takes on its own, most where ops are short;
// the shares are what to read.
#pragma once

#include <array>
#include <chrono>
#include <string_view>

#include "device/device.h"
#include "device/wrap/forwarding_ops.h"

namespace nibble {

enum class OpClass { kLinear, kAttention, kDeltaNet, kMoe, kOther };

class TimingOps final : public ForwardingOps {
 public:
  static constexpr std::array<std::string_view, 5> kClassNames = {"linear", "attention",
                                                                  "delta_net", "moe", "other"};

  explicit TimingOps(Device& device) : ForwardingOps(device.ops()), device_(device) {}

  // Seconds by OpClass since the last reset().
  const std::array<double, 5>& seconds() const { return seconds_; }
  void reset() { seconds_ = {}; }

  void embed(const Tensor& table, const int32_t* ids, const Tensor& out) override {
    time(OpClass::kOther, [&] { ForwardingOps::embed(table, ids, out); });
  }
  void gather_rows(const Tensor& x, const int32_t* rows, const Tensor& out) override {
    time(OpClass::kOther, [&] { ForwardingOps::gather_rows(x, rows, out); });
  }
  void rms_norm(const Tensor& x, const Tensor& weight, float eps, float weight_offset,
                const Tensor& out) override {
    time(OpClass::kOther, [&] { ForwardingOps::rms_norm(x, weight, eps, weight_offset, out); });
  }
  void gated_rms_norm(const Tensor& x, const Tensor& gate, const Tensor& weight, float eps,
                      const Tensor& out) override {
    time(OpClass::kDeltaNet, [&] { ForwardingOps::gated_rms_norm(x, gate, weight, eps, out); });
  }
  void linear(const Tensor& x, const LinearWeight& weight, const Tensor& out) override {
    time(OpClass::kLinear, [&] { ForwardingOps::linear(x, weight, out); });
  }
  void add(const Tensor& x, const Tensor& y) override {
    time(OpClass::kOther, [&] { ForwardingOps::add(x, y); });
  }
  void split_pairs(const Tensor& x, const Tensor& first, const Tensor& second) override {
    time(OpClass::kAttention, [&] { ForwardingOps::split_pairs(x, first, second); });
  }
  void slice_columns(const Tensor& x, int64_t begin, const Tensor& out) override {
    time(OpClass::kDeltaNet, [&] { ForwardingOps::slice_columns(x, begin, out); });
  }
  void sigmoid_mul(const Tensor& x, const Tensor& gate) override {
    time(OpClass::kOther, [&] { ForwardingOps::sigmoid_mul(x, gate); });
  }
  void silu_mul(const Tensor& gate, const Tensor& up, const Tensor& out) override {
    time(OpClass::kOther, [&] { ForwardingOps::silu_mul(gate, up, out); });
  }
  void rope(const RopeArgs& args) override {
    time(OpClass::kAttention, [&] { ForwardingOps::rope(args); });
  }
  void kv_append(const Tensor& k, const Tensor& v, const RaggedBatch& batch,
                 const KvCache& cache) override {
    time(OpClass::kAttention, [&] { ForwardingOps::kv_append(k, v, batch, cache); });
  }
  void attention(const AttentionArgs& args, const RaggedBatch& batch) override {
    time(OpClass::kAttention, [&] { ForwardingOps::attention(args, batch); });
  }
  void causal_conv1d(const ConvArgs& args, const RaggedBatch& batch) override {
    time(OpClass::kDeltaNet, [&] { ForwardingOps::causal_conv1d(args, batch); });
  }
  void delta_gates(const Tensor& a, const Tensor& b, const Tensor& a_log, const Tensor& dt_bias,
                   const Tensor& log_decay, const Tensor& beta) override {
    time(OpClass::kDeltaNet,
         [&] { ForwardingOps::delta_gates(a, b, a_log, dt_bias, log_decay, beta); });
  }
  void gated_delta_net(const GatedDeltaNetArgs& args, const RaggedBatch& batch) override {
    time(OpClass::kDeltaNet, [&] { ForwardingOps::gated_delta_net(args, batch); });
  }
  void moe_route(const Tensor& logits, int32_t top_k, const Tensor& experts,
                 const Tensor& weights) override {
    time(OpClass::kMoe, [&] { ForwardingOps::moe_route(logits, top_k, experts, weights); });
  }
  void moe_mlp(const Tensor& x, const Tensor& experts, const Tensor& weights,
               std::span<const LinearWeight> gate, std::span<const LinearWeight> up,
               std::span<const LinearWeight> down, const Tensor& scratch,
               const Tensor& out) override {
    time(OpClass::kMoe,
         [&] { ForwardingOps::moe_mlp(x, experts, weights, gate, up, down, scratch, out); });
  }
  void argmax(const Tensor& logits, const Tensor& ids) override {
    time(OpClass::kOther, [&] { ForwardingOps::argmax(logits, ids); });
  }
  // The device's own fused forms, so that what is timed is what runs.
  void add_rms_norm(const Tensor& x, const Tensor& y, const Tensor& weight, float eps,
                    float weight_offset, const Tensor& out) override {
    time(OpClass::kOther,
         [&] { device_.ops().add_rms_norm(x, y, weight, eps, weight_offset, out); });
  }
  void linear_group(const Tensor& x, std::initializer_list<LinearPart> parts) override {
    time(OpClass::kLinear, [&] { device_.ops().linear_group(x, parts); });
  }
  void delta_net_inputs(const DeltaNetInputsArgs& args, const RaggedBatch& batch) override {
    time(OpClass::kDeltaNet, [&] { device_.ops().delta_net_inputs(args, batch); });
  }
  void gated_delta_net_normed(const GatedDeltaNetArgs& args, const RaggedBatch& batch,
                              const Tensor& gate, const Tensor& norm_weight, float eps) override {
    time(OpClass::kDeltaNet,
         [&] { device_.ops().gated_delta_net_normed(args, batch, gate, norm_weight, eps); });
  }
  void attention_inputs(const AttentionInputsArgs& args, const RaggedBatch& batch) override {
    time(OpClass::kAttention, [&] { device_.ops().attention_inputs(args, batch); });
  }

 private:
  template <class Call>
  void time(OpClass kind, const Call& call) {
    device_.synchronize();
    const auto start = std::chrono::steady_clock::now();
    call();
    device_.synchronize();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    seconds_[static_cast<size_t>(kind)] += taken.count();
  }

  Device& device_;
  std::array<double, 5> seconds_{};
};

}  // namespace nibble
