// RMSNorm and the gated RMSNorm of the delta-rule layers.
#include <cmath>

#include "device/ref/float_types.h"
#include "device/ref/ref_ops.h"

namespace nibble::ref {
namespace {

// 1 / rms of a row. Squares are summed in double: the reference should not add its own noise.
template <class T>
float inverse_rms(const T* row, int64_t n, float eps) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float value = row[i];
    sum += static_cast<double>(value) * value;
  }
  return 1.0f / std::sqrt(static_cast<float>(sum / static_cast<double>(n)) + eps);
}

}  // namespace

void RefOps::rms_norm(const Tensor& x, const Tensor& weight, float eps, float weight_offset,
                      const Tensor& out) {
  thread_local std::vector<float> scratch;
  const float* w = floats_of(weight, scratch);
  const int64_t n = weight.num_elements();
  const int64_t num_rows = x.num_elements() / n;
  with_float_type(x.dtype, [&]<class T>(T) {
    for (int64_t r = 0; r < num_rows; ++r) {
      const T* in = x.as<const T>() + r * n;
      T* to = out.as<T>() + r * n;
      const float scale = inverse_rms(in, n, eps);
      for (int64_t i = 0; i < n; ++i)
        to[i] = T(static_cast<float>(in[i]) * scale * (w[i] + weight_offset));
    }
  });
}

void RefOps::gated_rms_norm(const Tensor& x, const Tensor& gate, const Tensor& weight, float eps,
                            const Tensor& out) {
  thread_local std::vector<float> scratch;
  const float* w = floats_of(weight, scratch);
  const int64_t n = weight.num_elements();
  const int64_t num_rows = x.num_elements() / n;
  with_float_type(x.dtype, [&]<class T>(T) {
    for (int64_t r = 0; r < num_rows; ++r) {
      const T* in = x.as<const T>() + r * n;
      const T* z = gate.as<const T>() + r * n;
      T* to = out.as<T>() + r * n;
      const float scale = inverse_rms(in, n, eps);
      for (int64_t i = 0; i < n; ++i) {
        // Three roundings in 16-bit activations, where Hugging Face has them.
        const float normed = T(static_cast<float>(in[i]) * scale);
        const float weighted = T(w[i] * normed);
        const float g = z[i];
        to[i] = T(weighted * (g / (1.0f + std::exp(-g))));
      }
    }
  });
}

}  // namespace nibble::ref
