// Per layer: record, search each mapping, round, and hand the activations on.
#include "quant/calibrated.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "base/format.h"
#include "base/log.h"
#include "quant/refine.h"
#include "quant/rtn.h"

namespace nibble {
namespace {

constexpr double kSmoothingLimit = 0x1p-7;

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

class Calibration {
 public:
  Calibration(const ModelDir& dir, const ModelSpec& spec, const Recipe& recipe,
              const std::map<std::string, int>& groups, const CalibratedOptions& options,
              CalibrationJournal& journal, ThreadPool& pool)
      : dir_(dir),
        spec_(spec),
        recipe_(recipe),
        groups_(groups),
        options_(options),
        journal_(journal),
        pool_(pool),
        propagate_(options.mode.has(Improvement::kErrorPropagation)) {
    result_.plan = SmoothingPlan(options.norm_rounding, spec.norm_weight_offset);
  }

  Result<CalibratedWeights> run(const std::vector<std::vector<int32_t>>& samples) {
    if (recipe_.awq) {
      NB_TRY(mappings_, resolve_mappings(spec_, recipe_.awq->mappings));
      if (recipe_.awq->mappings.empty() && options_.mode.has(Improvement::kGatedNorm))
        for (size_t layer = 0; layer < mappings_.size(); ++layer)
          for (SmoothingMapping& mapping : gated_norm_mappings(spec_, static_cast<int>(layer)))
            mappings_[layer].push_back(std::move(mapping));
    } else {
      mappings_.resize(spec_.layers.size());
    }
    NB_TRY(device_, open_device(Backend::kCpu, pool_.num_threads()));
    NB_TRY(LayerPass pass, LayerPass::start(dir_, spec_, *device_, samples, options_.spill));
    const int num_layers = static_cast<int>(spec_.layers.size());
    const int num_resumed = journal_.num_finished();
    if (num_resumed > 0) NB_TRY_STATUS(journal_.restore_stream(pass.stream().view()));
    for (int layer = 0; layer < num_layers; ++layer) {
      if (layer >= num_resumed) {
        summary_ = {};
        decisions_ = {{"smoothing", Json::object()}, {"mappings", Json::array()}};
        decisions_["smoothing_check"] = 0.0;
        NB_TRY_STATUS(quantize_layer(layer, pass));
        NB_TRY_STATUS(journal_.record(decisions_, rounded_, pass.stream().view()));
        rounded_.clear();
      }
      take(layer, layer < num_resumed);
    }
    return std::move(result_);
  }

 private:
  const QuantizationGroup* group_of(const std::string& module) const {
    const auto found = groups_.find(module);
    return found == groups_.end() ? nullptr : &recipe_.groups[static_cast<size_t>(found->second)];
  }

  // From the journal into the result: the same way for a layer just done and one done long ago.
  void take(int layer, bool resumed) {
    const Json& decisions = journal_.decisions(layer);
    if (resumed)
      for (const SmoothingMapping& mapping : mappings_[static_cast<size_t>(layer)])
        if (decisions["smoothing"].contains(mapping.smooth))
          result_.plan.add(mapping,
                           decisions["smoothing"][mapping.smooth].get<std::vector<double>>());
    for (const Json& mapping : decisions["mappings"]) result_.mappings.push_back(mapping);
    result_.layers.push_back({{"smoothing_check", decisions["smoothing_check"]}});
    summary_.layer = layer;
    summary_.num_layers = static_cast<int>(spec_.layers.size());
    summary_.resumed = resumed;
    summary_.smoothing_check = decisions["smoothing_check"].get<double>();
    summary_.mappings = &decisions["mappings"];
    if (options_.progress) options_.progress(summary_);
  }

  bool is_quantized(const SmoothingMapping& mapping) const {
    return std::ranges::any_of(
        mapping.balance, [&](const std::string& module) { return group_of(module) != nullptr; });
  }

