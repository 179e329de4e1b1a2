// The compressed-tensors "pack-quantized" format: the `quantization_config` of config.json, and
// packing and unpacking of integers, side by side.
// Format facts: docs/reference/quantization-format.md.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "tensor/quant_format.h"

namespace nibble {

struct QuantizationGroup {
  std::vector<std::string> targets;  // module or class names, or "re:..." patterns
  QuantFormat format;
  std::string observer = "memoryless_minmax";
};

struct QuantizationConfig {
  std::vector<QuantizationGroup> groups;
  std::vector<std::string> ignore;  // full module names or "re:..." patterns
};

// Reads `config["quantization_config"]`; nullopt when absent. Other formats, activation
// quantization, and bit widths or strategies nibble has no kernel for are kUnsupported, with the
// field and the values that work.
Result<std::optional<QuantizationConfig>> parse_quantization_config(const Json& config);

// The object to store under "quantization_config", with exactly the keys other readers expect.
Json quantization_config_json(const QuantizationConfig& config);

// B-bit integers (B = 4 or 8) packed into int32 words along a row, lowest bits first; each value is
// stored plus 2^(B-1); the tail of the last word is 0. values [rows, columns] in [-2^(B-1),
// 2^(B-1)). packed [rows, packed_width(columns, B)].
constexpr int64_t packed_width(int64_t columns, int bits) {
  return (columns * bits + 31) / 32;
}
void pack_rows(std::span<const int8_t> values, int64_t rows, int64_t columns, int bits,
               std::span<int32_t> packed);
void unpack_rows(std::span<const int32_t> packed, int64_t rows, int64_t columns, int bits,
                 std::span<int8_t> values);
// The same along columns, for zero points: values [rows, columns], packed
// [packed_width(rows, B), columns].
void pack_columns(std::span<const int8_t> values, int64_t rows, int64_t columns, int bits,
                  std::span<int32_t> packed);
void unpack_columns(std::span<const int32_t> packed, int64_t rows, int64_t columns, int bits,
                    std::span<int8_t> values);

}  // namespace nibble
