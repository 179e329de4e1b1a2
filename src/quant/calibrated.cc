// Per layer: record, search each mapping, round, and hand the activations on.
#include "quant/calibrated.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>

#include "base/format.h"
#include "base/log.h"
#include "model/weights.h"
#include "quant/host_quant_ops.h"
#include "quant/rtn.h"

namespace nibble {
namespace {

// How far smoothing alone may move a layer's output; 16-bit activations move it by themselves.
constexpr double kSmoothingLimit = 0x1p-7;
constexpr double kSmoothingLimit16Bit = 0x1p-6;

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
              CalibrationJournal& journal, Device& device, ThreadPool& pool)
      : dir_(dir),
        spec_(spec),
        recipe_(recipe),
        groups_(groups),
        options_(options),
        journal_(journal),
        device_(device),
        pool_(pool),
        host_ops_(device.ops(), pool),
        ops_(device.quant_ops() != nullptr ? *device.quant_ops() : host_ops_),
        on_host_(device.memory().is_host),
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
    NB_TRY(LayerPass pass,
           LayerPass::start(dir_, spec_, device_, ops_, samples, options_.spill, pool_));
    NB_TRY_STATUS(reserve_compensation());
    NB_TRY_STATUS(reserve_recordings(pass));
    Status done = run_layers(pass);
    const Status settled = journal_.settle();  // in any case: it reads the stream
    NB_TRY_STATUS(done);
    NB_TRY_STATUS(settled);
    return std::move(result_);
  }

 private:
  Status run_layers(LayerPass& pass) {
    const int num_layers = static_cast<int>(spec_.layers.size());
    const int num_resumed = journal_.num_finished();
    if (num_resumed > 0) NB_TRY_STATUS(journal_.restore_stream(pass.stream()));
    if (options_.started) options_.started();
    for (int layer = 0; layer < num_layers; ++layer) {
      if (layer >= num_resumed) {
        summary_ = {};
        decisions_ = {{"smoothing", Json::object()}, {"mappings", Json::array()}};
        decisions_["smoothing_check"] = 0.0;
        NB_TRY_STATUS(quantize_layer(layer, pass));
        NB_TRY_STATUS(journal_.record(decisions_, std::exchange(rounded_, {}), pass.stream(),
                                      layer + 1 == num_layers));
      }
      take(layer, layer < num_resumed);
    }
    return {};
  }

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
    summary_.peak_device_bytes = peak_device_bytes_;
    summary_.smoothing_check = decisions["smoothing_check"].get<double>();
    summary_.mappings = &decisions["mappings"];
    if (options_.progress) options_.progress(summary_);
  }

  bool is_quantized(const SmoothingMapping& mapping) const {
    return std::ranges::any_of(
        mapping.balance, [&](const std::string& module) { return group_of(module) != nullptr; });
  }

  // Whether this layer's weights are rounded here, and not while they stream to disk: where that
  // takes the calibration data, or a device that is faster at it.
  bool rounds_here(const std::string& module) const {
    const QuantizationGroup* group = group_of(module);
    if (group == nullptr) return false;
    return recipe_.gptq || !on_host_ || observer_of(*group).needs_importance();
  }

  static Observer observer_of(const QuantizationGroup& group) {
    return make_observer(group.observer).value();  // the recipe was read with this name
  }

  void note_memory() {
    peak_device_bytes_ = std::max(peak_device_bytes_, device_.held_by_this_process());
  }

  Status reserve_compensation() {
    if (!recipe_.gptq) return {};
    size_t most = 0;
    for (const LinearModule& module : linear_modules(spec_))
      if (const QuantizationGroup* group = group_of(module.name))
        most = std::max(
            most, ops_.compensation_bytes(module.out_features, module.in_features, group->format));
    NB_TRY(compensation_room_, device_.allocate(most, "GPTQ"));
    return {};
  }

  // What the search, rounding and the moments of one layer take of the device beside the layer.
  Status reserve_recordings(LayerPass& pass) {
    std::map<std::string, size_t> gram_bytes;
    for (const LinearModule& module : linear_modules(spec_))
      gram_bytes[module.name] =
          static_cast<size_t>(module.in_features) * static_cast<size_t>(module.in_features) * 4;
    bool mixer = false;
    bool mlp = false;
    size_t most_grams = 0;  // of a layer
    for (size_t layer = 0; layer < mappings_.size(); ++layer) {
      size_t grams = 0;
      for (const SmoothingMapping& mapping : mappings_[layer]) {
        if (!is_quantized(mapping)) continue;
        mixer |= mapping.parent == SmoothingParent::kMixer;
        mlp |= mapping.parent == SmoothingParent::kMlp;
        if (mapping.parent == SmoothingParent::kLinear && !recipe_.gptq)
          grams += gram_bytes[mapping.balance[0]];
      }
      const std::string prefix = format("{}layers.{}.", spec_.weight_prefix, layer);
      if (recipe_.gptq)
        for (const auto& [module, group] : groups_)
          if (module.starts_with(prefix)) grams += gram_bytes[module];
      most_grams = std::max(most_grams, grams);
    }
    return pass.reserve_recordings(mixer, mlp, 2 * pass.layer_bytes() + most_grams);
  }

  Status quantize_layer(int layer, LayerPass& pass) {
    Stopwatch watch;
    Arena arena = pass.layer_arena();
    NB_TRY(WorkingLayer working, WorkingLayer::load(dir_, spec_, layer, device_, arena));
    summary_.loading_seconds = watch.seconds();
    std::vector<std::string> quantized;
    for (const auto& [module, group] : groups_)
      if (working.linear(module) != nullptr) quantized.push_back(module);
    if (quantized.empty()) {
      NB_TRY_STATUS(journal_.settle());  // it may still be reading the stream
      return pass.run(layer, working.weights(), true);
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
    LayerPass::Recording recording;
    recording.all_experts = options_.all_experts;
    for (const SmoothingMapping& mapping : mappings) {
      recording.mixer |= mapping.parent == SmoothingParent::kMixer;
      recording.mlp |= mapping.parent == SmoothingParent::kMlp;
    }
    watch = {};
    // With error propagation the stream goes on from the rounded layer, not from this one.
    if (!propagate_) NB_TRY_STATUS(journal_.settle());
    NB_TRY_STATUS(pass.run(layer, working.weights(), !propagate_, &recording, want_gram));
    summary_.recording_seconds = watch.seconds();

    std::map<std::string, std::vector<double>> input_scales;  // by balance module
    watch = {};
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
    NB_TRY(SmoothedLayer values, smoothed_layer(layer, working));
    note_memory();
    if (!mappings.empty()) NB_TRY_STATUS(check_smoothing(layer, values, recording, pass));
    return round_layer(layer, working, input_scales, recording, values, pass);
  }

  // Every weight and norm of the layer pointed at a smoothed copy in floating point.
  struct SmoothedLayer {
    WorkingLayer layer;
    std::map<std::string, OwnedTensor> values;
  };
  Result<SmoothedLayer> smoothed_layer(int layer, const WorkingLayer& working) const {
    SmoothedLayer result{working, {}};
    std::vector<std::string> names = {
        format("{}layers.{}.mlp.gate", spec_.weight_prefix, layer)};  // a mixture's router
    for (const LinearModule& module : linear_modules(spec_)) names.push_back(module.name);
    for (const std::string& name : names)
      if (LinearWeight* linear = result.layer.linear(name)) {
        OwnedTensor& weight = result.values[name];
        NB_TRY(weight, smoothed(name, linear->dense));
        linear->dense = weight.view();
      }
    for (const char* name : {"input_layernorm", "post_attention_layernorm", "linear_attn.norm"}) {
      const std::string module = format("{}layers.{}.{}", spec_.weight_prefix, layer, name);
      Tensor* norm = result.layer.norm(module);
      if (norm == nullptr) continue;
      const OwnedTensor values = to_host(device_, *norm);
      result_.plan.apply(module + ".weight", values.view());
      OwnedTensor& copy = result.values[module];
      NB_TRY(copy, copied_to(device_, values.view(), "smoothed norm"));
      *norm = copy.view();
    }
    return result;
  }

  // Smoothing must not change what the layer computes: what it adds to the stream for the first
  // sample, before and after.
  Status check_smoothing(int layer, const SmoothedLayer& smoothed,
                         const LayerPass::Recording& recording, LayerPass& pass) {
    const Tensor& before = recording.first_output.view();
    NB_TRY(const OwnedTensor after,
           OwnedTensor::on(device_, before.dtype, before.shape, "activations of a sample"));
    device_.copy(after.view().data, recording.first_input.view().data, before.num_bytes());
    pass.run_first(layer, smoothed.layer.weights(), after.view());
    double error = 0;
    double total = 0;
    ops_.add_squared_difference(after.view(), before, &error);
    ops_.add_squared_difference(before, recording.first_input.view(), &total);
    const double relative = total > 0 ? std::sqrt(error / total) : 0;
    decisions_["smoothing_check"] = relative;
    const double limit = before.dtype == DType::kF32 ? kSmoothingLimit : kSmoothingLimit16Bit;
    if (!(relative <= limit))
      log_warning(
          "layer {}: smoothing alone moves its output by {:.4f} (limit {:.4f}): norm gains too "
          "small for the weights' dtype; --mode best avoids such scales",
          layer, relative, limit);
    return {};
  }

  // The weight of a Linear with the edits decided so far.
  Result<OwnedTensor> smoothed(const std::string& module, const Tensor& original) const {
    NB_TRY(OwnedTensor copy,
           OwnedTensor::on(device_, original.dtype, original.shape, "smoothed weight"));
    device_.copy(copy.view().data, original.data, original.num_bytes());
    result_.plan.apply(module + ".weight", copy.view(), ops_);
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
    const OwnedTensor norm = to_host(device_, *working.norm(mapping.smooth));
    SmoothingPlan trial(options_.norm_rounding, spec_.norm_weight_offset);
    trial.add(mapping, scales);
    const OwnedTensor smoothed_norm = OwnedTensor::copy_of(norm.view());
    trial.apply(mapping.smooth + ".weight", smoothed_norm.view());
    std::vector<float> from(scales.size());
    std::vector<float> to(scales.size());
    to_float(norm.view(), from.data());
    to_float(smoothed_norm.view(), to.data());
    const float offset = trial.norm_offset(mapping.smooth + ".weight");
    for (size_t i = 0; i < factors.size(); ++i)
      if (from[i] + offset != 0)
        factors[i] = static_cast<double>((to[i] + offset) / (from[i] + offset));
    return factors;
  }

  // round(W s) on the grid, times what the input was multiplied with: what a candidate would make
  // of the weight.
  Status make_trial(const std::string& module, const Tensor& weight,
                    const std::vector<double>& scales, const std::vector<double>& input_factors,
                    const InputMoments& moments, const Tensor& trial) const {
    const QuantizationGroup& group = *group_of(module);
    const Observer observer = options_.mode.has(Improvement::kObserverSearch)
                                  ? observer_of(group)
                                  : Observer(Observer::Kind::kMinMax);
    if (ops_.trial_weight(
            weight, scales, input_factors, group.format, observer.range_search(weight.dtype),
            observer.shares(importance_of(moments, input_factors), weight.shape[1]), trial))
      return {};
    return make_error(ErrorCode::kInvalidArgument, "{}.weight: the weight holds NaN or infinity",
                      module);
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
    std::map<std::string, OwnedTensor> trials;
    WorkingLayer trial = working;
    for (const std::string& module : mapping.balance) {
      const QuantizationGroup* group = group_of(module);
      if (group == nullptr) continue;
      const Tensor& dense = working.linear(module)->dense;
      NB_TRY(current[module], smoothed(module, dense));
      NB_TRY(trials[module], OwnedTensor::on(device_, dense.dtype, dense.shape, "trial weight"));
      statistic.add(current[module].view(), group->format, ops_);
      trial.linear(module)->dense = trials[module].view();
    }
    const std::vector<double> w_mean = folded(statistic.mean(), num_scales);
    note_memory();

    const std::vector<AwqCandidate> candidates = awq_candidates(*recipe_.awq);
    std::vector<LayerPass::Replayed> replayed(candidates.size());
    const auto loss_of = [&](size_t i, const LayerPass::ReplayLimits& limits) -> Result<double> {
      const std::vector<double> scales =
          awq_scales(candidates[i], x_mean, w_mean, options_.mode.has(Improvement::kDeadChannels));
      const std::vector<double> factors =
          repeated(input_factors(mapping, scales, working), num_columns);
      const std::vector<double> column_scales = repeated(scales, num_columns);
      for (const auto& [module, weight] : current)
        NB_TRY_STATUS(make_trial(module, weight.view(), column_scales, factors, moments,
                                 trials[module].view()));
      switch (mapping.parent) {
        case SmoothingParent::kMixer:
          return pass.replay_mixer(layer, trial.weights(), limits, &replayed[i]);
        case SmoothingParent::kMlp:
          return pass.replay_mlp(layer, trial.weights(), limits, &replayed[i]);
        case SmoothingParent::kLinear: {
          const Tensor& weight = current[mapping.balance[0]].view();
          const double error =
              ops_.output_error(weight, trials[mapping.balance[0]].view(), moments.gram.view());
          return error / static_cast<double>(moments.num_tokens * weight.shape[0]);
        }
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
    part.max_tokens = shortlist_tokens(num_tokens);
    std::vector<std::pair<double, size_t>> ranked;
    for (size_t i = 1; i < num_candidates; ++i) {
      NB_TRY(const double loss, loss_of(i, part));
      ranked.emplace_back(loss, i);
    }
    std::ranges::sort(ranked);
    std::vector<size_t> kept = {0};
    for (size_t i = 0; i < std::min(kShortlistSize, ranked.size()); ++i)
      if (ranked[i].first <= kShortlistBehind * ranked[0].first) kept.push_back(ranked[i].second);
    std::ranges::sort(kept);
    return kept;
  }

  // Mean of the columns that share a scale.
  static std::vector<double> folded(const std::vector<double>& columns, size_t num_scales) {
    if (num_scales == columns.size()) return columns;
    std::vector<double> mean(num_scales);
    for (size_t i = 0; i < columns.size(); ++i) mean[i % num_scales] += columns[i];
    for (double& value : mean)
      value /= static_cast<double>(columns.size()) / static_cast<double>(num_scales);
    return mean;
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

  // Rounds what `values` holds of quantized weights in place, and hands the stream on.
  Status round_layer(int layer, WorkingLayer& working,
                     const std::map<std::string, std::vector<double>>& input_scales,
                     LayerPass::Recording& recording, SmoothedLayer& values, LayerPass& pass) {
    const bool any_rounded_here =
        std::ranges::any_of(groups_, [&](const auto& entry) { return rounds_here(entry.first); });
    if (!propagate_ && !any_rounded_here) return {};
    Stopwatch watch;
    for (auto& [module, owned] : values.values) {
      const QuantizationGroup* group = group_of(module);
      if (group == nullptr) continue;
      const Tensor& weight = owned.view();
      const InputMoments& moments = recording.inputs[working.linear(module)];
      const auto scales = input_scales.find(module);
      std::vector<double> factors(static_cast<size_t>(weight.shape[1]), 1.0);
      if (scales != input_scales.end())
        for (size_t i = 0; i < factors.size(); ++i) factors[i] = 1 / scales->second[i];
      if (!ops_.all_finite(weight))
        return make_error(ErrorCode::kInvalidArgument,
                          "{}.weight: the weight holds NaN or infinity", module);
      const Observer observer = observer_of(*group);
      const RangeSearch search = observer.range_search(weight.dtype);
      const std::vector<float> shares =
          observer.shares(importance_of(moments, factors), weight.shape[1]);
      RoundedWeight rounded;
      const bool kept = rounds_here(module);
      if (recipe_.gptq && moments.num_tokens > 0) {
        const Tensor& gram = moments.gram.view();
        ops_.scale_gram(gram, factors);
        Compensation compensation = compensation_of(recipe_, options_.mode);
        compensation.room = compensation_room_.data();
        NB_TRY(rounded, named(module, ops_.compensate(weight, gram, group->format, search, shares,
                                                      compensation)));
      } else {
        ops_.round(weight, group->format, search, shares, kept ? &rounded : nullptr);
      }
      if (kept)
        rounded_[module] =
            pack_weight(std::move(rounded), weight.dtype, weight.shape, group->format);
    }
    summary_.rounding_seconds = watch.seconds();
    if (!propagate_) return {};
    NB_TRY_STATUS(journal_.settle());
    watch = {};
    NB_TRY_STATUS(pass.run(layer, values.layer.weights(), true));
    summary_.forward_seconds = watch.seconds();
    return {};
  }

  const ModelDir& dir_;
  const ModelSpec& spec_;
  const Recipe& recipe_;
  const std::map<std::string, int>& groups_;
  const CalibratedOptions& options_;
  CalibrationJournal& journal_;
  Device& device_;
  ThreadPool& pool_;
  HostQuantOps host_ops_;
  QuantOps& ops_;
  bool on_host_;
  bool propagate_;
  DeviceMemory compensation_room_;
  std::vector<std::vector<SmoothingMapping>> mappings_;  // by layer
  Json decisions_;                                       // of the layer at work
  std::map<std::string, PackedWeight> rounded_;          // of the layer at work
  LayerSummary summary_;                                 // of the layer at work
  size_t peak_device_bytes_ = 0;
  CalibratedWeights result_;
};

}  // namespace

Compensation compensation_of(const Recipe& recipe, const CalibrationMode& mode) {
  Compensation compensation;
  if (recipe.gptq) compensation.gptq = *recipe.gptq;
  if (mode.has(Improvement::kRefinement)) compensation.refinement.emplace();
  return compensation;
}

Result<CalibratedWeights> calibrate(const ModelDir& dir, const ModelSpec& spec,
                                    const Recipe& recipe, const std::map<std::string, int>& groups,
                                    const std::vector<std::vector<int32_t>>& samples,
                                    const CalibratedOptions& options, CalibrationJournal& journal,
                                    Device& device, ThreadPool& pool) {
  return Calibration(dir, spec, recipe, groups, options, journal, device, pool).run(samples);
}

}  // namespace nibble
