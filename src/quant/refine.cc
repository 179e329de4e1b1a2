// With r = w - v the error of one row and g = H r, moving v by d changes E by d'Hd - 2 d'g. A
// change of one integer needs one row of H, of one scale the rows of its group. Rows of the weight
// are independent; those of a task go through the columns together, and what a block of columns
// means for the gradients elsewhere is added at its end, which changes no bit.
#include "quant/refine.h"

#include <algorithm>
#include <cmath>

#include "quant/ordered_products.h"

namespace nibble {
namespace {

constexpr int64_t kRowsOfTask = 64;  // of the weight; they share each pass over H
constexpr int64_t kBlock = 128;      // columns whose moves the others learn of together

// The columns [begin, end) at work.
struct Block {
  int64_t begin;
  int64_t end;
};

class Refiner {
 public:
  // Of `rows` rows from `first` on, at most kRowsOfTask.
  Refiner(const Tensor& weight, const Tensor& hessian, double damp, const QuantFormat& format,
          QuantizedWeight& quantized, int64_t first, int64_t rows)
      : h_(hessian.as<const float>()),
        columns_(weight.shape[1]),
        num_groups_(format.num_groups(columns_)),
        group_size_(columns_ / num_groups_),
        damp_(damp),
        dtype_(weight.dtype),
        format_(format),
        quantized_(quantized),
        first_(first),
        rows_(rows),
        moves_pitch_(std::max(kBlock, group_size_)),
        moves_(static_cast<size_t>(rows * moves_pitch_)),
        products_(moves_.size()),
        gradients_(static_cast<size_t>(rows * columns_)),
        energy_(static_cast<size_t>(rows)),
        active_(static_cast<size_t>(rows), true) {
    start(weight);
  }

  RefineResult run(int sweeps) {
    RefineResult result;
    for (const double energy : energy_) result.error_before += energy;
    for (int i = 0; i < sweeps && std::ranges::find(active_, true) != active_.end(); ++i) sweep();
    for (const double energy : energy_) result.error_after += energy;
    return result;
  }

 private:
  double diagonal(int64_t c) const { return static_cast<double>(h_[c * columns_ + c]) + damp_; }
  const float* hessian_row(int64_t c) const { return h_ + c * columns_; }
  double* gradient(int64_t r) { return gradients_.data() + r * columns_; }
  double& move_of(int64_t r, const Block& block, int64_t c) {
    return moves_[static_cast<size_t>(r * moves_pitch_ + c - block.begin)];
  }
  int8_t* integers(int64_t r) { return quantized_.integers.data() + (first_ + r) * columns_; }
  size_t parameter(int64_t r, int64_t c) const {
    return static_cast<size_t>((first_ + r) * num_groups_ + c / group_size_);
  }

  // Gradients and energies of what rounding left.
  void start(const Tensor& weight) {
    std::vector<float> errors(gradients_.size());
    to_float(weight.rows(first_, first_ + rows_), errors.data());
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t c = 0; c < columns_; ++c) {
        const size_t at = parameter(r, c);
        errors[static_cast<size_t>(r * columns_ + c)] -=
            dequantize_value(integers(r)[c], quantized_.parameters.scale[at],
                             quantized_.parameters.zero_point[at], dtype_);
      }
    for (int64_t begin = 0; begin < columns_; begin += kBlock) {
      const Block block{begin, std::min(begin + kBlock, columns_)};
      for (int64_t r = 0; r < rows_; ++r)
        for (int64_t c = block.begin; c < block.end; ++c)
          take(r, block, c, -static_cast<double>(errors[static_cast<size_t>(r * columns_ + c)]));
      tell_others(block);
    }
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t c = 0; c < columns_; ++c)
        energy_[static_cast<size_t>(r)] +=
            static_cast<double>(errors[static_cast<size_t>(r * columns_ + c)]) * gradient(r)[c];
  }

  // One pass over integers, then scales, of the rows in which the last one changed anything.
  void sweep() {
    std::vector<bool> changed(active_.size());
    for (int64_t begin = 0; begin < columns_; begin += kBlock) {
      const Block block{begin, std::min(begin + kBlock, columns_)};
      std::ranges::fill(moves_, 0.0);
      for (int64_t r = 0; r < rows_; ++r)
        if (active_[static_cast<size_t>(r)])
          for (int64_t c = block.begin; c < block.end; ++c)
            if (improve_integer(r, block, c)) changed[static_cast<size_t>(r)] = true;
      tell_others(block);
    }
    for (int64_t g = 0; g < num_groups_; ++g)
      improve_scales({g * group_size_, (g + 1) * group_size_}, &changed);
    active_ = std::move(changed);
  }

  bool improve_integer(int64_t r, const Block& block, int64_t c) {
    if (h_[c * columns_ + c] <= 0) return false;
    const size_t at = parameter(r, c);
    const float scale = quantized_.parameters.scale[at];
    const int8_t zero_point = quantized_.parameters.zero_point[at];
    int8_t& q = integers(r)[c];
    const double slope = gradient(r)[c];
    const double value = static_cast<double>(dequantize_value(q, scale, zero_point, dtype_));
    const auto wanted = static_cast<float>(value + slope / diagonal(c));
    const int8_t candidate = quantize_value(wanted, scale, zero_point, dtype_, format_);
    if (candidate == q) return false;
    const double move =
        static_cast<double>(dequantize_value(candidate, scale, zero_point, dtype_)) - value;
    const double change = move * (move * diagonal(c) - 2 * slope);
    if (!(change < 0)) return false;
    q = candidate;
    energy_[static_cast<size_t>(r)] += change;
    take(r, block, c, move);
    return true;
  }

