// Every call enqueues on the compute stream; those that return something wait for it.
#include "device/cuda/cuda_quant_ops.h"

#include <algorithm>

#include "device/cuda/calibration.h"
#include "device/cuda/cuda_check.h"
#include "device/cuda/cuda_ops.h"
#include "device/cuda/inverse_factor.h"
#include "device/cuda/matrix_product.h"
#include "tensor/arena.h"

namespace nibble::cuda {
namespace {

constexpr int64_t kNumPowers = int64_t{1} << 15;

WeightView view_of(const Tensor& tensor) {
  const int64_t columns = tensor.shape[-1];
  return {tensor.data, scalar_of(tensor.dtype), columns == 0 ? 0 : tensor.num_elements() / columns,
          columns};
}

}  // namespace

void* GrowingBuffer::reserve_bytes(size_t bytes) {
  if (bytes <= size_) return data_;
  NB_CUDA(cudaFree(data_));  // waits for what uses it
  NB_CUDA(cudaMalloc(&data_, bytes));
  size_ = bytes;
  return data_;
}

// From pageable memory: the copy has left `values` when this returns.
template <class T>
std::remove_const_t<T>* CudaQuantOps::uploaded(std::span<T> values, GrowingBuffer& buffer) {
  auto* to = buffer.reserve<std::remove_const_t<T>>(static_cast<int64_t>(values.size()));
  copy_to(to, values);
  return to;
}
template <class T>
void CudaQuantOps::copy_to(std::remove_const_t<T>* to, std::span<T> values) {
  NB_CUDA(cudaMemcpyAsync(to, values.data(), values.size_bytes(), cudaMemcpyHostToDevice, stream_));
}

// Enqueued.
template <class T>
void CudaQuantOps::to_host(std::span<T> to, const T* from) {
  NB_CUDA(cudaMemcpyAsync(to.data(), from, to.size_bytes(), cudaMemcpyDeviceToHost, stream_));
}

template <class T>
T* CudaQuantOps::cleared(GrowingBuffer& buffer, int64_t count) {
  T* first = buffer.reserve<T>(count);
  NB_CUDA(cudaMemsetAsync(first, 0, sizeof(T), stream_));
  return first;
}

template <class T>
T CudaQuantOps::value_of(GrowingBuffer& buffer) {
  return value_at(buffer.reserve<T>(1));
}

template <class T>
T CudaQuantOps::value_at(const T* at) {
  T value = 0;
  to_host(std::span(&value, 1), at);
  NB_CUDA(cudaStreamSynchronize(stream_));
  return value;
}

GridView CudaQuantOps::grid_of(const Tensor& weight, const QuantFormat& format) {
  const int64_t columns = weight.shape[1];
  const int64_t num_groups = format.num_groups(columns);
  const int64_t count = weight.shape[0] * num_groups;
  return {columns / num_groups, format.num_bits, format.symmetric,
          grid_scale_.reserve<float>(count), grid_zero_.reserve<int8_t>(count)};
}

RangeSearchLaunch CudaQuantOps::prepared(const RangeSearch& search,
                                         std::span<const float> importance) {
  RangeSearchLaunch launch{};
  launch.num_steps = search.num_steps;
  launch.grid = search.grid;
  launch.patience = search.patience;
  launch.improved = flags_.reserve<uint32_t>(2) + 1;
  launch.by_importance = search.error == RangeError::kCubeImportance && search.num_steps > 0;
  if (launch.by_importance) {
    launch.importance = uploaded(importance, importance_);
  } else if (search.powers != nullptr) {
    launch.powers = powers_.reserve<float>(kNumPowers);
    if (search.powers != uploaded_powers_)
      uploaded(std::span(search.powers, static_cast<size_t>(kNumPowers)), powers_);
    uploaded_powers_ = search.powers;
  }
  return launch;
}

int64_t CudaQuantOps::rows_at_once(int64_t columns, size_t bytes_per_value) const {
  const size_t room = workspace_.scratch_size - kLibraryScratch;
  return std::max<int64_t>(
      1, static_cast<int64_t>(room / (static_cast<size_t>(columns) * bytes_per_value)));
}

void CudaQuantOps::scale_columns(const Tensor& weight, std::span<const double> scales) {
  const WeightView view = view_of(weight);
  launch_scale_columns(view, uploaded(scales, scales_), view, nullptr, stream_);
}

void CudaQuantOps::divide_last_rows(const Tensor& weight, std::span<const double> scales) {
  launch_divide_rows(view_of(weight), weight.shape[0] - static_cast<int64_t>(scales.size()),
                     uploaded(scales, scales_), stream_);
}

void CudaQuantOps::add_group_shares(const Tensor& weight, const QuantFormat& format,
                                    std::span<double> sums) {
  const int64_t columns = weight.shape[1];
  const int64_t num_groups = format.num_groups(columns);
  auto* bounds = bounds_.reserve<float>(weight.shape[0] * num_groups);
  double* column_sums = uploaded(sums, column_sums_);
  launch_group_bounds(view_of(weight), columns / num_groups, bounds, stream_);
  launch_group_shares(view_of(weight), columns / num_groups, bounds, column_sums, stream_);
  to_host(sums, column_sums);
  NB_CUDA(cudaStreamSynchronize(stream_));
}

bool CudaQuantOps::all_finite(const Tensor& weight) {
  launch_find_not_finite(view_of(weight), cleared<uint32_t>(flags_, 2), stream_);
  return value_of<uint32_t>(flags_) == 0;
}

void CudaQuantOps::round(const Tensor& weight, const QuantFormat& format, const RangeSearch& search,
                         std::span<const float> importance, RoundedWeight* rounded) {
  const GridView grid = grid_of(weight, format);
  launch_find_ranges(view_of(weight), prepared(search, importance), grid, stream_);
  round_rows(weight, grid, nullptr, rounded);
}

void CudaQuantOps::round_rows(const Tensor& weight, const GridView& grid, const int8_t* integers,
                              RoundedWeight* rounded) {
  const int64_t rows = weight.shape[0];
  const int64_t words = (weight.shape[1] * grid.num_bits + 31) / 32;
  const int64_t piece = rows_at_once(words, sizeof(int32_t));
  auto* packed =
      reinterpret_cast<int32_t*>(static_cast<std::byte*>(workspace_.scratch) + kLibraryScratch);
  auto* partials = partials_.reserve<double>(2 * kRoundingPartials);
  std::vector<double> sums(2 * kRoundingPartials);
  if (rounded != nullptr) rounded->packed.resize(static_cast<size_t>(rows * words));
  for (int64_t begin = 0; begin < rows; begin += piece) {
    const int64_t end = std::min(begin + piece, rows);
    const int blocks =
        launch_round_rows(view_of(weight), grid, integers, begin, end, packed, partials, stream_);
    if (rounded == nullptr) continue;
    to_host(std::span(rounded->packed)
                .subspan(static_cast<size_t>(begin * words),
                         static_cast<size_t>((end - begin) * words)),
            packed);
    to_host(std::span(sums), partials);
    NB_CUDA(cudaStreamSynchronize(stream_));
    for (size_t block = 0; block < static_cast<size_t>(blocks); ++block) {
      rounded->squared_error += sums[2 * block];
      rounded->squared_sum += sums[2 * block + 1];
    }
  }
  if (rounded == nullptr) return;
  const auto num_parameters = static_cast<size_t>(rows * (weight.shape[1] / grid.group_size));
  rounded->parameters.scale.resize(num_parameters);
  rounded->parameters.zero_point.resize(num_parameters);
  to_host(std::span(rounded->parameters.scale), grid.scale);
  to_host(std::span(rounded->parameters.zero_point), grid.zero_point);
  NB_CUDA(cudaStreamSynchronize(stream_));
}

void CudaQuantOps::scale_gram(const Tensor& gram, std::span<const double> factors) {
  launch_scale_gram(gram.as<float>(), gram.shape[0], uploaded(factors, factors_), stream_);
}

// What compensate() has in the device's memory, counted and placed by the same walk.
struct CudaQuantOps::CompensationRoom {
  // Of these, one after the other: the matrix that is inverted, doubles [columns, columns]; the
  // weight's values as the loop changes them, floats [rows, columns]; gradients of refinement,
  // doubles [rows_at_once, columns].
  double* work;
  float* u;  // [columns, columns]
  double* factor_scratch;
  float* diagonal;
  int32_t* order;
  uint8_t* reached;
  int8_t* integers;  // [rows, columns]
  float* errors;     // [rows, kCompensationBlock]
  GroupSearch groups;
  int64_t rows_at_once;  // of refinement
  double *moves, *products;
  int32_t *moved, *num_moved;
  float* wanted;
  int32_t* taken;
  uint32_t* num_taken;
  uint8_t *active, *changed;
  uint32_t* flag;