  // Whether this layer's weights are rounded here, and not while they stream to disk.
  bool rounds_here(const std::string& module) const {
    const QuantizationGroup* group = group_of(module);
    if (group == nullptr) return false;
    return recipe_.gptq || make_observer(group->observer).value()->needs_importance();
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

    std::vector<SmoothingMapping> mappings;
    for (const SmoothingMapping& mapping : mappings_[static_cast<size_t>(layer)])
      if (is_quantized(mapping)) mappings.push_back(mapping);
    const auto want_gram = [&](const LinearWeight* weight) {
      if (recipe_.gptq)
        return std::ranges::any_of(
            quantized, [&](const std::string& name) { return working.linear(name) == weight; });
      return std::ranges::any_of(mappings, [&](const SmoothingMapping& mapping) {
        return mapping.parent == SmoothingParent::kLinear &&
               working.linear(mapping.balance[0]) == weight;
      });
    };
    OwnedTensor before;
    if (propagate_) {
      NB_TRY(before, pass.new_activations());
      std::memcpy(before.view().data, pass.stream().view().data, before.view().num_bytes());
    }
    const int64_t num_first = pass.num_first_tokens();
    OwnedTensor first_in = OwnedTensor::copy_of(pass.stream().view().rows(0, num_first));
    LayerPass::Recording recording;
    recording.all_experts = options_.all_experts;
    for (const SmoothingMapping& mapping : mappings) {
      if (mapping.parent == SmoothingParent::kMixer) {
        NB_TRY(recording.mixer_input, pass.new_activations());
        NB_TRY(recording.mixer_output, pass.new_activations());
      }
      if (mapping.parent == SmoothingParent::kMlp) {
        NB_TRY(recording.mlp_input, pass.new_activations());
        NB_TRY(recording.mlp_output, pass.new_activations());
      }
    }
    pass.run(layer, working.weights(), &recording, want_gram);

    std::map<std::string, std::vector<double>> input_scales;  // by balance module
    Stopwatch watch;
    for (const SmoothingMapping& mapping : mappings) {
      // An expert that no token was routed to has nothing to go by.
      if (!recording.inputs.contains(working.linear(mapping.balance[0]))) continue;
      NB_TRY(std::vector<double> scales, search(layer, mapping, working, recording, pass));
      for (const std::string& module : mapping.balance) {
        std::vector<double>& product = input_scales[module];
        product.resize(static_cast<size_t>(working.linear(module)->in_features), 1.0);
        for (size_t i = 0; i < product.size(); ++i) product[i] *= scales[i % scales.size()];
      }
      decisions_["smoothing"][mapping.smooth] = scales;
      result_.plan.add(mapping, std::move(scales));
    }
    summary_.search_seconds = watch.seconds();
    if (!mappings.empty())
      check_smoothing(layer, working, first_in, pass.stream().view().rows(0, num_first), pass);
    return round_layer(layer, working, input_scales, recording, before, pass);
  }

  // Points every weight and norm of the layer at a smoothed copy in floating point.
  struct SmoothedLayer {
    WorkingLayer layer;
    std::map<std::string, OwnedTensor> values;
  };
  SmoothedLayer smoothed_layer(int layer, const WorkingLayer& working) const {
    SmoothedLayer result{working, {}};
    std::vector<std::string> names = {
        format("{}layers.{}.mlp.gate", spec_.weight_prefix, layer)};  // a mixture's router
    for (const LinearModule& module : linear_modules(spec_)) names.push_back(module.name);
    for (const std::string& name : names)
      if (LinearWeight* linear = result.layer.linear(name)) {
        OwnedTensor& weight = result.values[name] = smoothed(name, linear->dense);
        linear->dense = weight.view();
      }
    for (const char* name : {"input_layernorm", "post_attention_layernorm", "linear_attn.norm"}) {
      const std::string module = format("{}layers.{}.{}", spec_.weight_prefix, layer, name);
      Tensor* norm = result.layer.norm(module);
      if (norm == nullptr) continue;
      OwnedTensor& values = result.values[module] = smoothed(module, *norm);
      *norm = values.view();
    }
    return result;
  }

