// Views and widening.
#include "tensor/tensor.h"

#include <algorithm>

#include "tensor/float8.h"

namespace nibble {

std::string Shape::to_string() const {
  std::string text = "[";
  for (int i = 0; i < rank_; ++i) {
    if (i > 0) text += ", ";
    text += std::to_string((*this)[i]);
  }
  return text + "]";
}

Tensor Tensor::rows(int64_t begin, int64_t end) const {
  NB_CHECK(shape.rank() > 0 && 0 <= begin && begin <= end && end <= shape[0],
           "rows %lld..%lld of %s", static_cast<long long>(begin), static_cast<long long>(end),
           shape.to_string().c_str());
  std::array<int64_t, Shape::kMaxRank> dims{};
  std::ranges::copy(shape.dims(), dims.begin());
  const int64_t row_elements = shape[0] == 0 ? 0 : num_elements() / shape[0];
  dims[0] = end - begin;
  auto* bytes = static_cast<std::byte*>(data);
  return {bytes + static_cast<size_t>(begin * row_elements) * dtype_size(dtype), dtype,
          Shape(std::span<const int64_t>(dims.data(), static_cast<size_t>(shape.rank())))};
}

Tensor Tensor::reshaped(Shape other) const {
  NB_CHECK(other.num_elements() == num_elements(), "%s to %s", shape.to_string().c_str(),
           other.to_string().c_str());
  return {data, dtype, other};
}

void to_float(const Tensor& from, float* to) {
  const auto count = static_cast<size_t>(from.num_elements());
  switch (from.dtype) {
    case DType::kF32: std::copy_n(from.as<const float>(), count, to); return;
    case DType::kF64:
      std::transform(from.as<const double>(), from.as<const double>() + count, to,
                     [](double v) { return static_cast<float>(v); });
      return;
    case DType::kF16: std::copy_n(from.as<const Float16>(), count, to); return;
    case DType::kBF16: std::copy_n(from.as<const BFloat16>(), count, to); return;
    case DType::kF8E5M2: std::copy_n(from.as<const Float8E5M2>(), count, to); return;
    case DType::kF8E4M3: std::copy_n(from.as<const Float8E4M3>(), count, to); return;
    default: NB_CHECK(false, "%s is not a float type", dtype_name(from.dtype).data());
  }
}

void from_float(const float* from, const Tensor& to) {
  const auto count = static_cast<size_t>(to.num_elements());
  const auto round_to = [&](auto* values) {
    using T = std::remove_pointer_t<decltype(values)>;
    std::transform(from, from + count, values, [](float v) { return T(v); });
  };
  switch (to.dtype) {
    case DType::kF32: std::copy_n(from, count, to.as<float>()); return;
    case DType::kF16: return round_to(to.as<Float16>());
    case DType::kBF16: return round_to(to.as<BFloat16>());
    case DType::kF8E5M2: return round_to(to.as<Float8E5M2>());
    case DType::kF8E4M3: return round_to(to.as<Float8E4M3>());
    default: NB_CHECK(false, "%s is not a float type", dtype_name(to.dtype).data());
  }
}

}  // namespace nibble
