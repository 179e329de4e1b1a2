// y = x W' for f32 activations and F32, BF16, F16, W8 or W4 weights.
//
// Layout: a panel of kPanelRows weight rows is widened to f32 in a per-thread buffer (the only
// place that knows the weight's format), then multiplied with all rows of x, kTileRows x
// kTileTokens at a time:
//
//            k ->                      16 accumulators of one vector each; per k step 4 + 4 loads
//   W rows  [....|....|....]           feed 16 multiply-adds, so the tile is bound by the
//   multipliers. x rows  [....|....|....]
//
// Each output is a dot product whose lane l sums k = l, l + N, l + 2N, ... in order; the lanes are
// then added in a fixed tree, and the tail of k joins as one masked step. The order does not depend
// on the tile a row falls into, so one token alone and the same token among 300 give the same bits.
//
// Cost: M tokens read each weight once from memory and once per token tile from L1/L2.
// Tried and lost: vectorising over outputs with broadcast x (needs a transposed panel; slower below
// 8 tokens, equal above).
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "device/cpu/linear.cc"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <algorithm>
#include <vector>

#include "device/cpu/cpu_ops.h"

HWY_BEFORE_NAMESPACE();
namespace nibble::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

constexpr int64_t kTileRows = 4;
constexpr int64_t kTileTokens = 4;

