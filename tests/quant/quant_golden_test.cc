// Scales, zero points, fake-quantized weights and packed tensors against compressed-tensors and
// llm-compressor, byte for byte.
#include <gtest/gtest.h>

#include <cstring>

#include "checkpoint/compressed_tensors.h"
#include "quant/observer.h"
#include "support/golden_file.h"

namespace nibble {
namespace {

// Reads NAME = m64x128[.float16].{asym|sym}.{observer} from tensor names.
struct Case {
  std::string name;
  std::string weight;
  std::string observer;
  bool symmetric;
};

std::vector<Case> cases(const test::GoldenFile& golden) {
  std::vector<Case> all;
  for (const TensorInfo& info : golden.file().tensors()) {
    const std::string suffix = ".scale";
    if (!info.name.ends_with(suffix)) continue;
    Case one;
    one.name = info.name.substr(0, info.name.size() - suffix.size());
    const size_t symmetry = one.name.find(".sym.");
    one.symmetric = symmetry != std::string::npos;
    const size_t at = one.symmetric ? symmetry : one.name.find(".asym.");
    one.weight = one.name.substr(0, at) + ".weight";
    one.observer = one.name.substr(one.name.rfind('.') + 1);
    all.push_back(std::move(one));
  }
  return all;
}

template <class T>
void expect_bytes(const Tensor& golden, const std::vector<T>& ours, const char* what) {
  ASSERT_EQ(golden.num_bytes(), ours.size() * sizeof(T)) << what;
  const auto* bytes = static_cast<const T*>(golden.data);
  size_t different = 0;
  for (size_t i = 0; i < ours.size(); ++i)
    different += std::memcmp(&ours[i], bytes + i, sizeof(T)) != 0;
  EXPECT_EQ(different, 0u) << what << ": of " << ours.size();
}

std::vector<uint16_t> narrowed(const std::vector<float>& values, DType dtype) {
  std::vector<uint16_t> bits;
  for (const float value : values) {
    bits.push_back(dtype == DType::kBF16 ? BFloat16(value).bits : Float16(value).bits);
  }
  return bits;
}

TEST(QuantGolden, ScalesZeroPointsValuesAndPackedTensorsAreEqualByteForByte) {
  const test::GoldenFile golden(test::golden("fixtures/quant/goldens.safetensors"));
  int num_sixteen_bit = 0;
  for (const Case& one : cases(golden)) {
    SCOPED_TRACE(one.name);
    const Tensor weight = golden.tensor(one.weight);
    // Float32 scales differ in the last bit between the library's own CPU and GPU runs.
    if (weight.dtype == DType::kF32) continue;
    ++num_sixteen_bit;
    const QuantFormat form{.num_bits = 4, .group_size = 128, .symmetric = one.symmetric};
    const auto observer = make_observer(one.observer).value();
    ThreadPool pool(2);
    const GroupParameters parameters =
        parameters_from_ranges(observer.observe(weight, form, {}, pool), weight.dtype, form);
    expect_bytes(golden.tensor(one.name + ".scale"), narrowed(parameters.scale, weight.dtype),
                 "scale");
    expect_bytes(golden.tensor(one.name + ".zero_point"), parameters.zero_point, "zero point");

    const int64_t rows = weight.shape[0];
    const int64_t columns = weight.shape[1];
    const std::vector<int8_t> integers = quantize_weight(weight, parameters, form);
    std::vector<float> values(static_cast<size_t>(weight.num_elements()));
    to_float(weight, values.data());
    for (size_t i = 0; i < values.size(); ++i) {
      const size_t group = i / 128;
      const float fake = fake_quantize_value(values[i], parameters.scale[group],
                                             parameters.zero_point[group], weight.dtype, form);
      EXPECT_EQ(fake, dequantize_value(integers[i], parameters.scale[group],
                                       parameters.zero_point[group], weight.dtype));
      values[i] = fake;
    }
    expect_bytes(golden.tensor(one.name + ".fake_quantized"), narrowed(values, weight.dtype),
                 "fake quantized");

    std::vector<int32_t> packed(static_cast<size_t>(rows * packed_width(columns, 4)));
    pack_rows(integers, rows, columns, 4, packed);
    expect_bytes(golden.tensor(one.name + ".weight_packed"), packed, "packed");
    if (!one.symmetric) {
      std::vector<int32_t> zeros(static_cast<size_t>(packed_width(rows, 4) * columns / 128));
      pack_columns(parameters.zero_point, rows, columns / 128, 4, zeros);
      expect_bytes(golden.tensor(one.name + ".weight_zero_point"), zeros, "packed zero points");
    }
  }
  EXPECT_GE(num_sixteen_bit, 8);
}

}  // namespace
}  // namespace nibble