  // Smoothing must not change what the layer computes: what it adds to the stream for the first
  // sample, before and after.
  void check_smoothing(int layer, const WorkingLayer& working, OwnedTensor& first_in,
                       const Tensor& first_out, LayerPass& pass) {
    const SmoothedLayer smoothed = smoothed_layer(layer, working);
    OwnedTensor found = OwnedTensor::copy_of(first_in.view());
    pass.run_first(layer, smoothed.layer.weights(), found.view());
    const float* in = first_in.view().as<const float>();
    const float* before = first_out.as<const float>();
    const float* after = found.view().as<const float>();
    double error = 0;
    double total = 0;
    for (int64_t i = 0; i < first_out.num_elements(); ++i) {
      error += std::pow(static_cast<double>(after[i]) - static_cast<double>(before[i]), 2);
      total += std::pow(static_cast<double>(before[i]) - static_cast<double>(in[i]), 2);
    }
    const double relative = total > 0 ? std::sqrt(error / total) : 0;
    decisions_["smoothing_check"] = relative;
    if (!(relative <= kSmoothingLimit))
      log_warning(
          "layer {}: smoothing alone moves its output by {:.4f} (limit {:.4f}): norm gains too "
          "small "
          "for the weights' dtype; --mode best avoids such scales",
          layer, relative, kSmoothingLimit);
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
    if (!options_.mode.has(Improvement::kNormLoss) || !mapping.smooth_is_norm) return factors;
    const Tensor norm = *working.norm(mapping.smooth);
    SmoothingPlan trial(options_.norm_rounding, spec_.norm_weight_offset);
    trial.add(mapping, scales);
    OwnedTensor smoothed_norm = OwnedTensor::copy_of(norm);
    trial.apply(mapping.smooth + ".weight", smoothed_norm.view());
    std::vector<float> from(scales.size());
    std::vector<float> to(scales.size());
    to_float(norm, from.data());
    to_float(smoothed_norm.view(), to.data());
    const float offset = trial.norm_offset(mapping.smooth + ".weight");
    for (size_t i = 0; i < factors.size(); ++i)
      if (from[i] + offset != 0)
        factors[i] = static_cast<double>((to[i] + offset) / (from[i] + offset));
    return factors;
  }

  // round(W s) on the grid, times what the input was multiplied with: what a candidate would make
  // of the weight.
  Result<OwnedTensor> trial_weight(const Tensor& weight, const std::vector<double>& scales,
                                   const std::vector<double>& input_factors,
                                   const QuantizationGroup& group,
                                   const std::vector<float>& importance) const {
    OwnedTensor trial = OwnedTensor::copy_of(weight);
    scale_columns(trial.view(), scales, pool_);
    NB_TRY(const auto observer, make_observer(options_.mode.has(Improvement::kObserverSearch)
                                                  ? group.observer
                                                  : std::string("memoryless_minmax")));
    NB_TRY(const QuantizedWeight rounded,
           round_to_nearest(trial.view(), group.format, *observer, importance, pool_));
    dequantize_weight(rounded, group.format, trial.view(), pool_);
    scale_columns(trial.view(), input_factors, pool_);
    return trial;
  }