// Dot products of R weight rows with T token rows; strides in floats.
template <int R, int T>
HWY_INLINE void dot_tile(const float* w, int64_t w_stride, const float* x, int64_t x_stride,
                         int64_t n, float* sums) {
  const hn::ScalableTag<float> d;
  using V = hn::Vec<decltype(d)>;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  V acc[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) acc[r][t] = hn::Zero(d);
  int64_t k = 0;
  for (; k + lanes <= n; k += lanes) {
    V xs[T];
    for (int t = 0; t < T; ++t) xs[t] = hn::LoadU(d, x + t * x_stride + k);
    for (int r = 0; r < R; ++r) {
      const V ws = hn::LoadU(d, w + r * w_stride + k);
      for (int t = 0; t < T; ++t) acc[r][t] = hn::MulAdd(ws, xs[t], acc[r][t]);
    }
  }
  if (k < n) {
    const auto mask = hn::FirstN(d, static_cast<size_t>(n - k));
    V xs[T];
    for (int t = 0; t < T; ++t) xs[t] = hn::MaskedLoad(mask, d, x + t * x_stride + k);
    for (int r = 0; r < R; ++r) {
      const V ws = hn::MaskedLoad(mask, d, w + r * w_stride + k);
      for (int t = 0; t < T; ++t) acc[r][t] = hn::MulAdd(ws, xs[t], acc[r][t]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) sums[r * T + t] = hn::GetLane(hn::SumOfLanes(d, acc[r][t]));
}

template <int R>
void rows_times_tokens(const float* w, int64_t n, const float* x, int64_t num_tokens, float* out,
                       int64_t out_stride) {
  float sums[R * kTileTokens];
  int64_t t = 0;
  for (; t + kTileTokens <= num_tokens; t += kTileTokens) {
    dot_tile<R, kTileTokens>(w, n, x + t * n, n, n, sums);
    for (int64_t i = 0; i < kTileTokens; ++i)
      for (int64_t r = 0; r < R; ++r) out[(t + i) * out_stride + r] = sums[r * kTileTokens + i];
  }
  for (; t < num_tokens; ++t) {
    dot_tile<R, 1>(w, n, x + t * n, n, n, sums);
    for (int64_t r = 0; r < R; ++r) out[t * out_stride + r] = sums[r];
  }
}

// panel [num_rows, n] times x [num_tokens, n] -> out[t * out_stride + row].
void multiply_panel(const float* panel, int64_t num_rows, int64_t n, const float* x,
                    int64_t num_tokens, float* out, int64_t out_stride) {
  int64_t row = 0;
  for (; row + kTileRows <= num_rows; row += kTileRows)
    rows_times_tokens<kTileRows>(panel + row * n, n, x, num_tokens, out + row, out_stride);
  for (; row < num_rows; ++row)
    rows_times_tokens<1>(panel + row * n, n, x, num_tokens, out + row, out_stride);
}

void widen_bf16(const uint16_t* from, int64_t n, float* to) {
  const hn::ScalableTag<float> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  const hn::Rebind<uint16_t, decltype(d)> du16;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto wide = hn::PromoteTo(du, hn::LoadU(du16, from + i));
    hn::StoreU(hn::BitCast(d, hn::ShiftLeft<16>(wide)), d, to + i);
  }
  for (; i < n; ++i) to[i] = std::bit_cast<float>(static_cast<uint32_t>(from[i]) << 16);
}

#if HWY_TARGET == HWY_SCALAR
// CPUs without SSSE3: the loop of the vector version, one value at a time.
template <bool kRoundBf16>
HWY_INLINE void dequantize_group4(const uint8_t* packed, int64_t count, int bias, float scale,
                                  float* to) {
  for (int64_t i = 0; i < count; ++i) {
    const int q = (packed[i / 2] >> (i % 2 * 4)) & 0xf;
    const float value = static_cast<float>(q - bias) * scale;
    to[i] = kRoundBf16 ? round_bf16(value) : value;
  }
}
#else
// One group of 4-bit values, `count` a multiple of 32: value = (q - bias) * scale, then rounded to
// bf16 when kRoundBf16. `bias` is 8 plus the zero point.
template <bool kRoundBf16>
HWY_INLINE void dequantize_group4(const uint8_t* packed, int64_t count, int bias, float scale,
                                  float* to) {
  const hn::ScalableTag<float> d;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::RebindToUnsigned<decltype(d)> du;
  const hn::Rebind<uint8_t, decltype(d)> du8;
  const hn::Full128<uint8_t> bytes;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto low_mask = hn::Set(bytes, 0x0f);
  const auto bias_vector = hn::Set(di, bias);
  const auto scale_vector = hn::Set(d, scale);
  HWY_ALIGN uint8_t nibbles[32];
  for (int64_t i = 0; i < count; i += 32) {
    const auto pairs = hn::LoadU(bytes, packed + i / 2);
    const auto low = hn::And(pairs, low_mask);
    const auto high = hn::And(hn::ShiftRight<4>(pairs), low_mask);
    hn::Store(hn::InterleaveLower(bytes, low, high), bytes, nibbles);
    hn::Store(hn::InterleaveUpper(bytes, low, high), bytes, nibbles + 16);
    for (int64_t j = 0; j < 32; j += lanes) {
      const auto q = hn::PromoteTo(di, hn::LoadU(du8, nibbles + j));
      auto value = hn::Mul(hn::ConvertTo(d, hn::Sub(q, bias_vector)), scale_vector);
      if constexpr (kRoundBf16) {
        // Nearest, ties to even; dequantized weights are finite.
        auto bits = hn::BitCast(du, value);
        const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
        bits = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7fff)));
        value = hn::BitCast(d, hn::And(bits, hn::Set(du, 0xffff0000u)));
      }
      hn::StoreU(value, d, to + i + j);
    }
  }
}
#endif

