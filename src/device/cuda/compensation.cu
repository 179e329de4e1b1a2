// Rows are independent: a warp has a row's columns of a block in registers, lane l the columns l,
// l + 32, .. of it. What the block leaves to the other columns is a product of matrices.
#include "device/cuda/compensation.h"

#include <algorithm>

#include "device/cuda/grid_values.cuh"
#include "device/cuda/ordered_products.h"
#include "device/cuda/scalar.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsPerBlock = kThreads / 32;
constexpr int kSlots = kCompensationBlock / 32;  // columns a lane has
constexpr unsigned kAll = 0xffffffffu;

__device__ __forceinline__ int lane() {
  return static_cast<int>(threadIdx.x) % 32;
}
__device__ __forceinline__ int64_t row_of_warp() {
  return int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / 32;
}
unsigned blocks_for_rows(int64_t rows) {
  return static_cast<unsigned>((rows + kRowsPerBlock - 1) / kRowsPerBlock);
}

// Calls body(row, column) for a matrix, a thread each.
template <class Body>
__global__ void each_element_kernel(int64_t columns, Body body) {
  const int64_t column = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (column < columns) body(int64_t{blockIdx.x}, column);
}
template <class Body>
void launch_each_element(int64_t rows, int64_t columns, Body body, cudaStream_t stream) {
  if (rows == 0 || columns == 0) return;
  const dim3 grid(static_cast<unsigned>(rows),
                  static_cast<unsigned>((columns + kThreads - 1) / kThreads));
  each_element_kernel<<<grid, kThreads, 0, stream>>>(columns, body);
  NB_CUDA_LAUNCHED();
}

struct ScaleGram {
  float* gram;
  int64_t n;
  const double* factors;
  __device__ void operator()(int64_t i, int64_t k) const {
    float& value = gram[i * n + k];
    value = static_cast<float>(
        __dmul_rn(__dmul_rn(static_cast<double>(value), factors[i]), factors[k]));
  }
};

struct Diagonal {
  const float* gram;
  int64_t n;
  float* diagonal;
  __device__ void operator()(int64_t, int64_t i) const { diagonal[i] = gram[i * n + i]; }
};

struct Dampened {
  const float* gram;
  int64_t n;
  const int32_t* order;
  double damp;
  double* to;
  __device__ void operator()(int64_t i, int64_t k) const {
    auto value = static_cast<double>(gram[order[i] * n + order[k]]);
    if (i == k) value = value > 0 ? __dadd_rn(value, damp) : 1;
    to[i * n + k] = value;
  }
};

// A weight's values in the order of the loop.
template <class T>
struct InOrder {
  const T* weight;
  int64_t columns;
  const int32_t* order;
  const uint8_t* reached;
  float* to;
  __device__ void operator()(int64_t row, int64_t c) const {
    const int32_t from = order[c];
    to[row * columns + c] = reached[from] != 0 ? to_float(weight[row * columns + from]) : 0;
  }
};

// The columns of a group as the loop has left them.
template <class T>
struct GroupValues {
  const float* values;
  int64_t columns;
  int64_t begin;
  int64_t size;
  T* to;
  __device__ void operator()(int64_t row, int64_t k) const {
    to[row * size + k] = Round<T>::of(values[row * columns + begin + k]);
  }
};

struct KeepRange {
  const float* scale;
  const int8_t* zero_point;
  GridView grid;
  int64_t num_groups;
  int64_t group;
  __device__ void operator()(int64_t, int64_t row) const {
    grid.scale[row * num_groups + group] = scale[row];
    grid.zero_point[row * num_groups + group] = zero_point[row];
  }
};