  Result<std::vector<double>> search(int layer, const SmoothingMapping& mapping,
                                     WorkingLayer& working, LayerPass::Recording& recording,
                                     LayerPass& pass) {
    const InputMoments& moments = recording.inputs[working.linear(mapping.balance[0])];
    const size_t num_columns = moments.sum_abs.size();
    const size_t num_scales =
        mapping.num_scales > 0 ? static_cast<size_t>(mapping.num_scales) : num_columns;
    std::vector<float> x_mean;
    for (const double sum : folded(moments.sum_abs, num_scales))
      x_mean.push_back(static_cast<float>(sum / static_cast<double>(moments.num_tokens)));
    WeightStatistic statistic(static_cast<int64_t>(num_columns));
    std::map<std::string, OwnedTensor> current;
    for (const std::string& module : mapping.balance) {
      const QuantizationGroup* group = group_of(module);
      if (group == nullptr) continue;
      OwnedTensor& weight = current[module] = smoothed(module, working.linear(module)->dense);
      statistic.add(weight.view(), group->format);
    }
    const std::vector<double> w_mean = folded(statistic.mean(), num_scales);

    const std::vector<AwqCandidate> candidates = awq_candidates(*recipe_.awq);
    const auto loss_of = [&](size_t i, const LayerPass::ReplayLimits& limits) -> Result<double> {
      const std::vector<double> scales =
          awq_scales(candidates[i], x_mean, w_mean, options_.mode.has(Improvement::kDeadChannels));
      const std::vector<double> factors =
          repeated(input_factors(mapping, scales, working), num_columns);
      const std::vector<double> column_scales = repeated(scales, num_columns);
      WorkingLayer trial = working;
      std::map<std::string, OwnedTensor> weights;
      for (auto& [module, weight] : current) {
        NB_TRY(weights[module],
               named(module, trial_weight(weight.view(), column_scales, factors, *group_of(module),
                                          importance_of(moments, factors))));
        trial.linear(module)->dense = weights[module].view();
      }
      const std::string& first = mapping.balance[0];
      switch (mapping.parent) {
        case SmoothingParent::kMixer:
          return pass.replay_mixer(layer, trial.weights(), recording, limits);
        case SmoothingParent::kMlp:
          return pass.replay_mlp(layer, trial.weights(), recording, limits);
        case SmoothingParent::kLinear:
          return output_error(current[first].view(), weights[first].view(), moments, pass.ops());
      }
      return std::numeric_limits<double>::infinity();
    };

    std::vector<size_t> finalists(candidates.size());
    std::iota(finalists.begin(), finalists.end(), 0);
    if (options_.mode.has(Improvement::kShortlist) && mapping.parent != SmoothingParent::kLinear) {
      NB_TRY(finalists, shortlist(candidates.size(), pass.num_tokens(), loss_of));
    }
    double initial = 0;
    LayerPass::ReplayLimits limits;
    size_t chosen = candidates.size();
    for (const size_t i : finalists) {
      NB_TRY(const double loss, loss_of(i, limits));
      if (i == 0) initial = loss;
      if (!(loss < limits.bound)) continue;
      limits.bound = loss;
      chosen = i;
    }
    if (chosen == candidates.size())
      return make_error(ErrorCode::kInvalidArgument,
                        "{}: no smoothing candidate has a finite loss; are the weights or the "
                        "calibration inputs damaged?",
                        mapping.smooth);
    std::vector<double> scales = awq_scales(candidates[chosen], x_mean, w_mean,
                                            options_.mode.has(Improvement::kDeadChannels));
    const auto [smallest, largest] = std::ranges::minmax(scales);
    decisions_["mappings"].push_back({{"smooth", mapping.smooth},
                                      {"ratio", candidates[chosen].ratio},
                                      {"duo_scaling", candidates[chosen].duo},
                                      {"smallest_scale", smallest},
                                      {"largest_scale", largest},
                                      {"initial_loss", initial},
                                      {"loss", limits.bound}});
    return scales;
  }

  // The candidates that a part of the samples likes best, in order, and the identity.
  template <class LossOf>
  static Result<std::vector<size_t>> shortlist(size_t num_candidates, int64_t num_tokens,
                                               const LossOf& loss_of) {
    LayerPass::ReplayLimits part;
    part.max_tokens = std::max<int64_t>(1, num_tokens / kShortlistPart);
    std::vector<std::pair<double, size_t>> ranked;
    for (size_t i = 1; i < num_candidates; ++i) {
      NB_TRY(const double loss, loss_of(i, part));
      ranked.emplace_back(loss, i);
    }
    std::ranges::sort(ranked);
    std::vector<size_t> kept = {0};
    for (size_t i = 0; i < std::min(kShortlistSize, ranked.size()); ++i)
      kept.push_back(ranked[i].second);
    std::ranges::sort(kept);
    return kept;
  }

  // Mean of the columns that share a scale, and the way back.
  static std::vector<double> folded(const std::vector<double>& columns, size_t num_scales) {
    if (num_scales == columns.size()) return columns;
    std::vector<double> mean(num_scales);
    for (size_t i = 0; i < columns.size(); ++i) mean[i % num_scales] += columns[i];
    for (double& value : mean)
      value /= static_cast<double>(columns.size()) / static_cast<double>(num_scales);
    return mean;
  }
  static std::vector<double> repeated(const std::vector<double>& scales, size_t num_columns) {
    std::vector<double> columns(num_columns);
    for (size_t i = 0; i < num_columns; ++i) columns[i] = scales[i % scales.size()];
    return columns;
  }

  template <class T>
  static Result<T> named(const std::string& module, Result<T> result) {
    if (!result)
      return make_error(result.error().code, "{}.weight: {}", module, result.error().message);
    return result;
  }

