// Elementwise passes, and the range search: a thread per group, which sums its errors in the order
// of the reference, so that both choose the same range. No product and sum may contract.
#include "device/cuda/quantize.h"

#include <algorithm>
#include <type_traits>

#include "device/cuda/grid_values.cuh"
#include "device/cuda/scalar.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMostRowBlocks = 4096;

template <class T>
struct Limits;
template <>
struct Limits<float> {
  static constexpr float kLargest = 3.402823466e38f;
  static constexpr float kEpsilon = 1.1920928955078125e-07f;
};
template <>
struct Limits<Half> {
  static constexpr float kLargest = 65504.0f;
  static constexpr float kEpsilon = 0.0009765625f;
};
template <>
struct Limits<BFloat> {
  static constexpr float kLargest = 3.3895313892515355e38f;
  static constexpr float kEpsilon = 0.0078125f;
};

// to[row, column] = edit(row, column, value) for rows [first, rows), V columns a thread.
template <class From, class To, int V, class Edit>
__global__ void edit_kernel(const From* from, To* to, int64_t first, int64_t rows, int64_t columns,
                            Edit edit) {
  struct alignas(sizeof(From) * V) In {
    From values[V];
  };
  struct alignas(sizeof(To) * V) Out {
    To values[V];
  };
  const int64_t column = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * V;
  if (column >= columns) return;
  for (int64_t row = first + blockIdx.y; row < rows; row += gridDim.y) {
    const In in = *reinterpret_cast<const In*>(from + row * columns + column);
    Out out;
#pragma unroll
    for (int v = 0; v < V; ++v) out.values[v] = edit(row, column + v, in.values[v]);
    *reinterpret_cast<Out*>(to + row * columns + column) = out;
  }
}

template <class From, class To, class Edit>
void launch_edit(const From* from, To* to, int64_t first, int64_t rows, int64_t columns, Edit edit,
                 cudaStream_t stream) {
  if (rows <= first || columns == 0) return;
  const auto launch = [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    const int64_t threads = (columns + kWidth - 1) / kWidth;
    const dim3 grid(static_cast<unsigned>((threads + kThreads - 1) / kThreads),
                    static_cast<unsigned>(std::min<int64_t>(rows - first, kMostRowBlocks)));
    edit_kernel<From, To, kWidth>
        <<<grid, kThreads, 0, stream>>>(from, to, first, rows, columns, edit);
    NB_CUDA_LAUNCHED();
  };
  if (columns % 4 == 0) {
    launch(std::integral_constant<int, 4>{});
  } else {
    launch(std::integral_constant<int, 1>{});
  }
}

template <class T>
__device__ __forceinline__ T scaled(T value, double factor) {
  return Round<T>::of(static_cast<float>(static_cast<double>(to_float(value)) * factor));
}

// One group's scale and zero point from its range; value for value quant/group_quant.cc.
template <class T>
__device__ __forceinline__ void group_parameters(float low, float high, const GridView& grid,
                                                 float* scale, float* zero_point) {
  low = fminf(low, 0.0f);
  high = fmaxf(high, 0.0f);
  const float num_steps = static_cast<float>((1 << grid.num_bits) - 1);
  const float qmin = -static_cast<float>(1 << (grid.num_bits - 1));
  const float qmax = -qmin - 1;
  *zero_point = 0;
  if (grid.symmetric) {
    *scale = rounded<T>(__fdiv_rn(fmaxf(fabsf(low), fabsf(high)), num_steps / 2.0f));
  } else {
    *scale = rounded<T>(__fdiv_rn(rounded<T>(__fsub_rn(high, low)), num_steps));
    const float ratio = rounded<T>(__fdiv_rn(low, *scale));
    const float zero = rounded<T>(__fsub_rn(qmin, ratio));
    if (zero == zero) *zero_point = rintf(fminf(fmaxf(zero, qmin), qmax));
  }
  if (*scale == 0.0f) *scale = Limits<T>::kEpsilon;
}

template <class T>
__device__ __forceinline__ float power_of(float error, const float* powers);
template <>
__device__ __forceinline__ float power_of<Half>(float error, const float* powers) {
  return __ldg(powers + __half_as_ushort(__float2half_rn(error)));
}
template <>
__device__ __forceinline__ float power_of<BFloat>(float error, const float* powers) {
  return __ldg(powers + Round<BFloat>::of(error).bits);
}
template <>
__device__ __forceinline__ float power_of<float>(float error, const float*) {
  return static_cast<float>(pow(static_cast<double>(error), static_cast<double>(2.4f)));
}