// What a kernel needs of the grid of a weight.
struct Steps {
  float* scale;
  const int8_t* zero_point;
  int64_t group_size;
  int64_t num_groups;
  float qmin;
  float qmax;
  explicit Steps(const RoundingView& rounding)
      : scale(rounding.grid.scale),
        zero_point(rounding.grid.zero_point),
        group_size(rounding.grid.group_size),
        num_groups(rounding.weight.columns / rounding.grid.group_size),
        qmin(-static_cast<float>(1 << (rounding.grid.num_bits - 1))),
        qmax(-qmin - 1) {}
  __device__ int64_t at(int64_t row, int64_t column) const {
    return row * num_groups + column / group_size;
  }
};

// Columns [begin, begin + size) of the order: integers, and errors [rows, kCompensationBlock]
// divided by the diagonal of u, for the columns behind them.
template <class T>
__global__ void __launch_bounds__(kThreads)
    round_columns_kernel(const float* values, int64_t rows, int64_t columns, int64_t begin,
                         int size, const float* u, const int32_t* order, Steps steps,
                         int8_t* integers, float* errors) {
  const int64_t row = row_of_warp();
  if (row >= rows) return;
  float value[kSlots];
  float scale[kSlots];
  float zero[kSlots];
  float error[kSlots] = {};
  int8_t integer[kSlots] = {};
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    const int c = s * 32 + lane();
    value[s] = zero[s] = 0;
    scale[s] = 1;
    if (c >= size) continue;
    const int64_t at = steps.at(row, order[begin + c]);
    value[s] = values[row * columns + begin + c];
    scale[s] = steps.scale[at];
    zero[s] = static_cast<float>(steps.zero_point[at]);
  }
  const float* factors = u + begin * columns + begin;
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    const int count = min(32, size - s * 32);
#pragma unroll 4
    for (int turn = 0; turn < count; ++turn) {
      const float* factors_of_column = factors + (s * 32 + turn) * columns;
      // Every lane for the column of its own; that of the lane whose turn it is counts.
      const float q = grid_position<T>(value[s], scale[s], zero[s], steps.qmin, steps.qmax);
      const float rest = __fsub_rn(value[s], grid_value<T>(q, scale[s], zero[s]));
      const float of_column =
          __fdiv_rn(__shfl_sync(kAll, rest, turn), factors_of_column[s * 32 + turn]);
      if (lane() == turn) {
        integer[s] = static_cast<int8_t>(q);
        error[s] = of_column;
      }
#pragma unroll
      for (int other = s; other < kSlots; ++other) {
        const int k = other * 32 + lane();
        if (k > s * 32 + turn && k < size)
          value[other] = __fsub_rn(value[other], __fmul_rn(of_column, factors_of_column[k]));
      }
    }
  }
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    const int c = s * 32 + lane();
    if (c >= size) continue;
    integers[row * columns + order[begin + c]] = integer[s];
    errors[row * kCompensationBlock + c] = error[s];
  }
}

// A row's gradients and moves in the block of columns at work. `gram` begins with its row and
// column.
struct BlockOfRow {
  const float* gram;
  int64_t pitch;
  int size;
  double damp;
  double* stored;  // gradients[] go back there
  double gradients[kSlots];
  double moves[kSlots];

  __device__ BlockOfRow(const RefinementLaunch& launch, int64_t row, int64_t begin, int size)
      : pitch(launch.rounding.weight.columns), size(size), damp(launch.damp) {
    gram = launch.gram + begin * pitch + begin;
    stored = launch.gradients + row * pitch + begin;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      gradients[s] = column(s) < size ? stored[column(s)] : 0;
      moves[s] = 0;
    }
  }
  __device__ int column(int slot) const {
    return slot * 32 + lane();
  }
  __device__ void store() const {
#pragma unroll
    for (int s = 0; s < kSlots; ++s)
      if (column(s) < size) stored[column(s)] = gradients[s];
  }
  // The column that `slot` is in lane `turn` moves by what that lane says.
  __device__ void take(int slot, int turn, double move_of_lane) {
    const double move = __shfl_sync(kAll, move_of_lane, turn);
    const float* h = gram + (slot * 32 + turn) * pitch;
#pragma unroll
    for (int s = 0; s < kSlots; ++s)
      if (column(s) < size)
        gradients[s] = __dsub_rn(gradients[s], __dmul_rn(move, static_cast<double>(h[column(s)])));
    if (lane() != turn) return;
    gradients[slot] = __dsub_rn(gradients[slot], __dmul_rn(move, damp));
    moves[slot] = move;
  }
};

