// Bytes over bandwidth, operations over peak, the larger of the two.
#include "engine/roofline.h"

#include <algorithm>

#include "base/format.h"

namespace nibble {
namespace {

struct Rates {
  double bytes_per_second;
  double flops_per_second;
  double seconds(const StepCost& cost, bool* memory_bound) const {
    const double memory = static_cast<double>(cost.bytes()) / bytes_per_second;
    const double compute = static_cast<double>(cost.flops()) / flops_per_second;
    *memory_bound = memory >= compute;
    return std::max(memory, compute);
  }
};

Result<Rates> rates_of(const Card& card, DType activation) {
  const double tflops = activation == DType::kBF16 ? card.bf16_tflops : card.fp16_tflops;
  if (card.bandwidth_gb_s <= 0)
    return make_error(ErrorCode::kInvalidArgument,
                      "--roofline: bandwidth and peak of \"{}\" are not known; name a card, such "
                      "as V100-32GB or H200",
                      card.name);
  if (tflops <= 0)
    return make_error(ErrorCode::kInvalidArgument, "--dtype bfloat16: {} has none; use float16",
                      card.name);
  return Rates{card.bandwidth_gb_s * 1e9, tflops * 1e12};
}

void add(const StepCost& part, StepCost* sum) {
  sum->linear_weight_bytes += part.linear_weight_bytes;
  sum->linear_flops += part.linear_flops;
  sum->kv_bytes += part.kv_bytes;
  sum->state_bytes += part.state_bytes;
  sum->attention_flops += part.attention_flops;
  sum->delta_net_flops += part.delta_net_flops;
  sum->embedding_bytes += part.embedding_bytes;
}

}  // namespace

Result<std::vector<RooflinePoint>> decode_roofline(const Model& rank, const CardSet& cards,
                                                   DType kv_dtype, std::span<const int32_t> batches,
                                                   std::span<const int32_t> contexts) {
  NB_TRY(const Rates rates, rates_of(cards.card, rank.activation_dtype()));
  std::vector<RooflinePoint> points;
  for (const int32_t batch : batches) {
    for (const int32_t context : contexts) {
      const std::vector<int32_t> fresh(static_cast<size_t>(batch), 1);
      const std::vector<int32_t> cached(static_cast<size_t>(batch), context);
      RooflinePoint point{.batch = batch, .context = context};
      point.cost = rank.step_cost(fresh, cached, batch, kv_dtype);
      point.seconds = rates.seconds(point.cost, &point.memory_bound);
      point.tokens_per_second = batch / point.seconds;
      points.push_back(point);
    }
  }
  return points;
}

Result<std::vector<RooflinePoint>> prefill_roofline(const Model& rank, const CardSet& cards,
                                                    DType kv_dtype, int32_t chunk,
                                                    std::span<const int32_t> lengths) {
  NB_TRY(const Rates rates, rates_of(cards.card, rank.activation_dtype()));
  std::vector<RooflinePoint> points;
  for (const int32_t length : lengths) {
    RooflinePoint point{.prefill = true, .batch = 1, .context = length};
    for (int32_t done = 0; done < length; done += chunk) {
      const int32_t fresh = std::min(chunk, length - done);
      const int32_t logit_rows = done + fresh == length ? 1 : 0;
      const StepCost cost = rank.step_cost({&fresh, 1}, {&done, 1}, logit_rows, kv_dtype);
      point.seconds += rates.seconds(cost, &point.memory_bound);
      add(cost, &point.cost);
    }
    point.tokens_per_second = length / point.seconds;
    points.push_back(point);
  }
  return points;
}

}  // namespace nibble
