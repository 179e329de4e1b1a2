// With r = w - v the error of one row and g = H r, moving v by d changes E by d'Hd - 2 d'g. A
// change of one integer needs one row of H, of one scale the rows of its group. Rows of the weight
// are independent; those of a task go through the columns together, and what a block of columns
// means for the gradients elsewhere is added at its end, which changes no bit.
#include "quant/refine.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "device/column_order.h"
#include "quant/ordered_products.h"

namespace nibble {
namespace {

constexpr size_t kRowsOfTask = 64;  // of the weight; they share each pass over H
constexpr int64_t kBlock = 128;     // columns whose moves the others learn of together

// The columns [begin, end) at work.
struct Block {
  int64_t begin;
  int64_t end;
  int64_t size() const { return end - begin; }
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
  double* moves(int64_t r, const Block& block) { return moves_.data() + r * block.size(); }
  double* products(int64_t r, const Block& block) { return products_.data() + r * block.size(); }
  int8_t* integers(int64_t r) { return quantized_.integers.data() + (first_ + r) * columns_; }
  size_t parameter(int64_t r, int64_t c) const {
    return static_cast<size_t>((first_ + r) * num_groups_ + c / group_size_);
  }

  Block block_at(int64_t begin) const { return {begin, std::min(begin + kBlock, columns_)}; }
  void begin_block(const Block& block) {
    moves_.assign(static_cast<size_t>(rows_ * block.size()), 0.0);
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
      const Block block = block_at(begin);
      begin_block(block);
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
    std::vector<int64_t> rows;
    for (int64_t r = 0; r < rows_; ++r)
      if (active_[static_cast<size_t>(r)]) rows.push_back(r);
    active_.assign(active_.size(), false);
    for (int64_t begin = 0; begin < columns_; begin += kBlock) {
      const Block block = block_at(begin);
      begin_block(block);
      for (const int64_t r : rows)
        for (int64_t c = block.begin; c < block.end; ++c)
          if (improve_integer(r, block, c)) active_[static_cast<size_t>(r)] = true;
      tell_others(block);
    }
    for (int64_t g = 0; g < num_groups_; ++g)
      improve_scales({g * group_size_, (g + 1) * group_size_}, rows);
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

  // What the curvature and the change of E need of H comes for all rows at once.
  void improve_scales(const Block& group, std::span<const int64_t> rows) {
    begin_block(group);
    // The way of v as its scale grows by 1.
    for (const int64_t r : rows) {
      const int8_t zero_point = quantized_.parameters.zero_point[parameter(r, group.begin)];
      for (int64_t i = 0; i < group_size_; ++i)
        moves(r, group)[i] = integers(r)[group.begin + i] - zero_point;
    }
    multiply_moves(group);
    std::vector<float> wanted(static_cast<size_t>(rows_));
    for (const int64_t r : rows) wanted[static_cast<size_t>(r)] = propose_scale(r, group);
    multiply_moves(group);
    for (const int64_t r : rows)
      if (take_scale(r, group, wanted[static_cast<size_t>(r)]))
        active_[static_cast<size_t>(r)] = true;
    tell_others(group);
  }

  // products = -(moves H), in the group.
  void multiply_moves(const Block& group) {
    products_.assign(moves_.size(), 0.0);
    subtract_products({moves_.data(), group_size_},
                      {hessian_row(group.begin) + group.begin, columns_},
                      {products_.data(), group_size_}, rows_, group_size_, group_size_);
  }

  // The best scale along the way in `moves`, which then holds what the rounded scale moves.
  float propose_scale(int64_t r, const Block& group) {
    const size_t at = parameter(r, group.begin);
    const float scale = quantized_.parameters.scale[at];
    const int8_t zero_point = quantized_.parameters.zero_point[at];
    double* way = moves(r, group);
    double along = 0;
    double curvature = 0;
    for (int64_t i = 0; i < group_size_; ++i) {
      along += way[i] * gradient(r)[group.begin + i];
      curvature += way[i] * (way[i] * damp_ - products(r, group)[i]);
    }
    float wanted = scale;
    if (curvature > 0)
      wanted = round_to(dtype_, static_cast<float>(static_cast<double>(scale) + along / curvature));
    if (!(wanted > 0) || !std::isfinite(wanted)) wanted = scale;
    for (int64_t i = 0; i < group_size_; ++i) {
      const int8_t q = integers(r)[group.begin + i];
      way[i] = static_cast<double>(dequantize_value(q, wanted, zero_point, dtype_)) -
               static_cast<double>(dequantize_value(q, scale, zero_point, dtype_));
    }
    return wanted;
  }

  // False, and `moves` zero, unless E falls.
  bool take_scale(int64_t r, const Block& group, float wanted) {
    float& scale = quantized_.parameters.scale[parameter(r, group.begin)];
    double* move = moves(r, group);
    double* slope = gradient(r) + group.begin;
    double change = 0;
    for (int64_t i = 0; i < group_size_; ++i)
      change += move[i] * (move[i] * damp_ - products(r, group)[i] - 2 * slope[i]);
    if (wanted == scale || !(change < 0)) {
      std::fill_n(move, group_size_, 0.0);
      return false;
    }
    scale = wanted;
    energy_[static_cast<size_t>(r)] += change;
    for (int64_t i = 0; i < group_size_; ++i) slope[i] += products(r, group)[i] - move[i] * damp_;
    return true;
  }

  // v[c] of row r moved by `move`: gradients in the block.
  void take(int64_t r, const Block& block, int64_t c, double move) {
    moves(r, block)[c - block.begin] = move;
    if (move == 0) return;
    const float* h = hessian_row(c);
    double* g = gradient(r);
    for (int64_t k = block.begin; k < block.end; ++k) g[k] -= move * static_cast<double>(h[k]);
    g[c] -= move * damp_;
  }
  // ... and outside it, once the block is done.
  void tell_others(const Block& block) {
    const auto tell = [&](int64_t begin, int64_t end) {
      subtract_products({moves_.data(), block.size()}, {hessian_row(block.begin) + begin, columns_},
                        {gradients_.data() + begin, columns_}, rows_, block.size(), end - begin);
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
  std::vector<double> moves_;      // of v, in the block at work, [rows, its size]
  std::vector<double> products_;   // of moves with H, the same
  std::vector<double> gradients_;  // H r, [rows, columns]
  std::vector<double> energy_;     // [rows]
  std::vector<bool> active_;       // [rows]
};

}  // namespace

RefineResult refine(const Tensor& weight, const Tensor& hessian, const QuantFormat& format,
                    const RefineSettings& settings, QuantizedWeight& quantized, ThreadPool& pool) {
  const double damp = static_cast<double>(settings.dampening) * mean_of(diagonal_of(hessian));
  const auto num_rows = static_cast<size_t>(weight.shape[0]);
  std::vector<RefineResult> of_tasks((num_rows + kRowsOfTask - 1) / kRowsOfTask);
  pool.for_pieces(num_rows, kRowsOfTask, [&](size_t begin, size_t end) {
    Refiner refiner(weight, hessian, damp, format, quantized, static_cast<int64_t>(begin),
                    static_cast<int64_t>(end - begin));
    of_tasks[begin / kRowsOfTask] = refiner.run(settings.sweeps);
  });
  RefineResult total;
  for (const RefineResult& task : of_tasks) {
    total.error_before += task.error_before;
    total.error_after += task.error_after;
  }
  return total;
}

}  // namespace nibble
