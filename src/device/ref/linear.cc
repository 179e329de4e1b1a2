// y = x W': one weight row at a time, widened to float, against every row of x.
#include "device/ref/float_types.h"
#include "device/ref/ref_ops.h"

namespace nibble::ref {
namespace {

// Sixteen partial sums: the compiler vectorises them without reordering what we wrote.
float dot(const float* a, const float* b, int64_t n) {
  constexpr int64_t kLanes = 16;
  float partial[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) partial[lane] += a[i + lane] * b[i + lane];
  float sum = 0;
  for (const float value : partial) sum += value;
  for (; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace

void dequantize_row(const LinearWeight& weight, int64_t row, float* out) {
  const int64_t n = weight.in_features;
  if (!weight.quantized()) {
    to_float(weight.dense.rows(row, row + 1), out);
    return;
  }
  const int bits = weight.format.num_bits;
  const int per_word = 32 / bits;
  const int offset = 1 << (bits - 1);
  const uint32_t mask = (1u << bits) - 1;
  const int64_t num_groups = weight.scale.shape[1];
  const int64_t group_size = n / num_groups;
  const auto* words = weight.packed.as<const int32_t>() + row * weight.packed.shape[1];
  for (int64_t g = 0; g < num_groups; ++g) {
    float scale = 0;
    const int64_t index = row * num_groups + g;
    to_float({static_cast<std::byte*>(weight.scale.data) +
                  static_cast<size_t>(index) * dtype_size(weight.scale.dtype),
              weight.scale.dtype,
              {1}},
             &scale);
    const int zero = weight.zero_point.empty() ? 0 : weight.zero_point.as<const int8_t>()[index];
    for (int64_t c = g * group_size; c < (g + 1) * group_size; ++c) {
      const auto word = static_cast<uint32_t>(words[c / per_word]);
      const auto q = static_cast<int>((word >> (bits * static_cast<int>(c % per_word))) & mask);
      out[c] = static_cast<float>(q - offset - zero) * scale;
    }
  }
  if (weight.scale.dtype == DType::kBF16)
    for (int64_t c = 0; c < n; ++c) out[c] = round_bf16(out[c]);
  if (weight.scale.dtype == DType::kF16)
    for (int64_t c = 0; c < n; ++c) out[c] = round_f16(out[c]);
}

void RefOps::linear(const Tensor& x, const LinearWeight& weight, const Tensor& out) {
  thread_local std::vector<float> x_scratch;
  thread_local std::vector<float> row_scratch;
  const int64_t in = weight.in_features;
  const int64_t num_tokens = in == 0 ? 0 : x.num_elements() / in;
  const float* inputs = floats_of(x, x_scratch);
  if (static_cast<int64_t>(row_scratch.size()) < in) row_scratch.resize(static_cast<size_t>(in));
  with_float_type(out.dtype, [&]<class T>(T) {
    for (int64_t row = 0; row < weight.out_features; ++row) {
      dequantize_row(weight, row, row_scratch.data());
      for (int64_t t = 0; t < num_tokens; ++t)
        out.as<T>()[t * weight.out_features + row] =
            T(dot(inputs + t * in, row_scratch.data(), in));
    }
  });
}

}  // namespace nibble::ref