// Columns [begin, begin + size): from no gradient of theirs to that of what rounding left.
template <class T>
__global__ void __launch_bounds__(kThreads)
    begin_block_kernel(RefinementLaunch launch, Steps steps, int64_t begin, int size,
                       int64_t width) {
  const int64_t row = row_of_warp();
  if (row >= launch.rounding.weight.rows) return;
  const int64_t columns = launch.rounding.weight.columns;
  BlockOfRow block(launch, row, begin, size);
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    double move = 0;
    if (block.column(s) < size) {
      const int64_t column = begin + block.column(s);
      const int64_t at = steps.at(row, column);
      const float value =
          grid_value<T>(static_cast<float>(launch.rounding.integers[row * columns + column]),
                        steps.scale[at], static_cast<float>(steps.zero_point[at]));
      const float weight =
          to_float(static_cast<const T*>(launch.rounding.weight.values)[row * columns + column]);
      move = -static_cast<double>(__fsub_rn(weight, value));
    }
    for (uint32_t left = __ballot_sync(kAll, move != 0); left != 0; left &= left - 1)
      block.take(s, __ffs(static_cast<int>(left)) - 1, move);
  }
  block.store();
#pragma unroll
  for (int s = 0; s < kSlots; ++s)
    if (block.column(s) < size) launch.moves[row * width + block.column(s)] = block.moves[s];
}

// Columns [begin, begin + size): each integer to where E is smallest, if it falls.
template <class T>
__global__ void __launch_bounds__(kThreads)
    improve_integers_kernel(RefinementLaunch launch, Steps steps, int64_t begin, int size,
                            int64_t width) {
  const int64_t row = row_of_warp();
  if (row >= launch.rounding.weight.rows) return;
  const int64_t columns = launch.rounding.weight.columns;
  if (launch.active[row] == 0) {
    if (lane() == 0) launch.num_moved[row] = 0;
    return;
  }
  BlockOfRow block(launch, row, begin, size);
  bool changed = false;
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    const int c = block.column(s);
    float scale = 1;
    float zero = 0;
    float value = 0;
    float integer = 0;
    double curvature = 0;
    bool open = false;  // this lane's column may still move
    int8_t* const stored = launch.rounding.integers + row * columns + begin + c;
    if (c < size) {
      const int64_t at = steps.at(row, begin + c);
      scale = steps.scale[at];
      zero = static_cast<float>(steps.zero_point[at]);
      integer = static_cast<float>(*stored);
      value = grid_value<T>(integer, scale, zero);
      const float h = block.gram[c * columns + c];
      open = h > 0;
      curvature = __dadd_rn(static_cast<double>(h), launch.damp);
    }
    // All lanes look at their columns; the first that moves does, and those behind it look again.
    while (true) {
      float candidate = integer;
      double move = 0;
      if (open) {
        const double slope = block.gradients[s];
        candidate = grid_position<T>(
            static_cast<float>(__dadd_rn(static_cast<double>(value), __ddiv_rn(slope, curvature))),
            scale, zero, steps.qmin, steps.qmax);
        if (candidate != integer) {
          move = __dsub_rn(static_cast<double>(grid_value<T>(candidate, scale, zero)),
                           static_cast<double>(value));
          const double change =
              __dmul_rn(move, __dsub_rn(__dmul_rn(move, curvature), __dmul_rn(2.0, slope)));
          if (!(change < 0)) move = 0;
        }
      }
      const uint32_t movers = __ballot_sync(kAll, move != 0);
      if (movers == 0) break;
      const int turn = __ffs(static_cast<int>(movers)) - 1;
      block.take(s, turn, move);
      if (lane() == turn) *stored = static_cast<int8_t>(candidate);
      open = open && lane() > turn;
      changed = true;
    }
  }
  block.store();
  int count = 0;