  // Mean squared input of each column after it was multiplied by `factors`.
  static std::vector<float> importance_of(const InputMoments& moments,
                                          const std::vector<double>& factors) {
    std::vector<float> importance;
    if (moments.num_tokens == 0) return importance;
    for (size_t i = 0; i < factors.size(); ++i)
      importance.push_back(static_cast<float>(moments.sum_squares[i] * factors[i] * factors[i] /
                                              static_cast<double>(moments.num_tokens)));
    return importance;
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

  // The sum of x'x after column i was multiplied by factors[i].
  static OwnedTensor hessian(const InputMoments& moments, const std::vector<double>& factors) {
    const auto n = static_cast<int64_t>(factors.size());
    OwnedTensor result(DType::kF32, {n, n});
    float* h = result.view().as<float>();
    for (int64_t i = 0; i < n; ++i)
      for (int64_t k = 0; k < n; ++k)
        h[i * n + k] =
            static_cast<float>(static_cast<double>(moments.gram[static_cast<size_t>(i * n + k)]) *
                               factors[static_cast<size_t>(i)] * factors[static_cast<size_t>(k)]);
    return result;
  }

  Status round_layer(int layer, WorkingLayer& working,
                     const std::map<std::string, std::vector<double>>& input_scales,
                     LayerPass::Recording& recording, OwnedTensor& before, LayerPass& pass) {
    const bool any_rounded_here =
        std::ranges::any_of(groups_, [&](const auto& entry) { return rounds_here(entry.first); });
    if (!propagate_ && !any_rounded_here) return {};
    Stopwatch watch;
    SmoothedLayer layer_values = smoothed_layer(layer, working);
    for (auto& [module, weight] : layer_values.values) {
      const QuantizationGroup* group = group_of(module);
      if (group == nullptr) continue;
      NB_TRY(const auto observer, make_observer(group->observer));
      const InputMoments& moments = recording.inputs[working.linear(module)];
      const auto scales = input_scales.find(module);
      std::vector<double> factors(static_cast<size_t>(weight.view().shape[1]), 1.0);
      if (scales != input_scales.end())
        for (size_t i = 0; i < factors.size(); ++i) factors[i] = 1 / scales->second[i];
      const std::vector<float> importance = importance_of(moments, factors);
      QuantizedWeight rounded;
      if (recipe_.gptq && moments.num_tokens > 0) {
        OwnedTensor second_moments = hessian(moments, factors);
        NB_TRY(rounded, named(module, gptq(weight.view(), second_moments.view(), group->format,
                                           *observer, importance, *recipe_.gptq, pool_)));
        if (options_.mode.has(Improvement::kRefinement))
          refine(weight.view(), second_moments.view(), group->format, {}, rounded, pool_);
      } else {
        NB_TRY(rounded, named(module, round_to_nearest(weight.view(), group->format, *observer,
                                                       importance, pool_)));
      }
      if (rounds_here(module))
        rounded_[module] = pack_weight(weight.view(), rounded, group->format, pool_);
      dequantize_weight(rounded, group->format, weight.view(), pool_);
    }
    summary_.rounding_seconds = watch.seconds();
    if (!propagate_) return {};
    pass.stream() = std::move(before);
    watch = {};
    pass.run(layer, layer_values.layer.weights(), nullptr);
    summary_.forward_seconds = watch.seconds();
    return {};
  }

  const ModelDir& dir_;
  const ModelSpec& spec_;
  const Recipe& recipe_;
  const std::map<std::string, int>& groups_;
  const CalibratedOptions& options_;
  CalibrationJournal& journal_;
  ThreadPool& pool_;
  bool propagate_;
  std::unique_ptr<Device> device_;
  std::vector<std::vector<SmoothingMapping>> mappings_;  // by layer
  Json decisions_;                                       // of the layer at work
  std::map<std::string, PackedWeight> rounded_;          // of the layer at work
  LayerSummary summary_;                                 // of the layer at work
  CalibratedWeights result_;
};

}  // namespace

Result<CalibratedWeights> calibrate(const ModelDir& dir, const ModelSpec& spec,
                                    const Recipe& recipe, const std::map<std::string, int>& groups,
                                    const std::vector<std::vector<int32_t>>& samples,
                                    const CalibratedOptions& options, CalibrationJournal& journal,
                                    ThreadPool& pool) {
  return Calibration(dir, spec, recipe, groups, options, journal, pool).run(samples);
}

}  // namespace nibble
