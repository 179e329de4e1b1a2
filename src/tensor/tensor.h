// Tensor: a pointer, a shape and a dtype. Row-major and contiguous; owns nothing.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "base/check.h"
#include "tensor/dtype.h"

namespace nibble {

// Up to five dimensions, outermost first.
class Shape {
 public:
  static constexpr int kMaxRank = 5;
  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) : Shape(std::span(dims.begin(), dims.size())) {}
  explicit Shape(std::span<const int64_t> dims) : rank_(static_cast<int>(dims.size())) {
    NB_CHECK(rank_ <= kMaxRank, "rank %d", rank_);
    for (int i = 0; i < rank_; ++i) dims_[static_cast<size_t>(i)] = dims[static_cast<size_t>(i)];
  }
  int rank() const { return rank_; }
  int64_t operator[](int i) const { return dims_[static_cast<size_t>(i < 0 ? rank_ + i : i)]; }
  int64_t num_elements() const {
    int64_t product = 1;
    for (int i = 0; i < rank_; ++i) product *= dims_[static_cast<size_t>(i)];
    return product;
  }
  std::span<const int64_t> dims() const { return {dims_.data(), static_cast<size_t>(rank_)}; }
  bool operator==(const Shape& other) const { return rank_ == other.rank_ && dims_ == other.dims_; }
  std::string to_string() const;  // "[17408, 640]"

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kF32;
  Shape shape;

  int64_t num_elements() const { return shape.num_elements(); }
  size_t num_bytes() const { return static_cast<size_t>(num_elements()) * dtype_size(dtype); }
  bool empty() const { return data == nullptr; }
  template <class T>
  T* as() const {
    NB_DCHECK(DTypeOf<std::remove_const_t<T>>::value == dtype, "dtype %d", static_cast<int>(dtype));
    return static_cast<T*>(data);
  }
  // Rows [begin, end) of the outermost dimension.
  Tensor rows(int64_t begin, int64_t end) const;
  // The same bytes under another shape of equal element count.
  Tensor reshaped(Shape other) const;
};

// Widens (or copies) n floating elements of `from` into floats; the one loader of mixed dtypes.
void to_float(const Tensor& from, float* to);
// The other way, each value rounded to the dtype of `to`.
void from_float(const float* from, const Tensor& to);

}  // namespace nibble
