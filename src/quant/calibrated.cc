// Per layer: record, search each mapping, round, and hand the activations on.
#include "quant/calibrated.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/format.h"
#include "quant/rtn.h"

namespace nibble {
namespace {

class Calibration {
 public:
  Calibration(const ModelDir& dir, const ModelSpec& spec, const Recipe& recipe,
              const std::map<std::string, int>& groups, const CalibratedOptions& options,
              ThreadPool& pool)
      : dir_(dir),
        spec_(spec),
        recipe_(recipe),
        groups_(groups),
        options_(options),
        pool_(pool),
        propagate_(options.mode == CalibrationMode::kBest) {
    result_.plan = SmoothingPlan(options.norm_rounding, spec.norm_weight_offset);
  }

  Result<CalibratedWeights> run(const std::vector<std::vector<int32_t>>& samples) {
    for (const LayerSpec& layer : spec_.layers)
      if (layer.ffn == FfnKind::kMoe)
        return make_error(ErrorCode::kUnsupported,
                          "{}: AWQ and GPTQ work on dense models in this version; round to nearest "
                          "with recipes/w4a16-rtn.yaml",
                          spec_.architecture);
    NB_TRY(device_, open_device(Backend::kCpu, pool_.num_threads()));
    NB_TRY(LayerPass pass, LayerPass::start(dir_, spec_, *device_, samples));
    const int num_layers = static_cast<int>(spec_.layers.size());
    for (int layer = 0; layer < num_layers; ++layer) {
      NB_TRY_STATUS(quantize_layer(layer, pass));
      if (options_.progress) options_.progress(layer + 1, num_layers);
    }
    return std::move(result_);
  }

 private:
  const QuantizationGroup* group_of(const std::string& module) const {
    const auto found = groups_.find(module);
    return found == groups_.end() ? nullptr : &recipe_.groups[static_cast<size_t>(found->second)];
  }

  Status quantize_layer(int layer, LayerPass& pass) {
    Arena views;  // the CPU computes on the mapped weights
    NB_TRY(WorkingLayer working, WorkingLayer::load(dir_, spec_, layer, *device_, views));
    std::vector<std::string> quantized;
    for (const auto& [module, group] : groups_)
      if (working.linear(module) != nullptr) quantized.push_back(module);
    if (quantized.empty()) {
      pass.run(layer, working.weights(), nullptr);
      return {};
    }

    const std::vector<SmoothingMapping> mappings = smoothing_mappings(spec_, layer);
    const auto want_gram = [&](const LinearWeight* weight) {
      if (recipe_.gptq)
        return std::ranges::any_of(
            quantized, [&](const std::string& name) { return working.linear(name) == weight; });
      return recipe_.awq && std::ranges::any_of(mappings, [&](const SmoothingMapping& mapping) {
               return mapping.parent == SmoothingParent::kLinear &&
                      working.linear(mapping.balance[0]) == weight;
             });
    };
    OwnedTensor before;
    if (propagate_) before = OwnedTensor::copy_of(pass.stream().view());
    LayerPass::Recording recording;
    pass.run(layer, working.weights(), &recording, want_gram);

    std::map<std::string, std::vector<double>> input_scales;  // by balance module
    if (recipe_.awq) {
      for (const SmoothingMapping& mapping : mappings) {
        if (std::ranges::none_of(mapping.balance, [&](const std::string& module) {
              return group_of(module) != nullptr;
            }))
          continue;
        NB_TRY(std::vector<double> scales, search(layer, mapping, working, recording, pass));
        for (const std::string& module : mapping.balance) input_scales[module] = scales;
        result_.plan.add(mapping, std::move(scales));
      }
    }
    return round_layer(layer, working, input_scales, recording, before, pass);
  }

  // The weight of a module with the edits decided so far.
  OwnedTensor smoothed(const std::string& module, const Tensor& original) const {
    OwnedTensor copy = OwnedTensor::copy_of(original);
    result_.plan.apply(module + ".weight", copy.view());
    return copy;
  }

  // What becomes of the input of a mapping with these scales: 1 / s. The best mode counts in what
  // the norm's own rounding does to it: a zero-centred norm near -1 holds small gains badly.
  std::vector<double> input_factors(const SmoothingMapping& mapping,
                                    const std::vector<double>& scales,
                                    WorkingLayer& working) const {
    std::vector<double> factors = scales;
    for (double& factor : factors) factor = 1 / factor;
    if (!propagate_ || !mapping.smooth_is_norm) return factors;
    const Tensor norm = *working.norm(mapping.smooth);
    SmoothingPlan trial(options_.norm_rounding, spec_.norm_weight_offset);
    trial.add(mapping, scales);
    OwnedTensor smoothed_norm = OwnedTensor::copy_of(norm);
    trial.apply(mapping.smooth + ".weight", smoothed_norm.view());
    std::vector<float> from(scales.size());
    std::vector<float> to(scales.size());
    to_float(norm, from.data());
    to_float(smoothed_norm.view(), to.data());
    for (size_t i = 0; i < factors.size(); ++i)
      if (from[i] + spec_.norm_weight_offset != 0)
        factors[i] = static_cast<double>((to[i] + spec_.norm_weight_offset) /
                                         (from[i] + spec_.norm_weight_offset));
    return factors;
  }

