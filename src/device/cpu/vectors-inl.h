// Vectors of f32 for the CPU's kernels. Included once a target by files that foreach_target.h
// compiles, as Highway's own -inl.h files are.
#if defined(NIBBLE_DEVICE_CPU_VECTORS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef NIBBLE_DEVICE_CPU_VECTORS_INL_H
#undef NIBBLE_DEVICE_CPU_VECTORS_INL_H
#else
#define NIBBLE_DEVICE_CPU_VECTORS_INL_H
#endif

#include <hwy/highway.h>

#include <cmath>
#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace nibble::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

HWY_INLINE float dot(const float* a, const float* b, int64_t n) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto sum = hn::Zero(d);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    sum = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), sum);
  if (i < n) {
    const auto mask = hn::FirstN(d, static_cast<size_t>(n - i));
    sum = hn::MulAdd(hn::MaskedLoad(mask, d, a + i), hn::MaskedLoad(mask, d, b + i), sum);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// y += a * x
HWY_INLINE void axpy(float a, const float* x, int64_t n, float* y) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto factor = hn::Set(d, a);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    hn::StoreU(hn::MulAdd(factor, hn::LoadU(d, x + i), hn::LoadU(d, y + i)), d, y + i);
  for (; i < n; ++i) y[i] = std::fma(a, x[i], y[i]);
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble::cpu
HWY_AFTER_NAMESPACE();

#endif  // per target