// Steps that the search takes when step i improved some group of the weight iff bit i is set.
__device__ __forceinline__ int steps_taken(uint32_t improved, int num_steps, int patience) {
  int without_improvement = 0;
  for (int step = 0; step < num_steps; ++step) {
    without_improvement = (improved >> step & 1u) != 0 ? 0 : without_improvement + 1;
    if (without_improvement >= patience) return step + 1;
  }
  return num_steps;
}

// `again`: with the steps that the first run says the search takes; nothing if it took all of them.
template <class T, bool kShared>
__global__ void find_ranges_kernel(const T* weight, int64_t num_groups, int64_t groups_per_row,
                                   RangeSearchLaunch search, GridView grid, bool again) {
  extern __shared__ unsigned char shared_bytes[];
  int num_steps = search.num_steps;
  if (again) {
    num_steps = steps_taken(*search.improved, search.num_steps, search.patience);
    if (num_steps == search.num_steps) return;
  }
  const auto size = static_cast<int>(grid.group_size);
  const int64_t first = int64_t{blockIdx.x} * blockDim.x;
  const int64_t group = first + threadIdx.x;
  const T* values = weight + group * size;
  if (kShared) {
    // An odd number of 32-bit words from one group to the next: no two lanes share a bank.
    const int pitch = size + 4 / static_cast<int>(sizeof(T));
    T* shared = reinterpret_cast<T*>(shared_bytes);
    const auto here = static_cast<int>(min(int64_t{blockDim.x}, num_groups - first));
    for (int i = threadIdx.x; i < here * size; i += blockDim.x)
      shared[i / size * pitch + i % size] = weight[first * size + i];
    __syncthreads();
    values = shared + threadIdx.x * pitch;
  }
  uint32_t improved = 0;
  if (group < num_groups) {
    float low = to_float(values[0]);
    float high = low;
    for (int i = 1; i < size; ++i) {
      const float w = to_float(values[i]);
      low = fminf(low, w);
      high = fmaxf(high, w);
    }
    const float qmin = -static_cast<float>(1 << (grid.num_bits - 1));
    const float qmax = -qmin - 1;
    const float* shares =
        search.by_importance ? search.importance + group % groups_per_row * size : nullptr;
    float best = Limits<T>::kLargest;
    float best_scale = 0;
    float best_zero = 0;
    group_parameters<T>(low, high, grid, &best_scale, &best_zero);
    for (int step = 0; step < num_steps; ++step) {
      const auto shrink = static_cast<float>(1.0 - static_cast<double>(step) / search.grid);
      float scale = 0;
      float zero = 0;
      group_parameters<T>(rounded<T>(__fmul_rn(low, shrink)), rounded<T>(__fmul_rn(high, shrink)),
                          grid, &scale, &zero);
      float sum = 0;
#pragma unroll 8
      for (int i = 0; i < size; ++i) {
        const float w = to_float(values[i]);
        const float q = grid_position<T>(w, scale, zero, qmin, qmax);
        const float error = fabsf(rounded<T>(__fsub_rn(grid_value<T>(q, scale, zero), w)));
        sum = __fadd_rn(sum, search.by_importance
                                 ? __fmul_rn(__fmul_rn(__fmul_rn(shares[i], error), error), error)
                                 : power_of<T>(error, search.powers));
      }
      if (!search.by_importance) sum = rounded<T>(sum);
      if (!(sum < best)) continue;
      best = sum;
      best_scale = scale;
      best_zero = zero;
      improved |= 1u << step;
    }
    grid.scale[group] = best_scale;
    grid.zero_point[group] = static_cast<int8_t>(best_zero);
  }
  if (again || search.num_steps == 0) return;
  for (int offset = 16; offset > 0; offset /= 2)
    improved |= __shfl_xor_sync(0xffffffffu, improved, offset);
  if (threadIdx.x % 32 == 0 && (improved & ~*search.improved) != 0)
    atomicOr(search.improved, improved);
}

template <class T>
__global__ void not_finite_kernel(const T* values, int64_t count, uint32_t* not_finite) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
#pragma unroll 4
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride)
    if (!isfinite(to_float(values[i]))) *not_finite = 1;
}