  // round(W s) on the grid, times what the input was multiplied with: what a candidate would make
  // of the weight.
  Result<OwnedTensor> trial_weight(const Tensor& weight, const std::vector<double>& scales,
                                   const std::vector<double>& input_factors,
                                   const QuantizationGroup& group) const {
    OwnedTensor trial = OwnedTensor::copy_of(weight);
    scale_columns(trial.view(), scales, pool_);
    NB_TRY(const auto observer,
           make_observer(propagate_ ? group.observer : std::string("memoryless_minmax")));
    NB_TRY(const QuantizedWeight rounded,
           round_to_nearest(trial.view(), group.format, *observer, pool_));
    dequantize_weight(rounded, group.format, trial.view(), pool_);
    scale_columns(trial.view(), input_factors, pool_);
    return trial;
  }

  Result<std::vector<double>> search(int layer, const SmoothingMapping& mapping,
                                     WorkingLayer& working, LayerPass::Recording& recording,
                                     LayerPass& pass) {
    const InputMoments& moments = recording.inputs[working.linear(mapping.balance[0])];
    std::vector<float> x_mean;
    for (const double sum : moments.sum_abs)
      x_mean.push_back(static_cast<float>(sum / static_cast<double>(moments.num_tokens)));
    WeightStatistic statistic(static_cast<int64_t>(x_mean.size()));
    std::map<std::string, OwnedTensor> current;
    for (const std::string& module : mapping.balance) {
      const QuantizationGroup* group = group_of(module);
      if (group == nullptr) continue;
      OwnedTensor& weight = current[module] = smoothed(module, working.linear(module)->dense);
      statistic.add(weight.view(), group->format);
    }
    const std::vector<double> w_mean = statistic.mean();

    double initial = 0;
    double best = std::numeric_limits<double>::infinity();
    AwqCandidate chosen;
    std::vector<double> chosen_scales;
    OwnedTensor output;
    if (mapping.parent != SmoothingParent::kLinear)
      output = OwnedTensor(DType::kF32, {pass.num_tokens(), spec_.hidden_size});
    const std::vector<AwqCandidate> candidates = awq_candidates(*recipe_.awq);
    for (size_t i = 0; i < candidates.size(); ++i) {
      const std::vector<double> scales = awq_scales(candidates[i], x_mean, w_mean, propagate_);
      const std::vector<double> factors = input_factors(mapping, scales, working);
      WorkingLayer trial = working;
      std::map<std::string, OwnedTensor> weights;
      for (auto& [module, weight] : current) {
        NB_TRY(weights[module],
               named(module, trial_weight(weight.view(), scales, factors, *group_of(module))));
        trial.linear(module)->dense = weights[module].view();
      }
      double loss = 0;
      switch (mapping.parent) {
        case SmoothingParent::kMixer:
          pass.replay_mixer(layer, trial.weights(), recording.mixer_input.view(), output.view());
          loss = mean_squared_difference(recording.mixer_output.view(), output.view());
          break;
        case SmoothingParent::kMlp:
          pass.replay_mlp(trial.weights(), recording.mlp_input.view(), output.view());
          loss = mean_squared_difference(recording.mlp_output.view(), output.view());
          break;
        case SmoothingParent::kLinear: {
          const std::string& module = mapping.balance[0];
          loss = output_error(current[module].view(), weights[module].view(), moments, pass.ops());
          break;
        }
      }
      if (i == 0) initial = loss;
      if (loss < best) {
        best = loss;
        chosen = candidates[i];
        chosen_scales = scales;
      }
    }
    if (!std::isfinite(best))
      return make_error(ErrorCode::kInvalidArgument,
                        "{}: no smoothing candidate has a finite loss; are the weights or the "
                        "calibration inputs damaged?",
                        mapping.smooth);
    result_.mappings.push_back({{"smooth", mapping.smooth},
                                {"ratio", chosen.ratio},
                                {"duo_scaling", chosen.duo},
                                {"initial_loss", initial},
                                {"loss", best}});
    return chosen_scales;
  }

  template <class T>
  static Result<T> named(const std::string& module, Result<T> result) {
    if (!result)
      return make_error(result.error().code, "{}.weight: {}", module, result.error().message);
    return result;
  }

  static double mean_squared_difference(const Tensor& a, const Tensor& b) {
    double sum = 0;
    const float* x = a.as<const float>();
    const float* y = b.as<const float>();
    for (int64_t i = 0; i < a.num_elements(); ++i) {
      const double difference = static_cast<double>(x[i]) - static_cast<double>(y[i]);
      sum += difference * difference;
    }
    return sum / static_cast<double>(a.num_elements());
  }