#pragma unroll
  for (int s = 0; s < kSlots; ++s) {
    const uint32_t movers = __ballot_sync(kAll, block.moves[s] != 0);
    if (block.moves[s] != 0) {
      const int place = count + __popc(movers & ((1u << lane()) - 1));
      launch.moved[row * kCompensationBlock + place] = block.column(s);
      launch.moves[row * width + place] = block.moves[s];
    }
    count += __popc(movers);
  }
  if (lane() != 0) return;
  launch.num_moved[row] = count;
  if (changed) launch.changed[row] = 1;
}

// What the few integers that moved in [begin, begin + size) mean for the gradients of the other
// columns. A block of threads for a row and kColumnsTold of its columns.
constexpr int kColumnsTold = 4 * kThreads;
__global__ void __launch_bounds__(kThreads)
    tell_few_kernel(RefinementLaunch launch, int64_t begin, int size, int64_t width) {
  const int64_t row = blockIdx.x;
  const int count = launch.num_moved[row];
  if (count == 0) return;
  const int64_t columns = launch.rounding.weight.columns;
  const int32_t* moved = launch.moved + row * kCompensationBlock;
  const double* moves = launch.moves + row * width;
  double* gradients = launch.gradients + row * columns;
#pragma unroll
  for (int i = 0; i < kColumnsTold / kThreads; ++i) {
    const int64_t column = int64_t{blockIdx.y} * kColumnsTold + i * kThreads + threadIdx.x;
    if (column >= columns || (column >= begin && column < begin + size)) continue;
    double gradient = gradients[column];
    for (int m = 0; m < count; ++m) {
      const float h = launch.gram[(begin + moved[m]) * columns + column];
      gradient = __dsub_rn(gradient, __dmul_rn(moves[m], static_cast<double>(h)));
    }
    gradients[column] = gradient;
  }
}

// The way of a group's values as its scale grows by 1.
struct Way {
  RefinementLaunch launch;
  Steps steps;
  int64_t begin;
  int64_t width;
  __device__ void operator()(int64_t row, int64_t i) const {
    const int64_t at = row * launch.rounding.weight.columns + begin + i;
    const int way = launch.rounding.integers[at] - steps.zero_point[steps.at(row, begin)];
    launch.moves[row * width + i] = launch.active[row] != 0 ? static_cast<double>(way) : 0;
  }
};

// sum + the first `count` lanes' terms, one after the other.
__device__ __forceinline__ double plus_in_order(double sum, double term, int count) {
  for (int i = 0; i < count; ++i) sum = __dadd_rn(sum, __shfl_sync(kAll, term, i));
  return sum;
}

// The best scale along the way in `moves`, whose product with the gram is -`products`; then
// `moves` is what the rounded scale moves.
template <class T>
__global__ void __launch_bounds__(kThreads)
    propose_scales_kernel(RefinementLaunch launch, Steps steps, int64_t begin, int64_t width) {
  const int64_t row = row_of_warp();
  if (row >= launch.rounding.weight.rows || launch.active[row] == 0) return;
  const int64_t columns = launch.rounding.weight.columns;
  const double* gradients = launch.gradients + row * columns + begin;
  double* moves = launch.moves + row * width;
  const double* products = launch.products + row * width;
  const int size = static_cast<int>(steps.group_size);
  double along = 0;
  double curvature = 0;
  for (int first = 0; first < size; first += 32) {
    const int i = first + lane();
    double slope = 0;
    double bend = 0;
    if (i < size) {
      slope = __dmul_rn(moves[i], gradients[i]);
      bend = __dmul_rn(moves[i], __dsub_rn(__dmul_rn(moves[i], launch.damp), products[i]));
    }
    const int count = min(32, size - first);
    along = plus_in_order(along, slope, count);
    curvature = plus_in_order(curvature, bend, count);
  }
  const int64_t at = steps.at(row, begin);
  const float scale = steps.scale[at];
  const float zero = static_cast<float>(steps.zero_point[at]);
  float wanted = scale;
  if (curvature > 0)
    wanted = rounded<T>(
        static_cast<float>(__dadd_rn(static_cast<double>(scale), __ddiv_rn(along, curvature))));
  if (!(wanted > 0) || !isfinite(wanted)) wanted = scale;
  for (int i = lane(); i < size; i += 32) {
    const auto q = static_cast<float>(launch.rounding.integers[row * columns + begin + i]);
    moves[i] = __dsub_rn(static_cast<double>(grid_value<T>(q, wanted, zero)),
                         static_cast<double>(grid_value<T>(q, scale, zero)));
  }
  if (lane() == 0) launch.wanted[row] = wanted;
}