  CompensationRoom(int64_t rows, int64_t columns, const QuantFormat& format, Arena& arena) {
    const int64_t group_size = columns / format.num_groups(columns);
    const int64_t most = std::max(columns * columns * int64_t{sizeof(double)},
                                  rows * columns * int64_t{sizeof(float)});
    work = take<double>(most / int64_t{sizeof(double)} + 1, arena);
    u = take<float>(columns * columns, arena);
    factor_scratch = take<double>(inverse_factor_scratch(columns), arena);
    diagonal = take<float>(columns, arena);
    order = take<int32_t>(columns, arena);
    reached = take<uint8_t>(columns, arena);
    integers = take<int8_t>(rows * columns, arena);
    errors = take<float>(rows * kCompensationBlock, arena);
    groups.values = take<float>(rows * group_size, arena);  // or narrower
    groups.scale = take<float>(rows, arena);
    groups.zero_point = take<int8_t>(rows, arena);
    rows_at_once = std::clamp<int64_t>(most / (columns * int64_t{sizeof(double)}), 1,
                                       std::max<int64_t>(rows, 1));
    moves = take<double>(rows_at_once * refinement_width(group_size), arena);
    products = take<double>(rows_at_once * refinement_width(group_size), arena);
    moved = take<int32_t>(rows_at_once * kCompensationBlock, arena);
    num_moved = take<int32_t>(rows_at_once, arena);
    wanted = take<float>(rows_at_once, arena);
    taken = take<int32_t>(rows_at_once, arena);
    num_taken = take<uint32_t>(columns / group_size, arena);
    active = take<uint8_t>(rows_at_once, arena);
    changed = take<uint8_t>(rows_at_once, arena);
    flag = take<uint32_t>(1, arena);
  }