void dequantize_groups4(const uint8_t* packed, int64_t num_groups, int64_t group_size,
                        const float* scales, const int8_t* zeros, bool round_bf16, float* to) {
  for (int64_t g = 0; g < num_groups; ++g) {
    const int bias = 8 + (zeros == nullptr ? 0 : zeros[g]);
    const uint8_t* from = packed + g * group_size / 2;
    if (round_bf16) {
      dequantize_group4<true>(from, group_size, bias, scales[g], to + g * group_size);
    } else {
      dequantize_group4<false>(from, group_size, bias, scales[g], to + g * group_size);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble::cpu {

HWY_EXPORT(multiply_panel);
HWY_EXPORT(widen_bf16);
HWY_EXPORT(dequantize_groups4);

namespace {

constexpr int64_t kPanelRows = 16;
// Below this many multiply-adds a wake-up of the other threads costs more than it saves.
constexpr int64_t kMinParallelWork = 1 << 20;

// Rows [row, row + count) of the weight as f32: a pointer into the weight itself when it is F32.
const float* widen_panel(const LinearWeight& weight, int64_t row, int64_t count,
                         std::vector<float>& buffer) {
  const int64_t n = weight.in_features;
  if (!weight.quantized() && weight.dense.dtype == DType::kF32)
    return weight.dense.as<const float>() + row * n;
  if (static_cast<int64_t>(buffer.size()) < kPanelRows * n)
    buffer.resize(static_cast<size_t>(kPanelRows * n));
  if (!weight.quantized() && weight.dense.dtype == DType::kBF16) {
    const auto* from = static_cast<const uint16_t*>(weight.dense.data) + row * n;
    HWY_DYNAMIC_DISPATCH(widen_bf16)(from, count * n, buffer.data());
    return buffer.data();
  }
  const int64_t num_groups = weight.quantized() ? weight.scale.shape[1] : 0;
  const bool fast4 = weight.quantized() && weight.format.num_bits == 4 &&
                     weight.scale.dtype != DType::kF16 && n / num_groups % 32 == 0;
  if (!fast4) {
    for (int64_t i = 0; i < count; ++i) ref::dequantize_row(weight, row + i, buffer.data() + i * n);
    return buffer.data();
  }
  thread_local std::vector<float> scales;
  if (static_cast<int64_t>(scales.size()) < num_groups)
    scales.resize(static_cast<size_t>(num_groups));
  for (int64_t i = 0; i < count; ++i) {
    to_float(weight.scale.rows(row + i, row + i + 1), scales.data());
    const auto* packed = static_cast<const uint8_t*>(weight.packed.data) +
                         (row + i) * weight.packed.shape[1] * int64_t{sizeof(int32_t)};
    const int8_t* zeros = weight.zero_point.empty()
                              ? nullptr
                              : weight.zero_point.as<const int8_t>() + (row + i) * num_groups;
    HWY_DYNAMIC_DISPATCH(dequantize_groups4)
    (packed, num_groups, n / num_groups, scales.data(), zeros, weight.scale.dtype == DType::kBF16,
     buffer.data() + i * n);
  }
  return buffer.data();
}

}  // namespace

void CpuOps::linear(const Tensor& x, const LinearWeight& weight, const Tensor& out) {
  if (x.dtype != DType::kF32 || out.dtype != DType::kF32) {
    RefOps::linear(x, weight, out);
    return;
  }
  const int64_t n = weight.in_features;
  const int64_t num_tokens = x.num_elements() / n;
  if (num_tokens == 0) return;
  const auto run = [&](size_t begin_panel, size_t end_panel) {
    thread_local std::vector<float> buffer;
    for (size_t panel = begin_panel; panel < end_panel; ++panel) {
      const int64_t row = static_cast<int64_t>(panel) * kPanelRows;
      const int64_t count = std::min(kPanelRows, weight.out_features - row);
      const float* rows = widen_panel(weight, row, count, buffer);
      HWY_DYNAMIC_DISPATCH(multiply_panel)
      (rows, count, n, x.as<const float>(), num_tokens, out.as<float>() + row, weight.out_features);
    }
  };
  const auto num_panels = static_cast<size_t>((weight.out_features + kPanelRows - 1) / kPanelRows);
  if (num_tokens * n * weight.out_features < kMinParallelWork) {
    run(0, num_panels);
  } else {
    pool_.parallel_for(num_panels, 1, run);
  }
}

}  // namespace nibble::cpu
#endif  // HWY_ONCE