// Keeps the new scale if E falls, and lists the row.
__global__ void __launch_bounds__(kThreads)
    take_scales_kernel(RefinementLaunch launch, Steps steps, int64_t begin, int64_t width) {
  const int64_t row = row_of_warp();
  if (row >= launch.rounding.weight.rows || launch.active[row] == 0) return;
  const int64_t columns = launch.rounding.weight.columns;
  double* gradients = launch.gradients + row * columns + begin;
  double* moves = launch.moves + row * width;
  const double* products = launch.products + row * width;
  const int size = static_cast<int>(steps.group_size);
  double change = 0;
  for (int first = 0; first < size; first += 32) {
    const int i = first + lane();
    double term = 0;
    if (i < size)
      term = __dmul_rn(moves[i], __dsub_rn(__dsub_rn(__dmul_rn(moves[i], launch.damp), products[i]),
                                           __dmul_rn(2.0, gradients[i])));
    change = plus_in_order(change, term, min(32, size - first));
  }
  const int64_t at = steps.at(row, begin);
  const float wanted = launch.wanted[row];
  const bool taken = wanted != steps.scale[at] && change < 0;
  __syncwarp();  // all have read the scale
  if (!taken) return;
  for (int i = lane(); i < size; i += 32)
    gradients[i] =
        __dadd_rn(gradients[i], __dsub_rn(products[i], __dmul_rn(moves[i], launch.damp)));
  if (lane() != 0) return;
  launch.taken[atomicAdd(launch.num_taken + begin / size, 1u)] = static_cast<int32_t>(row);
  steps.scale[at] = wanted;
  launch.changed[row] = 1;
}

// The rows that changed are the next sweep's.
__global__ void end_sweep_kernel(RefinementLaunch launch, uint32_t* any) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row >= launch.rounding.weight.rows) return;
  launch.active[row] = launch.changed[row];
  if (launch.changed[row] != 0) *any = 1;
  launch.changed[row] = 0;
}

// What `moves` in [begin, begin + size) mean for the gradients of the other columns: of all rows,
// or of those listed.
void tell_others(const RefinementLaunch& launch, int64_t begin, int64_t size, int64_t width,
                 const int32_t* listed, const uint32_t* num_listed, cudaStream_t stream) {
  const int64_t columns = launch.rounding.weight.columns;
  const auto tell = [&](int64_t from, int64_t to) {
    launch_subtract_products({.rows = launch.rounding.weight.rows,
                              .columns = to - from,
                              .depth = size,
                              .listed = listed,
                              .num_listed = num_listed},
                             MatrixView<const double>{launch.moves, width},
                             MatrixView<const float>{launch.gram + begin * columns + from, columns},
                             MatrixView<double>{launch.gradients + from, columns}, stream);
  };
  tell(0, begin);
  tell(begin + size, columns);
}