 private:
  template <class T>
  static T* take(int64_t count, Arena& arena) {
    return static_cast<T*>(
        arena.allocate(static_cast<size_t>(count) * sizeof(T), "compensated rounding"));
  }
};

size_t CudaQuantOps::compensation_bytes(int64_t rows, int64_t columns,
                                        const QuantFormat& format) const {
  Arena counted;
  const CompensationRoom room(rows, columns, format, counted);
  return counted.peak();
}

bool CudaQuantOps::invert(const Tensor& gram, const ColumnOrder& order, float dampening,
                          const CompensationRoom& room) {
  const int64_t n = gram.shape[0];
  for (const double damp : dampings(order, dampening)) {
    launch_dampened(gram.as<const float>(), n, room.order, damp, room.work, stream_);
    launch_inverse_factor(room.work, n, room.factor_scratch, room.u, room.flag, stream_);
    if (value_at(room.flag) == 0) return true;
  }
  return false;
}

void CudaQuantOps::refine(const RoundingView& rounding, const Tensor& gram, double damp, int sweeps,
                          const CompensationRoom& room) {
  const int64_t rows = rounding.weight.rows;
  for (int64_t begin = 0; begin < rows; begin += room.rows_at_once) {
    const RefinementLaunch launch{
        .rounding = rounding.part(begin, std::min(begin + room.rows_at_once, rows)),
        .gram = gram.as<const float>(),
        .damp = damp,
        .gradients = room.work,
        .moves = room.moves,
        .products = room.products,
        .moved = room.moved,
        .num_moved = room.num_moved,
        .wanted = room.wanted,
        .taken = room.taken,
        .num_taken = room.num_taken,
        .active = room.active,
        .changed = room.changed};
    launch_begin_refinement(launch, stream_);
    for (int sweep = 0; sweep < sweeps; ++sweep) {
      launch_refinement_sweep(launch, room.flag, stream_);
      if (value_at(room.flag) == 0) break;
    }
  }
}

Result<RoundedWeight> CudaQuantOps::compensate(const Tensor& weight, const Tensor& gram,
                                               const QuantFormat& format, const RangeSearch& search,
                                               std::span<const float> importance,
                                               const Compensation& compensation) {
  const int64_t n = gram.shape[0];
  const GptqSettings& settings = compensation.gptq;
  Arena arena(compensation.room, compensation_bytes(weight.shape[0], n, format));
  const CompensationRoom room(weight.shape[0], n, format, arena);

  std::vector<float> diagonal(static_cast<size_t>(n));
  launch_diagonal(gram.as<const float>(), n, room.diagonal, stream_);
  to_host(std::span(diagonal), room.diagonal);
  NB_CUDA(cudaStreamSynchronize(stream_));
  NB_TRY(const ColumnOrder order, column_order(diagonal, settings.act_order));
  copy_to(room.order, std::span(order.columns));
  copy_to(room.reached, std::span(order.reached));
  if (!invert(gram, order, settings.dampening, room)) return not_positive_definite();

  const GridView grid = grid_of(weight, format);
  const RoundingView rounding{view_of(weight), grid, room.integers};
  GroupSearch groups = room.groups;
  groups.ranges = prepared(search, importance);
  if (settings.act_order) launch_find_ranges(rounding.weight, groups.ranges, grid, stream_);
  launch_gptq({.rounding = rounding,
               .order = room.order,
               .reached = room.reached,
               .u = room.u,
               .values = reinterpret_cast<float*>(room.work),
               .errors = room.errors,
               .search = settings.act_order ? nullptr : &groups},
              stream_);
  if (const auto& refinement = compensation.refinement)
    refine(rounding, gram, static_cast<double>(refinement->dampening) * order.mean,
           refinement->sweeps, room);
  RoundedWeight rounded;
  round_rows(weight, grid, room.integers, &rounded);
  return rounded;
}

bool CudaQuantOps::trial_weight(const Tensor& weight, std::span<const double> scales,
                                std::span<const double> factors, const QuantFormat& format,
                                const RangeSearch& search, std::span<const float> importance,
                                const Tensor& out) {
  launch_scale_columns(view_of(weight), uploaded(scales, scales_), view_of(out),
                       cleared<uint32_t>(flags_, 2), stream_);
  const GridView grid = grid_of(out, format);
  launch_find_ranges(view_of(out), prepared(search, importance), grid, stream_);
  launch_snap_to_grid(view_of(out), grid, uploaded(factors, factors_), stream_);
  return value_of<uint32_t>(flags_) == 0;
}

void CudaQuantOps::add_moments(const Tensor& x, const Tensor& sums) {
  launch_moments(view_of(x), sums.as<double>(), stream_);
}

// Row-major x [tokens, n] is column-major X [n, tokens]: gram = X X'.
void CudaQuantOps::add_gram(const Tensor& x, const Tensor& gram) {
  const WeightView view = view_of(x);
  if (view.rows == 0) return;
  const MatrixProduct product{.m = view.columns,
                              .n = view.columns,
                              .k = view.rows,
                              .b_transposed = true,
                              .a_pitch = view.columns,
                              .b_pitch = view.columns,
                              .c_pitch = view.columns,
                              .type = view.type,
                              .c_type = Scalar::kF32,
                              .accumulate = true};
  if (view.columns % 8 == 0 && can_multiply(product)) {
    multiply(product, view.values, view.values, gram.data, workspace_, stream_);
  } else {
    launch_gram(view, gram.as<float>(), stream_);
  }
}

void CudaQuantOps::add_squared_difference(const Tensor& a, const Tensor& b, double* sum) {
  double* result = cleared<double>(sums_, 1 + kPartialSums);
  launch_pair_sum(PairSum::kSquaredDifference, a.data, b.data, scalar_of(a.dtype), a.num_elements(),
                  result + 1, result, stream_);
  *sum += value_of<double>(sums_);
}

double CudaQuantOps::output_error(const Tensor& weight, const Tensor& trial, const Tensor& gram) {
  const int64_t rows = weight.shape[0];
  const int64_t n = weight.shape[1];
  const Scalar type = scalar_of(weight.dtype);
  const int64_t piece = std::min(rows, rows_at_once(n, 2 * sizeof(float)));
  auto* difference =
      reinterpret_cast<float*>(static_cast<std::byte*>(workspace_.scratch) + kLibraryScratch);
  float* moved = difference + piece * n;  // difference gram
  double* sum = cleared<double>(sums_, 1 + kPartialSums);
  for (int64_t begin = 0; begin < rows; begin += piece) {
    const int64_t count = std::min(piece, rows - begin);
    launch_difference(weight.rows(begin, begin + count).data, trial.rows(begin, begin + count).data,
                      type, count * n, difference, stream_);
    const MatrixProduct product{.m = n,
                                .n = count,
                                .k = n,
                                .a_pitch = n,
                                .b_pitch = n,
                                .c_pitch = n,
                                .type = Scalar::kF32,
                                .c_type = Scalar::kF32};
    if (n % 4 == 0 && can_multiply(product)) {
      multiply(product, gram.data, difference, moved, workspace_, stream_);
    } else {
      launch_gram_product(difference, gram.as<const float>(), count, n, moved, stream_);
    }
    launch_pair_sum(PairSum::kProduct, difference, moved, Scalar::kF32, count * n, sum + 1, sum,
                    stream_);
  }
  return value_of<double>(sums_);
}

}  // namespace nibble::cuda