template <class T>
__global__ void group_bounds_kernel(const T* weight, int64_t num_groups, int64_t group_size,
                                    float* bounds) {
  const int64_t group = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32;
  if (group >= num_groups) return;
  const auto lane = static_cast<int>(threadIdx.x % 32);
  float largest = 0;
  for (int64_t i = lane; i < group_size; i += 32)
    largest = fmaxf(largest, fabsf(to_float(weight[group * group_size + i])));
  for (int offset = 16; offset > 0; offset /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
  if (lane == 0) bounds[group] = rounded<T>(__fadd_rn(largest, 1e-6f));
}

// The edits of launch_edit().
template <class T>
struct ScaleColumns {
  const double* scales;
  uint32_t* not_finite;
  __device__ T operator()(int64_t, int64_t column, T value) const {
    const T result = scaled(value, scales[column]);
    if (not_finite != nullptr && !isfinite(to_float(result))) *not_finite = 1;
    return result;
  }
};

template <class T>
struct DivideRows {
  const double* scales;
  int64_t first;
  __device__ T operator()(int64_t row, int64_t, T value) const {
    return Round<T>::of(
        static_cast<float>(static_cast<double>(to_float(value)) / scales[row - first]));
  }
};

struct GridOf {
  GridView grid;
  int groups;  // per row
  explicit GridOf(const WeightView& weight, const GridView& view)
      : grid(view), groups(static_cast<int>(weight.columns / view.group_size)) {}
  __device__ int64_t group(int64_t row, int64_t column) const {
    return row * groups + static_cast<int>(column) / static_cast<int>(grid.group_size);
  }
  template <class T>
  __device__ float position(int64_t at, T value) const {
    const float qmin = -static_cast<float>(1 << (grid.num_bits - 1));
    return grid_position<T>(to_float(value), grid.scale[at],
                            static_cast<float>(grid.zero_point[at]), qmin, -qmin - 1);
  }
  template <class T>
  __device__ T value(int64_t at, float q) const {
    return Round<T>::of(grid_value<T>(q, grid.scale[at], static_cast<float>(grid.zero_point[at])));
  }
};

template <class T>
struct SnapToGrid {
  GridOf grid;
  const double* factors;
  __device__ T operator()(int64_t row, int64_t column, T value) const {
    const int64_t at = grid.group(row, column);
    // Integers have no negative zero.
    const float q = __fadd_rn(grid.position(at, value), 0.0f);
    return scaled(grid.value<T>(at, q), factors[column]);
  }
};

// A thread per word of packed integers.
template <class T>
__global__ void round_rows_kernel(T* weight, int64_t columns, GridOf grid, const int8_t* integers,
                                  int64_t begin, int64_t words, int64_t count, int32_t* packed,
                                  double* partials) {
  const int num_bits = grid.grid.num_bits;
  const int per_word = 32 / num_bits;
  double squared_error = 0;
  double squared_sum = 0;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    const int64_t row = begin + i / words;
    const int64_t first = i % words * per_word;
    uint32_t word = 0;
    for (int k = 0; k < per_word && first + k < columns; ++k) {
      T& at = weight[row * columns + first + k];
      const int64_t group = grid.group(row, first + k);
      const float q = integers != nullptr ? static_cast<float>(integers[row * columns + first + k])
                                          : __fadd_rn(grid.position(group, at), 0.0f);
      const T value = grid.value<T>(group, q);
      const auto w = static_cast<double>(to_float(at));
      const double error = w - static_cast<double>(to_float(value));
      squared_error += error * error;
      squared_sum += w * w;
      word |= static_cast<uint32_t>(static_cast<int>(q) + (1 << (num_bits - 1))) << (k * num_bits);
      at = value;
    }
    packed[i] = static_cast<int32_t>(word);
  }
  __shared__ double shared[2][kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) {
    squared_error += __shfl_xor_sync(0xffffffffu, squared_error, offset);
    squared_sum += __shfl_xor_sync(0xffffffffu, squared_sum, offset);
  }
  if (threadIdx.x % 32 == 0) {
    shared[0][threadIdx.x / 32] = squared_error;
    shared[1][threadIdx.x / 32] = squared_sum;
  }
  __syncthreads();
  if (threadIdx.x >= 2) return;
  double total = 0;
  for (int w = 0; w < kThreads / 32; ++w) total += shared[threadIdx.x][w];
  partials[2 * blockIdx.x + threadIdx.x] = total;
}

}  // namespace

void launch_scale_columns(const WeightView& from, const double* scales, const WeightView& to,
                          uint32_t* not_finite, cudaStream_t stream) {
  with_type(from.type, [&](auto type) {
    using T = typename decltype(type)::type;
    launch_edit(static_cast<const T*>(from.values), static_cast<T*>(to.values), 0, from.rows,
                from.columns, ScaleColumns<T>{scales, not_finite}, stream);
  });
}