// Where the block that begins there ends. Ranges are found where groups begin, so with a search
// no block reaches beyond a group.
int64_t end_of_block(const GptqLaunch& launch, int64_t begin) {
  const int64_t columns = launch.rounding.weight.columns;
  const int64_t group_size = launch.rounding.grid.group_size;
  int64_t end = std::min(begin + kCompensationBlock, columns);
  if (launch.search != nullptr) end = std::min(end, (begin / group_size + 1) * group_size);
  return end;
}

template <class T>
void find_group_ranges(const GptqLaunch& launch, int64_t begin, cudaStream_t stream) {
  const WeightView& weight = launch.rounding.weight;
  const GroupSearch& search = *launch.search;
  GridView grid = launch.rounding.grid;
  const int64_t size = grid.group_size;
  launch_each_element(
      weight.rows, size,
      GroupValues<T>{launch.values, weight.columns, begin, size, static_cast<T*>(search.values)},
      stream);
  grid.scale = search.scale;
  grid.zero_point = search.zero_point;
  RangeSearchLaunch ranges = search.ranges;
  if (ranges.by_importance) ranges.importance += begin;
  launch_find_ranges({search.values, weight.type, weight.rows, size}, ranges, grid, stream);
  launch_each_element(1, weight.rows,
                      KeepRange{search.scale, search.zero_point, launch.rounding.grid,
                                weight.columns / size, begin / size},
                      stream);
}

}  // namespace

void launch_scale_gram(float* gram, int64_t n, const double* factors, cudaStream_t stream) {
  launch_each_element(n, n, ScaleGram{gram, n, factors}, stream);
}

void launch_diagonal(const float* gram, int64_t n, float* diagonal, cudaStream_t stream) {
  launch_each_element(1, n, Diagonal{gram, n, diagonal}, stream);
}

void launch_dampened(const float* gram, int64_t n, const int32_t* order, double damp, double* to,
                     cudaStream_t stream) {
  launch_each_element(n, n, Dampened{gram, n, order, damp, to}, stream);
}

RoundingView RoundingView::part(int64_t begin, int64_t end) const {
  RoundingView view = *this;
  const int64_t num_groups = weight.columns / grid.group_size;
  view.weight.values = static_cast<std::byte*>(weight.values) +
                       static_cast<size_t>(begin * weight.columns) * scalar_size(weight.type);
  view.weight.rows = end - begin;
  view.grid.scale += begin * num_groups;
  view.grid.zero_point += begin * num_groups;
  view.integers += begin * weight.columns;
  return view;
}

void launch_gptq(const GptqLaunch& launch, cudaStream_t stream) {
  const WeightView& weight = launch.rounding.weight;
  const int64_t rows = weight.rows;
  const int64_t columns = weight.columns;
  if (rows == 0) return;
  const Steps steps(launch.rounding);
  with_type(weight.type, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_each_element(rows, columns,
                        InOrder<T>{static_cast<const T*>(weight.values), columns, launch.order,
                                   launch.reached, launch.values},
                        stream);
    for (int64_t begin = 0; begin < columns;) {
      const int64_t end = end_of_block(launch, begin);
      if (launch.search != nullptr && begin % steps.group_size == 0)
        find_group_ranges<T>(launch, begin, stream);
      round_columns_kernel<T><<<blocks_for_rows(rows), kThreads, 0, stream>>>(
          launch.values, rows, columns, begin, static_cast<int>(end - begin), launch.u,
          launch.order, steps, launch.rounding.integers, launch.errors);
      NB_CUDA_LAUNCHED();
      launch_subtract_products({.rows = rows, .columns = columns - end, .depth = end - begin},
                               MatrixView<const float>{launch.errors, kCompensationBlock},
                               MatrixView<const float>{launch.u + begin * columns + end, columns},
                               MatrixView<float>{launch.values + end, columns}, stream);
      begin = end;
    }
  });
}

int64_t refinement_width(int64_t group_size) {
  return std::max(kCompensationBlock, group_size);
}

