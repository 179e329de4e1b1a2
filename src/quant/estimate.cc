// Counts the products of each phase and divides by what this machine does in a short trial.
#include "quant/estimate.h"

#include <algorithm>
#include <chrono>

#include "checkpoint/model_dir.h"
#include "model/architectures.h"
#include "quant/expert_stacks.h"
#include "quant/host_quant_ops.h"
#include "quant/layer_pass.h"
#include "quant/observer.h"

namespace nibble {
namespace {

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// FLOP/s of y = x W' in the shape of a layer.
Result<double> measure_products(Device& device) {
  const bool is_host = device.memory().is_host;
  const DType activations = is_host ? DType::kF32 : DType::kBF16;
  const int64_t tokens = is_host ? 256 : 2048;
  const int64_t size = is_host ? 1024 : 8192;
  NB_TRY(const OwnedTensor x, OwnedTensor::on(device, activations, {tokens, size}, "a trial"));
  NB_TRY(const OwnedTensor w, OwnedTensor::on(device, DType::kBF16, {size, size}, "a trial"));
  NB_TRY(const OwnedTensor y, OwnedTensor::on(device, activations, {tokens, size}, "a trial"));
  LinearWeight weight;
  weight.out_features = size;
  weight.in_features = size;
  weight.dense = w.view();
  double best = 1e9;
  for (int trial = 0; trial < 5; ++trial)
    best = std::min(best, seconds_of([&] {
                      device.ops().linear(x.view(), weight, y.view());
                      device.synchronize();
                    }));
  return 2.0 * static_cast<double>(tokens * size * size) / best;
}

float trial_value(int64_t i) {
  return static_cast<float>(i % 37) / 37.0f - 0.5f;
}
OwnedTensor trial_weight(int64_t size) {
  OwnedTensor values(DType::kBF16, {size, size});
  for (int64_t i = 0; i < size * size; ++i)
    values.view().as<BFloat16>()[i] = BFloat16(trial_value(i));
  return values;
}

// Weights per second that the observer and rounding get through.
Result<double> measure_rounding(const QuantizationGroup& group, Device& device, QuantOps& ops) {
  const int64_t size = device.memory().is_host ? 512 : 4096;
  NB_TRY(const OwnedTensor weight, copied_to(device, trial_weight(size).view(), "a trial"));
  NB_TRY(const Observer observer, make_observer(group.observer));
  const RangeSearch search = observer.range_search(DType::kBF16);
  const std::vector<float> shares =
      observer.shares(std::vector<float>(static_cast<size_t>(size), 1.0f), size);
  const auto round = [&] {
    ops.round(weight.view(), group.format, search, shares, nullptr);
    device.synchronize();
  };
  if (!device.memory().is_host) round();  // the first call loads code and reserves buffers
  return static_cast<double>(size * size) / seconds_of(round);
}

// Of each row: GPTQ updates half per column, refinement all of it at its start and in its sweeps.
// The factor takes n^3 / 3 multiplications.
double compensation_flops(double rows, double columns, const Compensation& compensation) {
  const double per_row = compensation.refinement ? 9 : 1;
  return per_row * rows * columns * columns + 2.0 / 3 * columns * columns * columns;
}

// FLOP/s of GPTQ and refinement.
Result<double> measure_compensation(const QuantizationGroup& group, Compensation compensation,
                                    Device& device, QuantOps& ops) {
  const int64_t size = device.memory().is_host ? 512 : 4096;
  const OwnedTensor moments(DType::kF32, {size, size});
  for (int64_t i = 0; i < size; ++i)
    for (int64_t k = 0; k < size; ++k)
      moments.view().as<float>()[i * size + k] =
          trial_value(i) * trial_value(k) + (i == k ? 1.0f : 0.0f);
  NB_TRY(const OwnedTensor weight, copied_to(device, trial_weight(size).view(), "a trial"));
  NB_TRY(const OwnedTensor gram, copied_to(device, moments.view(), "a trial"));
  NB_TRY(const DeviceMemory room,
         device.allocate(ops.compensation_bytes(size, size, group.format), "a trial"));
  compensation.room = room.data();
  Status done;
  const double seconds = seconds_of([&] {
    const auto rounded =
        ops.compensate(weight.view(), gram.view(), group.format, {}, {}, compensation);
    if (!rounded) done = rounded.error();
  });
  NB_TRY_STATUS(done);
  const auto n = static_cast<double>(size);
  return compensation_flops(n, n, compensation) / seconds;
}

size_t packed_bytes(const LinearModule& module, const QuantFormat& format, size_t scale_size) {
  const auto groups = static_cast<size_t>(format.num_groups(module.in_features));
  size_t bytes = static_cast<size_t>(module.out_features) *
                 (static_cast<size_t>(packed_width(module.in_features, format.num_bits)) * 4 +
                  groups * scale_size);
  if (!format.symmetric)
    bytes += static_cast<size_t>(packed_width(module.out_features, format.num_bits)) * 4 * groups;
  return bytes + 2 * sizeof(int64_t);
}

}  // namespace

Result<QuantizeEstimate> estimate_quantization(const fs::path& source,
                                               const QuantizeOptions& options) {
  const Recipe& recipe = options.recipe;
  NB_TRY(const ModelDir dir, ModelDir::open(source));
  NB_TRY_STATUS(check_quantizable(dir, recipe, options.calibration.size()));
  NB_TRY(const ModelSpec spec, parse_model_config(dir.config()));
  NB_TRY(const Explanation explanation, explain_recipe(recipe, spec));
  ThreadPool pool(options.num_threads);
  NB_TRY(const std::unique_ptr<Device> cpu, open_device(Backend::kCpu, pool.num_threads()));
  std::unique_ptr<Device> gpu;
  if (recipe.needs_calibration()) {
    NB_TRY(gpu, open_device(options.device, pool.num_threads()));
    if (gpu->memory().is_host) gpu.reset();
  }
  Device& device = gpu != nullptr ? *gpu : *cpu;
  HostQuantOps host_ops(cpu->ops(), pool);
  QuantOps& ops = gpu != nullptr ? *gpu->quant_ops() : host_ops;
  QuantizeEstimate estimate;
  NB_TRY(estimate.flops_per_second, measure_products(device));
  const Compensation compensation = compensation_of(recipe, options.calibrated.mode);

  size_t largest_tensor = 0;
  double num_parameters = 0;  // of the decoder layers
  for (const SafetensorsFile& shard : dir.shards())
    for (const TensorInfo& info : shard.tensors()) {
      estimate.source_bytes += info.num_bytes;
      largest_tensor = std::max(largest_tensor, info.num_bytes);
      if (info.name.starts_with(spec.weight_prefix + "layers."))
        num_parameters += static_cast<double>(info.shape.num_elements());
    }
  estimate.output_bytes = estimate.source_bytes;
  double num_rounded = 0;
  double compensating = 0;
  double compensations_per_second = 0;
  double gram_flops_per_token = 0;
  int64_t widest = 0;
  double weights_per_second = 0;
  for (const ModuleDecision& decision : explanation.modules) {
    if (decision.group < 0) {
      ++estimate.num_kept;
      continue;
    }
    const LinearModule& module = decision.module;
    const QuantizationGroup& group = recipe.groups[static_cast<size_t>(decision.group)];
    if (weights_per_second == 0) {
      NB_TRY(weights_per_second, measure_rounding(group, device, ops));
    }
    NB_TRY(const Tensor weight, module_weight(dir, module));
    ++estimate.num_quantized;
    estimate.output_bytes -= weight.num_bytes();
    estimate.output_bytes += packed_bytes(module, group.format, dtype_size(weight.dtype));
    const auto columns = static_cast<double>(module.in_features);
    num_rounded += static_cast<double>(module.out_features) * columns;
    if (recipe.gptq) {
      if (compensations_per_second == 0) {
        NB_TRY(compensations_per_second, measure_compensation(group, compensation, device, ops));
      }
      compensating +=
          compensation_flops(static_cast<double>(module.out_features), columns, compensation);
    }
    if (recipe.gptq || module.name.ends_with("down_proj"))
      gram_flops_per_token += 2 * columns * columns;
    widest = std::max(widest, module.in_features);
  }
  estimate.seconds = num_rounded / weights_per_second;
  estimate.memory_bytes = 2 * largest_tensor;
  if (!recipe.needs_calibration()) return estimate;

  double num_tokens = 0;
  for (const auto& sample : options.calibration) num_tokens += static_cast<double>(sample.size());
  const double num_candidates = recipe.awq ? recipe.awq->num_candidates : 0;
  double trials = num_candidates;      // of which each rounds the weights anew
  double passes = 2 + num_candidates;  // over all samples: record, search, hand on
  if (num_candidates > 0 && options.calibrated.mode.has(Improvement::kShortlist)) {
    const double finalists = std::min<double>(num_candidates, kShortlistSize + 1);
    trials += finalists;
    const double part =
        static_cast<double>(shortlist_tokens(static_cast<int64_t>(num_tokens))) / num_tokens;
    passes = 2 + num_candidates * part + finalists * (1 - part);
  }
  const double flops = num_tokens * (2 * num_parameters * passes + gram_flops_per_token);
  estimate.seconds += flops / estimate.flops_per_second + trials * num_rounded / weights_per_second;
  if (recipe.gptq) estimate.seconds += compensating / compensations_per_second;
  const auto activation = static_cast<size_t>(num_tokens) * static_cast<size_t>(spec.hidden_size) *
                          (gpu != nullptr ? 2 : sizeof(float));
  const size_t activations = kActivationsAlive * activation;
  const bool spilled = activations > options.calibrated.spill.memory_limit;
  const auto square = static_cast<size_t>(widest) * static_cast<size_t>(widest);
  const auto layer_bytes = static_cast<size_t>(num_parameters) / spec.layers.size() * 2;
  estimate.memory_bytes = 3 * layer_bytes + square * (recipe.gptq && gpu == nullptr ? 28 : 8) +
                          (spilled ? 0 : activations);
  estimate.disk_bytes =
      (spilled ? activations : 0) + 2 * activation + (recipe.gptq ? estimate.output_bytes : 0);
  return estimate;
}

}  // namespace nibble