  // Of all active rows. What the curvature and the change of E need of H, for all of them at once.
  void improve_scales(const Block& group, std::vector<bool>* changed) {
    const auto each_active = [&](auto body) {
      for (int64_t r = 0; r < rows_; ++r)
        if (active_[static_cast<size_t>(r)])
          body(r, quantized_.parameters.scale[parameter(r, group.begin)],
               quantized_.parameters.zero_point[parameter(r, group.begin)],
               integers(r) + group.begin, gradient(r) + group.begin);
    };
    const auto row_of = [&](std::vector<double>& rows, int64_t r) {
      return rows.data() + r * moves_pitch_;
    };
    // products = -(moves H), in the group.
    const auto multiply = [&] {
      std::ranges::fill(products_, 0.0);
      subtract_products({moves_.data(), moves_pitch_},
                        {hessian_row(group.begin) + group.begin, columns_},
                        {products_.data(), moves_pitch_}, rows_, group_size_, group_size_);
    };

    // The way of v as its scale grows by 1.
    std::ranges::fill(moves_, 0.0);
    each_active([&](int64_t r, float, int8_t zero_point, const int8_t* q, const double*) {
      for (int64_t i = 0; i < group_size_; ++i) row_of(moves_, r)[i] = q[i] - zero_point;
    });
    multiply();
    std::vector<float> wanted(static_cast<size_t>(rows_));
    each_active([&](int64_t r, float scale, int8_t zero_point, const int8_t* q,
                    const double* slope) {
      float& to = wanted[static_cast<size_t>(r)];
      double* way = row_of(moves_, r);
      double along = 0;
      double curvature = 0;
      for (int64_t i = 0; i < group_size_; ++i) {
        along += way[i] * slope[i];
        curvature += way[i] * (way[i] * damp_ - row_of(products_, r)[i]);
      }
      to =
          curvature > 0
              ? round_to(dtype_, static_cast<float>(static_cast<double>(scale) + along / curvature))
              : scale;
      if (!(to > 0) || !std::isfinite(to)) to = scale;
      // What the rounded scale moves.
      for (int64_t i = 0; i < group_size_; ++i)
        way[i] = static_cast<double>(dequantize_value(q[i], to, zero_point, dtype_)) -
                 static_cast<double>(dequantize_value(q[i], scale, zero_point, dtype_));
    });
    multiply();
    each_active([&](int64_t r, float& scale, int8_t, const int8_t*, double* slope) {
      const float to = wanted[static_cast<size_t>(r)];
      double* move = row_of(moves_, r);
      double change = 0;
      for (int64_t i = 0; i < group_size_; ++i)
        change += move[i] * (move[i] * damp_ - row_of(products_, r)[i] - 2 * slope[i]);
      if (to == scale || !(change < 0)) {
        std::fill_n(move, group_size_, 0.0);
        return;
      }
      scale = to;
      energy_[static_cast<size_t>(r)] += change;
      (*changed)[static_cast<size_t>(r)] = true;
      for (int64_t i = 0; i < group_size_; ++i)
        slope[i] += row_of(products_, r)[i] - move[i] * damp_;
    });
    tell_others(group);
  }

  // v[c] of row r moved by `move`: gradients in the block.
  void take(int64_t r, const Block& block, int64_t c, double move) {
    move_of(r, block, c) = move;
    if (move == 0) return;
    const float* h = hessian_row(c);
    double* g = gradient(r);
    for (int64_t k = block.begin; k < block.end; ++k) g[k] -= move * static_cast<double>(h[k]);
    g[c] -= move * damp_;
  }
  // ... and outside it, once the block is done.
  void tell_others(const Block& block) {
    const auto tell = [&](int64_t begin, int64_t end) {
      subtract_products({moves_.data(), moves_pitch_}, {hessian_row(block.begin) + begin, columns_},
                        {gradients_.data() + begin, columns_}, rows_, block.end - block.begin,
                        end - begin);
    };
    tell(0, block.begin);
    tell(block.end, columns_);
  }

  const float* h_;
  int64_t columns_;
  int64_t num_groups_;
  int64_t group_size_;
  double damp_;
  DType dtype_;
  const QuantFormat& format_;
  QuantizedWeight& quantized_;
  int64_t first_;
  int64_t rows_;
  int64_t moves_pitch_;
  std::vector<double> moves_;      // of v, in the block at work, [rows, moves_pitch_]
  std::vector<double> products_;   // of moves with H, the same
  std::vector<double> gradients_;  // H r, [rows, columns]
  std::vector<double> energy_;     // [rows]
  std::vector<bool> active_;       // [rows]
};

}  // namespace

RefineResult refine(const Tensor& weight, const Tensor& hessian, const QuantFormat& format,
                    const RefineSettings& settings, QuantizedWeight& quantized, ThreadPool& pool) {
  const int64_t columns = weight.shape[1];
  double mean = 0;
  for (int64_t c = 0; c < columns; ++c)
    mean += static_cast<double>(hessian.as<const float>()[c * columns + c]);
  const double damp = static_cast<double>(settings.dampening) * mean / static_cast<double>(columns);

  std::vector<RefineResult> of_tasks(
      static_cast<size_t>((weight.shape[0] + kRowsOfTask - 1) / kRowsOfTask));
  pool.parallel_for(of_tasks.size(), 1, [&](size_t begin, size_t end) {
    for (size_t task = begin; task < end; ++task) {
      const int64_t first = static_cast<int64_t>(task) * kRowsOfTask;
      Refiner refiner(weight, hessian, damp, format, quantized, first,
                      std::min(kRowsOfTask, weight.shape[0] - first));
      of_tasks[task] = refiner.run(settings.sweeps);
    }
  });
  RefineResult total;
  for (const RefineResult& task : of_tasks) {
    total.error_before += task.error_before;
    total.error_after += task.error_after;
  }
  return total;
}

}  // namespace nibble