void launch_find_not_finite(const WeightView& weight, uint32_t* not_finite, cudaStream_t stream) {
  const int64_t count = weight.rows * weight.columns;
  if (count == 0) return;
  with_type(weight.type, [&](auto type) {
    using T = typename decltype(type)::type;
    not_finite_kernel<<<static_cast<unsigned>(
                            std::min<int64_t>((count + kThreads - 1) / kThreads, kMostRowBlocks)),
                        kThreads, 0, stream>>>(static_cast<const T*>(weight.values), count,
                                               not_finite);
    NB_CUDA_LAUNCHED();
  });
}

void launch_divide_rows(const WeightView& weight, int64_t first, const double* scales,
                        cudaStream_t stream) {
  with_type(weight.type, [&](auto type) {
    using T = typename decltype(type)::type;
    T* values = static_cast<T*>(weight.values);
    launch_edit(const_cast<const T*>(values), values, first, weight.rows, weight.columns,
                DivideRows<T>{scales, first}, stream);
  });
}

void launch_group_bounds(const WeightView& weight, int64_t group_size, float* bounds,
                         cudaStream_t stream) {
  const int64_t num_groups = weight.rows * (weight.columns / group_size);
  if (num_groups == 0) return;
  with_type(weight.type, [&](auto type) {
    using T = typename decltype(type)::type;
    group_bounds_kernel<<<static_cast<unsigned>((num_groups * 32 + kThreads - 1) / kThreads),
                          kThreads, 0, stream>>>(static_cast<const T*>(weight.values), num_groups,
                                                 group_size, bounds);
    NB_CUDA_LAUNCHED();
  });
}

void launch_find_ranges(const WeightView& weight, const RangeSearchLaunch& search,
                        const GridView& grid, cudaStream_t stream) {
  const int64_t groups_per_row = weight.columns / grid.group_size;
  const int64_t num_groups = weight.rows * groups_per_row;
  if (num_groups == 0) return;
  with_type(weight.type, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto* values = static_cast<const T*>(weight.values);
    const size_t group_bytes = static_cast<size_t>(grid.group_size) * sizeof(T) + 4;
    const auto launch = [&](auto* kernel, unsigned threads, size_t shared, bool again) {
      kernel<<<static_cast<unsigned>((num_groups + threads - 1) / threads), threads, shared,
               stream>>>(values, num_groups, groups_per_row, search, grid, again);
      NB_CUDA_LAUNCHED();
    };
    const auto run = [&](bool again) {
      constexpr size_t kShared = size_t{48} << 10;  // no opting in needed
      const auto threads = static_cast<unsigned>(std::min<size_t>(kShared / group_bytes / 32, 4));
      if (threads > 0) {
        launch(find_ranges_kernel<T, true>, threads * 32, threads * 32 * group_bytes, again);
      } else {
        launch(find_ranges_kernel<T, false>, 32, 0, again);
      }
    };
    if (search.num_steps > 0) NB_CUDA(cudaMemsetAsync(search.improved, 0, 4, stream));
    run(false);
    if (search.num_steps > search.patience) run(true);
  });
}

int launch_round_rows(const WeightView& weight, const GridView& grid, const int8_t* integers,
                      int64_t begin, int64_t end, int32_t* packed, double* partials,
                      cudaStream_t stream) {
  const int per_word = 32 / grid.num_bits;
  const int64_t words = (weight.columns + per_word - 1) / per_word;
  const int64_t count = (end - begin) * words;
  if (count == 0) return 0;
  const auto blocks =
      static_cast<int>(std::min<int64_t>((count + kThreads - 1) / kThreads, kRoundingPartials));
  with_type(weight.type, [&](auto type) {
    using T = typename decltype(type)::type;
    round_rows_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
        static_cast<T*>(weight.values), weight.columns, GridOf(weight, grid), integers, begin,
        words, count, packed, partials);
    NB_CUDA_LAUNCHED();
  });
  return blocks;
}

void launch_snap_to_grid(const WeightView& weight, const GridView& grid, const double* factors,
                         cudaStream_t stream) {
  with_type(weight.type, [&](auto type) {
    using T = typename decltype(type)::type;
    T* values = static_cast<T*>(weight.values);
    launch_edit(const_cast<const T*>(values), values, 0, weight.rows, weight.columns,
                SnapToGrid<T>{GridOf(weight, grid), factors}, stream);
  });
}

}  // namespace nibble::cuda