void launch_begin_refinement(const RefinementLaunch& launch, cudaStream_t stream) {
  const WeightView& weight = launch.rounding.weight;
  const auto rows = static_cast<size_t>(weight.rows);
  const int64_t columns = weight.columns;
  const int64_t width = refinement_width(launch.rounding.grid.group_size);
  if (rows == 0) return;
  NB_CUDA(cudaMemsetAsync(launch.gradients, 0, rows * static_cast<size_t>(columns) * sizeof(double),
                          stream));
  NB_CUDA(cudaMemsetAsync(launch.active, 1, rows, stream));
  NB_CUDA(cudaMemsetAsync(launch.changed, 0, rows, stream));
  with_type(weight.type, [&](auto type) {
    using T = typename decltype(type)::type;
    for (int64_t begin = 0; begin < columns; begin += kCompensationBlock) {
      const int64_t size = std::min(kCompensationBlock, columns - begin);
      begin_block_kernel<T><<<blocks_for_rows(weight.rows), kThreads, 0, stream>>>(
          launch, Steps(launch.rounding), begin, static_cast<int>(size), width);
      NB_CUDA_LAUNCHED();
      tell_others(launch, begin, size, width, nullptr, nullptr, stream);
    }
  });
}

void launch_refinement_sweep(const RefinementLaunch& launch, uint32_t* any, cudaStream_t stream) {
  const WeightView& weight = launch.rounding.weight;
  const int64_t rows = weight.rows;
  const int64_t columns = weight.columns;
  const int64_t group_size = launch.rounding.grid.group_size;
  const int64_t width = refinement_width(group_size);
  if (rows == 0) return;
  const Steps steps(launch.rounding);
  const unsigned blocks = blocks_for_rows(rows);
  const dim3 grid_of_told(static_cast<unsigned>(rows),
                          static_cast<unsigned>((columns + kColumnsTold - 1) / kColumnsTold));
  NB_CUDA(cudaMemsetAsync(launch.num_taken, 0,
                          static_cast<size_t>(columns / group_size) * sizeof(uint32_t), stream));
  with_type(weight.type, [&](auto type) {
    using T = typename decltype(type)::type;
    for (int64_t begin = 0; begin < columns; begin += kCompensationBlock) {
      const int64_t size = std::min(kCompensationBlock, columns - begin);
      improve_integers_kernel<T>
          <<<blocks, kThreads, 0, stream>>>(launch, steps, begin, static_cast<int>(size), width);
      NB_CUDA_LAUNCHED();
      tell_few_kernel<<<grid_of_told, kThreads, 0, stream>>>(launch, begin, static_cast<int>(size),
                                                             width);
      NB_CUDA_LAUNCHED();
    }
    for (int64_t begin = 0; begin < columns; begin += group_size) {
      const auto multiply_moves = [&] {
        launch_subtract_products(
            {.rows = rows, .columns = group_size, .depth = group_size, .from_zero = true},
            MatrixView<const double>{launch.moves, width},
            MatrixView<const float>{launch.gram + begin * columns + begin, columns},
            MatrixView<double>{launch.products, width}, stream);
      };
      launch_each_element(rows, group_size, Way{launch, steps, begin, width}, stream);
      multiply_moves();
      propose_scales_kernel<T><<<blocks, kThreads, 0, stream>>>(launch, steps, begin, width);
      NB_CUDA_LAUNCHED();
      multiply_moves();
      take_scales_kernel<<<blocks, kThreads, 0, stream>>>(launch, steps, begin, width);
      NB_CUDA_LAUNCHED();
      tell_others(launch, begin, group_size, width, launch.taken,
                  launch.num_taken + begin / group_size, stream);
    }
  });
  NB_CUDA(cudaMemsetAsync(any, 0, sizeof(*any), stream));
  end_sweep_kernel<<<static_cast<unsigned>((rows + kThreads - 1) / kThreads), kThreads, 0,
                     stream>>>(launch, any);
  NB_CUDA_LAUNCHED();
}

}  // namespace nibble::cuda
