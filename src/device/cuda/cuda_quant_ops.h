// The quantizer's arithmetic on a GPU: tensors to launches. Small operands (scales, importance,
// grid parameters) live in buffers of its own that grow with need; large ones go through the
// scratch.
#pragma once

#include "device/column_order.h"
#include "device/cuda/compensation.h"
#include "device/cuda/quantize.h"
#include "device/cuda/workspace.h"
#include "device/quant_ops.h"

namespace nibble::cuda {

// Device memory that is allocated anew when more is asked for; contents do not survive that.
class GrowingBuffer {
 public:
  GrowingBuffer() = default;
  GrowingBuffer(const GrowingBuffer&) = delete;
  GrowingBuffer& operator=(const GrowingBuffer&) = delete;
  ~GrowingBuffer() { cudaFree(data_); }
  template <class T>
  T* reserve(int64_t count) {
    return static_cast<T*>(reserve_bytes(static_cast<size_t>(count) * sizeof(T)));
  }

 private:
  void* reserve_bytes(size_t bytes);

  void* data_ = nullptr;
  size_t size_ = 0;
};

class CudaQuantOps final : public QuantOps {
 public:
  // Both belong to the device, which outlives this.
  CudaQuantOps(cudaStream_t stream, Workspace& workspace)
      : stream_(stream), workspace_(workspace) {}

  void scale_columns(const Tensor& weight, std::span<const double> scales) override;
  void divide_last_rows(const Tensor& weight, std::span<const double> scales) override;
  void add_group_shares(const Tensor& weight, const QuantFormat& format,
                        std::span<double> sums) override;
  bool all_finite(const Tensor& weight) override;
  void round(const Tensor& weight, const QuantFormat& format, const RangeSearch& search,
             std::span<const float> importance, RoundedWeight* rounded) override;
  bool trial_weight(const Tensor& weight, std::span<const double> scales,
                    std::span<const double> factors, const QuantFormat& format,
                    const RangeSearch& search, std::span<const float> importance,
                    const Tensor& out) override;
  void scale_gram(const Tensor& gram, std::span<const double> factors) override;
  Result<RoundedWeight> compensate(const Tensor& weight, const Tensor& gram,
                                   const QuantFormat& format, const RangeSearch& search,
                                   std::span<const float> importance,
                                   const Compensation& compensation) override;
  size_t compensation_bytes(int64_t rows, int64_t columns,
                            const QuantFormat& format) const override;
  void add_moments(const Tensor& x, const Tensor& sums) override;
  void add_gram(const Tensor& x, const Tensor& gram) override;
  void add_squared_difference(const Tensor& a, const Tensor& b, double* sum) override;
  double output_error(const Tensor& weight, const Tensor& trial, const Tensor& gram) override;

 private:
  template <class T>
  std::remove_const_t<T>* uploaded(std::span<T> values, GrowingBuffer& buffer);
  template <class T>
  void copy_to(std::remove_const_t<T>* to, std::span<T> values);
  template <class T>
  void to_host(std::span<T> to, const T* from);
  GridView grid_of(const Tensor& weight, const QuantFormat& format);
  // Operands of a search to the device.
  RangeSearchLaunch prepared(const RangeSearch& search, std::span<const float> importance);
  // Fills the grid's integers of the rows into words, replaces the rows by their values. `integers`
  // [rows, columns], or null: to the nearest.
  void round_rows(const Tensor& weight, const GridView& grid, const int8_t* integers,
                  RoundedWeight* rounded);
  // U of the dampened gram, its columns in their order, to `u`; false when no dampening serves.
  struct CompensationRoom;
  bool invert(const Tensor& gram, const ColumnOrder& order, float dampening,
              const CompensationRoom& room);
  void refine(const RoundingView& rounding, const Tensor& gram, double damp, int sweeps,
              const CompensationRoom& room);
  // Rows whose integers fit the scratch at once.
  int64_t rows_at_once(int64_t columns, size_t bytes_per_value) const;
  // The first of `count` elements, zero; and what it holds later, waited for.
  template <class T>
  T* cleared(GrowingBuffer& buffer, int64_t count);
  template <class T>
  T value_of(GrowingBuffer& buffer);
  template <class T>
  T value_at(const T* at);

  cudaStream_t stream_;
  Workspace& workspace_;
  GrowingBuffer scales_, factors_, importance_, powers_, bounds_, column_sums_;
  GrowingBuffer grid_scale_, grid_zero_;
  GrowingBuffer flags_;  // one word each: values not finite, steps that improved
  GrowingBuffer sums_;   // a result and partial sums
  GrowingBuffer partials_;
  const float* uploaded_powers_ = nullptr;
};

}  // namespace nibble::cuda
