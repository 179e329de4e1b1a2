// With r = w - v the error of one row and g = H r, moving v by d changes E by d'Hd - 2 d'g. A
// change of one integer needs one row of H, of one scale the rows of its group.
#include "quant/refine.h"

#include <algorithm>
#include <cmath>

namespace nibble {
namespace {

constexpr size_t kRowsPerTask = 16;  // they share one pass over H at the start

class RowRefiner {
 public:
  RowRefiner(const Tensor& hessian, double damp, DType dtype, const QuantFormat& format)
      : h_(hessian.as<const float>()),
        columns_(hessian.shape[0]),
        damp_(damp),
        dtype_(dtype),
        format_(format) {}

  double diagonal(int64_t c) const { return static_cast<double>(h_[c * columns_ + c]) + damp_; }
  const float* row(int64_t c) const { return h_ + c * columns_; }
  double damp() const { return damp_; }

  // One pass over integers, then scales. gradient = H r, kept up to date. True when it changed
  // anything; *energy falls by what was gained.
  bool sweep(int8_t* integers, float* scale, const int8_t* zero_point, double* gradient,
             double* energy) {
    const int64_t num_groups = format_.num_groups(columns_);
    const int64_t group_size = columns_ / num_groups;
    bool changed = false;
    for (int64_t g = 0; g < num_groups; ++g)
      for (int64_t c = g * group_size; c < (g + 1) * group_size; ++c)
        changed |= improve_integer(c, integers[c], scale[g], zero_point[g], gradient, energy);
    for (int64_t g = 0; g < num_groups; ++g)
      changed |= improve_scale(g * group_size, group_size, integers, scale[g], zero_point[g],
                               gradient, energy);
    return changed;
  }

 private:
  bool improve_integer(int64_t c, int8_t& q, float scale, int8_t zero_point, double* gradient,
                       double* energy) const {
    if (h_[c * columns_ + c] <= 0) return false;
    const double value = static_cast<double>(dequantize_value(q, scale, zero_point, dtype_));
    const auto wanted = static_cast<float>(value + gradient[c] / diagonal(c));
    const int8_t candidate = quantize_value(wanted, scale, zero_point, dtype_, format_);
    if (candidate == q) return false;
    const double move =
        static_cast<double>(dequantize_value(candidate, scale, zero_point, dtype_)) - value;
    const double change = move * (move * diagonal(c) - 2 * gradient[c]);
    if (!(change < 0)) return false;
    q = candidate;
    *energy += change;
    take(c, move, gradient);
    return true;
  }

  bool improve_scale(int64_t first, int64_t size, const int8_t* integers, float& scale,
                     int8_t zero_point, double* gradient, double* energy) {
    move_.resize(static_cast<size_t>(size));
    double along = 0;
    double curvature = 0;
    for (int64_t i = 0; i < size; ++i) {
      const double d = integers[first + i] - zero_point;
      along += d * gradient[first + i];
      curvature += d * d * damp_;
      const float* h = row(first + i) + first;
      for (int64_t k = 0; k < size; ++k)
        curvature += d * (integers[first + k] - zero_point) * static_cast<double>(h[k]);
    }
    if (!(curvature > 0)) return false;
    const float wanted =
        round_to(dtype_, static_cast<float>(static_cast<double>(scale) + along / curvature));
    if (wanted == scale || !(wanted > 0) || !std::isfinite(wanted)) return false;
    double change = 0;
    for (int64_t i = 0; i < size; ++i)
      move_[static_cast<size_t>(i)] =
          static_cast<double>(dequantize_value(integers[first + i], wanted, zero_point, dtype_)) -
          static_cast<double>(dequantize_value(integers[first + i], scale, zero_point, dtype_));
    for (int64_t i = 0; i < size; ++i) {
      const double d = move_[static_cast<size_t>(i)];
      const float* h = row(first + i) + first;
      double product = d * damp_;
      for (int64_t k = 0; k < size; ++k)
        product += static_cast<double>(h[k]) * move_[static_cast<size_t>(k)];
      change += d * (product - 2 * gradient[first + i]);
    }
    if (!(change < 0)) return false;
    scale = wanted;
    *energy += change;
    for (int64_t i = 0; i < size; ++i) take(first + i, move_[static_cast<size_t>(i)], gradient);
    return true;
  }