  // Mean over tokens and outputs of (x (W - V)')^2, from the gram matrix of the inputs alone.
  static double output_error(const Tensor& weight, const Tensor& trial, const InputMoments& moments,
                             Ops& ops) {
    const int64_t rows = weight.shape[0];
    const int64_t columns = weight.shape[1];
    OwnedTensor difference(DType::kF32, weight.shape);
    OwnedTensor product(DType::kF32, weight.shape);
    std::vector<float> other(static_cast<size_t>(weight.num_elements()));
    float* d = difference.view().as<float>();
    to_float(weight, d);
    to_float(trial, other.data());
    for (size_t i = 0; i < other.size(); ++i) d[i] -= other[i];
    LinearWeight gram;
    gram.out_features = columns;
    gram.in_features = columns;
    gram.dense = {const_cast<float*>(moments.gram.data()), DType::kF32, {columns, columns}};
    ops.linear(difference.view(), gram, product.view());
    const float* p = product.view().as<const float>();
    double sum = 0;
    for (size_t i = 0; i < other.size(); ++i)
      sum += static_cast<double>(d[i]) * static_cast<double>(p[i]);
    return sum / static_cast<double>(moments.num_tokens * rows);
  }

  // The second moments of x / s.
  static OwnedTensor hessian(const InputMoments& moments, const std::vector<double>* scales) {
    const auto n = static_cast<int64_t>(moments.sum_abs.size());
    OwnedTensor result(DType::kF32, {n, n});
    float* h = result.view().as<float>();
    for (int64_t i = 0; i < n; ++i)
      for (int64_t k = 0; k < n; ++k) {
        const auto at = static_cast<size_t>(i * n + k);
        const double divisor = scales == nullptr ? 1.0
                                                 : (*scales)[static_cast<size_t>(i)] *
                                                       (*scales)[static_cast<size_t>(k)];
        h[at] = static_cast<float>(static_cast<double>(moments.gram[at]) / divisor);
      }
    return result;
  }

  Status round_layer(int layer, WorkingLayer& working,
                     const std::map<std::string, std::vector<double>>& input_scales,
                     LayerPass::Recording& recording, OwnedTensor& before, LayerPass& pass) {
    if (!propagate_ && !recipe_.gptq) return {};
    WorkingLayer rounded_layer = working;
    std::map<std::string, OwnedTensor> weights;
    for (const LinearModule& module : linear_modules(spec_)) {
      LinearWeight* linear = rounded_layer.linear(module.name);
      if (linear == nullptr) continue;
      OwnedTensor& weight = weights[module.name] = smoothed(module.name, linear->dense);
      linear->dense = weight.view();
      const QuantizationGroup* group = group_of(module.name);
      if (group == nullptr) continue;
      NB_TRY(const auto observer, make_observer(group->observer));
      QuantizedWeight rounded;
      if (recipe_.gptq) {
        const auto scales = input_scales.find(module.name);
        OwnedTensor moments = hessian(recording.inputs[working.linear(module.name)],
                                      scales == input_scales.end() ? nullptr : &scales->second);
        NB_TRY(rounded, named(module.name, gptq(weight.view(), moments.view(), group->format,
                                                *observer, *recipe_.gptq, pool_)));
        result_.rounded[module.name] = pack_weight(weight.view(), rounded, group->format, pool_);
      } else {
        NB_TRY(rounded, named(module.name,
                              round_to_nearest(weight.view(), group->format, *observer, pool_)));
      }
      dequantize_weight(rounded, group->format, weight.view(), pool_);
    }
    if (!propagate_) return {};
    std::map<std::string, OwnedTensor> norms;
    for (const char* name : {"input_layernorm", "post_attention_layernorm"}) {
      const std::string module = format("{}layers.{}.{}", spec_.weight_prefix, layer, name);
      Tensor* norm = rounded_layer.norm(module);
      OwnedTensor& values = norms[module] = smoothed(module, *norm);
      *norm = values.view();
    }
    pass.stream() = std::move(before);
    pass.run(layer, rounded_layer.weights(), nullptr);
    return {};
  }

  const ModelDir& dir_;
  const ModelSpec& spec_;
  const Recipe& recipe_;
  const std::map<std::string, int>& groups_;
  const CalibratedOptions& options_;
  ThreadPool& pool_;
  bool propagate_;
  std::unique_ptr<Device> device_;
  CalibratedWeights result_;
};

}  // namespace

Result<CalibratedWeights> calibrate(const ModelDir& dir, const ModelSpec& spec,
                                    const Recipe& recipe, const std::map<std::string, int>& groups,
                                    const std::vector<std::vector<int32_t>>& samples,
                                    const CalibratedOptions& options, ThreadPool& pool) {
  return Calibration(dir, spec, recipe, groups, options, pool).run(samples);
}

}  // namespace nibble
