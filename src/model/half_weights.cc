// Normal numbers of both types differ in the position of their bits alone.
#include "model/half_weights.h"

#include "base/format.h"

namespace nibble {
namespace {

constexpr size_t kGrain = size_t{1} << 18;

struct Tally {
  int64_t lost = 0;
  int64_t beyond = 0;
};

uint16_t half_of(uint16_t bfloat, Tally* tally) {
  const int exponent = bfloat >> 7 & 0xff;
  const auto sign = static_cast<uint16_t>(bfloat & 0x8000);
  // 2^-14 to 2^15 times the mantissa: the bits move.
  if (exponent >= 113 && exponent <= 142)
    return static_cast<uint16_t>(sign | (exponent - 112) << 10 | (bfloat & 0x7f) << 3);
  BFloat16 value;
  value.bits = bfloat;
  const Float16 half{static_cast<float>(value)};
  if (exponent > 142 && exponent < 255) ++tally->beyond;
  if ((half.bits & 0x7fff) == 0 && (bfloat & 0x7fff) != 0) ++tally->lost;
  return half.bits;
}

}  // namespace

Result<Tensor> HalfWeights::tensor(std::string_view name, const Shape& expected) const {
  NB_TRY(Tensor found, source_.tensor(name, expected));
  if (found.shape.rank() < 2 || found.dtype != DType::kBF16) return found;
  kept_.emplace_back();
  NB_TRY_STATUS(convert(name, &found, &kept_.back()));
  return found;
}

Result<LinearWeight> HalfWeights::linear(std::string_view name, int64_t out_features,
                                         int64_t in_features) const {
  NB_TRY(LinearWeight found, source_.linear(name, out_features, in_features));
  Tensor& values = found.quantized() ? found.scale : found.dense;
  if (values.dtype == DType::kBF16) NB_TRY_STATUS(convert(name, &values, &linear_));
  return found;
}

Status HalfWeights::convert(std::string_view name, Tensor* tensor,
                            std::vector<uint16_t>* to) const {
  const auto count = static_cast<size_t>(tensor->num_elements());
  to->resize(count);
  const auto* from = static_cast<const uint16_t*>(tensor->data);
  std::atomic<int64_t> beyond = 0;
  threads_.parallel_for(count, kGrain, [&](size_t begin, size_t end) {
    Tally tally;
    for (size_t i = begin; i < end; ++i) (*to)[i] = half_of(from[i], &tally);
    lost_ += tally.lost;
    beyond += tally.beyond;
  });
  if (beyond > 0)
    return make_error(ErrorCode::kUnsupported,
                      "\"{}\": {} of {} values are larger than float16 holds (65504); use --dtype "
                      "bfloat16",
                      name, beyond.load(), count);
  tensor->data = to->data();
  tensor->dtype = DType::kF16;
  return {};
}

}  // namespace nibble