  // v[c] moved by `move`.
  void take(int64_t c, double move, double* gradient) const {
    if (move == 0) return;
    const float* h = row(c);
    for (int64_t k = 0; k < columns_; ++k) gradient[k] -= move * static_cast<double>(h[k]);
    gradient[c] -= move * damp_;
  }

  const float* h_;
  int64_t columns_;
  double damp_;
  DType dtype_;
  const QuantFormat& format_;
  std::vector<double> move_;
};

}  // namespace

RefineResult refine(const Tensor& weight, const Tensor& hessian, const QuantFormat& format,
                    const RefineSettings& settings, QuantizedWeight& quantized, ThreadPool& pool) {
  const int64_t columns = weight.shape[1];
  const int64_t num_groups = format.num_groups(columns);
  const int64_t group_size = columns / num_groups;
  GroupParameters& parameters = quantized.parameters;
  double mean = 0;
  for (int64_t c = 0; c < columns; ++c)
    mean += static_cast<double>(hessian.as<const float>()[c * columns + c]);
  const double damp = static_cast<double>(settings.dampening) * mean / static_cast<double>(columns);

  std::vector<RefineResult> of_rows(static_cast<size_t>(weight.shape[0]));
  pool.parallel_for(of_rows.size(), kRowsPerTask, [&](size_t begin, size_t end) {
    RowRefiner refiner(hessian, damp, weight.dtype, format);
    const auto first = static_cast<int64_t>(begin);
    const auto rows = static_cast<int64_t>(end) - first;
    std::vector<float> w(static_cast<size_t>(rows * columns));
    to_float(weight.rows(first, first + rows), w.data());
    std::vector<double> gradients(w.size());
    for (int64_t r = 0; r < rows; ++r)  // w becomes w - v
      for (int64_t c = 0; c < columns; ++c) {
        const auto at = static_cast<size_t>((first + r) * num_groups + c / group_size);
        w[static_cast<size_t>(r * columns + c)] -=
            dequantize_value(quantized.integers[static_cast<size_t>((first + r) * columns + c)],
                             parameters.scale[at], parameters.zero_point[at], weight.dtype);
      }
    for (int64_t c = 0; c < columns; ++c) {
      const float* h = refiner.row(c);
      for (int64_t r = 0; r < rows; ++r) {
        const auto error = static_cast<double>(w[static_cast<size_t>(r * columns + c)]);
        double* gradient = gradients.data() + r * columns;
        for (int64_t k = 0; k < columns; ++k) gradient[k] += error * static_cast<double>(h[k]);
        gradient[c] += error * damp;
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      const auto row = static_cast<size_t>(first + r);
      double* gradient = gradients.data() + r * columns;
      double energy = 0;
      for (int64_t c = 0; c < columns; ++c)
        energy += static_cast<double>(w[static_cast<size_t>(r * columns + c)]) * gradient[c];
      of_rows[row].error_before = energy;
      for (int sweep = 0; sweep < settings.sweeps; ++sweep)
        if (!refiner.sweep(quantized.integers.data() + row * static_cast<size_t>(columns),
                           parameters.scale.data() + row * static_cast<size_t>(num_groups),
                           parameters.zero_point.data() + row * static_cast<size_t>(num_groups),
                           gradient, &energy))
          break;
      of_rows[row].error_after = energy;
    }
  });
  RefineResult total;
  for (const RefineResult& row : of_rows) {
    total.error_before += row.error_before;
    total.error_after += row.error_after;
  }
  return total;
}

}  // namespace nibble
