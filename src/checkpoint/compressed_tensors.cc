// Reading and writing quantization_config, packing and unpacking.
#include "checkpoint/compressed_tensors.h"

#include <algorithm>

#include "base/check.h"
#include "base/format.h"

namespace nibble {
namespace {

Error unsupported(std::string_view field, const Json& found, std::string_view expected) {
  return make_error(ErrorCode::kUnsupported,
                    "config.json: quantization_config.{} is {}, nibble reads {}", field,
                    dump_json(found), expected);
}

// The value under `key`, or null when absent.
const Json& at(const Json& object, const char* key) {
  static const Json kNull;
  const auto it = object.find(key);
  return it == object.end() ? kNull : *it;
}

Result<std::vector<std::string>> string_list(const Json& value, std::string_view field) {
  std::vector<std::string> list;
  if (value.is_null()) return list;
  if (!value.is_array()) return unsupported(field, value, "a list of strings");
  for (const Json& item : value) {
    if (!item.is_string()) return unsupported(field, item, "a list of strings");
    list.push_back(item.get<std::string>());
  }
  return list;
}

Result<QuantizationGroup> parse_group(const std::string& name, const Json& group) {
  const std::string prefix = "config_groups." + name;
  if (!group.is_object()) return unsupported(prefix, group, "an object");
  for (const char* key : {"input_activations", "output_activations"})
    if (!at(group, key).is_null())
      return unsupported(prefix + "." + key, at(group, key), "null (weights only)");
  if (const Json& form = at(group, "format"); !form.is_null() && form != "pack-quantized")
    return unsupported(prefix + ".format", form, "\"pack-quantized\"");
  const Json& weights = at(group, "weights");
  if (!weights.is_object()) return unsupported(prefix + ".weights", weights, "an object");

  QuantizationGroup parsed;
  NB_TRY(parsed.targets, string_list(at(group, "targets"), prefix + ".targets"));
  const auto field = [&](const char* key) { return prefix + ".weights." + key; };

  const Json& bits = at(weights, "num_bits");
  if (bits != 4 && bits != 8) return unsupported(field("num_bits"), bits, "4 or 8");
  parsed.format.num_bits = bits.get<int>();
  if (const Json& type = at(weights, "type"); !type.is_null() && type != "int")
    return unsupported(field("type"), type, "\"int\"");
  if (const Json& dynamic = at(weights, "dynamic"); !dynamic.is_null() && dynamic != false)
    return unsupported(field("dynamic"), dynamic, "false");
  if (const Json& actorder = at(weights, "actorder");
      !actorder.is_null() && actorder != "weight" && actorder != "static")
    return unsupported(field("actorder"), actorder, "null, \"weight\" or \"static\"");
  const Json& symmetric = at(weights, "symmetric");
  if (!symmetric.is_null() && !symmetric.is_boolean())
    return unsupported(field("symmetric"), symmetric, "true or false");
  parsed.format.symmetric = symmetric.is_null() || symmetric.get<bool>();

  const Json& strategy = at(weights, "strategy");
  const Json& group_size = at(weights, "group_size");
  if (strategy == "channel" || (strategy.is_null() && group_size == -1)) {
    parsed.format.group_size = -1;
  } else if (strategy == "group" || (strategy.is_null() && group_size.is_number_integer())) {
    if (group_size != 32 && group_size != 64 && group_size != 128)
      return unsupported(field("group_size"), group_size, "32, 64 or 128");
    parsed.format.group_size = group_size.get<int>();
  } else {
    return unsupported(field("strategy"), strategy, "\"group\" or \"channel\"");
  }
  if (const Json& observer = at(weights, "observer"); observer.is_string())
    parsed.observer = observer.get<std::string>();
  return parsed;
}

}  // namespace

Result<std::optional<QuantizationConfig>> parse_quantization_config(const Json& config) {
  const Json& section = at(config, "quantization_config");
  if (section.is_null()) return std::optional<QuantizationConfig>();
  if (!section.is_object())
    return make_error(ErrorCode::kCorrupt, "config.json: quantization_config is not an object");
  if (const Json& method = at(section, "quant_method"); method != "compressed-tensors")
    return unsupported("quant_method", method, "\"compressed-tensors\"");
  if (const Json& form = at(section, "format"); !form.is_null() && form != "pack-quantized")
    return unsupported("format", form, "\"pack-quantized\"");
  if (const Json& kv = at(section, "kv_cache_scheme"); !kv.is_null())
    return unsupported("kv_cache_scheme", kv, "null");
  const Json& groups = at(section, "config_groups");
  if (!groups.is_object() || groups.empty())
    return unsupported("config_groups", groups, "at least one group");
  QuantizationConfig parsed;
  for (const auto& [name, group] : groups.items()) {
    NB_TRY(QuantizationGroup one, parse_group(name, group));
    parsed.groups.push_back(std::move(one));
  }
  NB_TRY(parsed.ignore, string_list(at(section, "ignore"), "ignore"));
  return std::optional<QuantizationConfig>(std::move(parsed));
}

Json quantization_config_json(const QuantizationConfig& config) {
  Json groups = Json::object();
  for (size_t i = 0; i < config.groups.size(); ++i) {
    const QuantizationGroup& group = config.groups[i];
    const bool channel = group.format.group_size < 0;
    // Keys in the order other writers use: sorted.
    Json weights = {
        {"actorder", nullptr},
        {"block_structure", nullptr},
        {"dynamic", false},
        {"group_size", channel ? Json(nullptr) : Json(group.format.group_size)},
        {"num_bits", group.format.num_bits},
        {"observer", group.observer},
        {"observer_kwargs", Json::object()},
        {"scale_dtype", nullptr},
        {"strategy", channel ? "channel" : "group"},
        {"symmetric", group.format.symmetric},
        {"type", "int"},
        {"zp_dtype", group.format.symmetric ? Json(nullptr) : Json("torch.int8")},
    };
    groups[format("group_{}", i)] = {{"format", "pack-quantized"},
                                     {"input_activations", nullptr},
                                     {"output_activations", nullptr},
                                     {"targets", group.targets},
                                     {"weights", std::move(weights)}};
  }
  return {{"config_groups", std::move(groups)},  {"format", "pack-quantized"},
          {"global_compression_ratio", nullptr}, {"ignore", config.ignore},
          {"kv_cache_scheme", nullptr},          {"quant_method", "compressed-tensors"},
          {"quantization_status", "compressed"}, {"sparsity_config", Json::object()},
          {"transform_config", Json::object()},  {"version", "0.18.0"}};
}

// Element j of a line sits in word j * B / 32 at bit j * B % 32: B is 4 or 8, so none straddles.
// `stride` is the distance between neighbours of a line, so rows and columns share one loop.
namespace {

struct Lines {
  int64_t count, length;               // lines, elements per line
  int64_t value_line, value_stride;    // distance between lines / elements, in values
  int64_t packed_line, packed_stride;  // the same in words
};

void pack_lines(const int8_t* values, int bits, const Lines& lines, int32_t* packed) {
  const int per_word = 32 / bits;
  const int offset = 1 << (bits - 1);
  for (int64_t line = 0; line < lines.count; ++line) {
    for (int64_t first = 0; first < lines.length; first += per_word) {
      uint32_t word = 0;
      for (int64_t j = first; j < std::min<int64_t>(first + per_word, lines.length); ++j) {
        const int value = values[line * lines.value_line + j * lines.value_stride];
        word |= static_cast<uint32_t>(value + offset) << (bits * static_cast<int>(j - first));
      }
      packed[line * lines.packed_line + first / per_word * lines.packed_stride] =
          static_cast<int32_t>(word);
    }
  }
}

void unpack_lines(const int32_t* packed, int bits, const Lines& lines, int8_t* values) {
  const int per_word = 32 / bits;
  const int offset = 1 << (bits - 1);
  const uint32_t mask = (1u << bits) - 1;
  for (int64_t line = 0; line < lines.count; ++line) {
    for (int64_t j = 0; j < lines.length; ++j) {
      const auto word = static_cast<uint32_t>(
          packed[line * lines.packed_line + j / per_word * lines.packed_stride]);
      const auto value = static_cast<int>((word >> (bits * static_cast<int>(j % per_word))) & mask);
      values[line * lines.value_line + j * lines.value_stride] =
          static_cast<int8_t>(value - offset);
    }
  }
}

Lines row_lines(int64_t rows, int64_t columns, int bits) {
  return {rows, columns, columns, 1, packed_width(columns, bits), 1};
}
Lines column_lines(int64_t rows, int64_t columns, int) {
  return {columns, rows, 1, columns, 1, columns};
}

}  // namespace

void pack_rows(std::span<const int8_t> values, int64_t rows, int64_t columns, int bits,
               std::span<int32_t> packed) {
  NB_CHECK(static_cast<int64_t>(packed.size()) == rows * packed_width(columns, bits));
  pack_lines(values.data(), bits, row_lines(rows, columns, bits), packed.data());
}

void unpack_rows(std::span<const int32_t> packed, int64_t rows, int64_t columns, int bits,
                 std::span<int8_t> values) {
  NB_CHECK(static_cast<int64_t>(values.size()) == rows * columns);
  unpack_lines(packed.data(), bits, row_lines(rows, columns, bits), values.data());
}

void pack_columns(std::span<const int8_t> values, int64_t rows, int64_t columns, int bits,
                  std::span<int32_t> packed) {
  NB_CHECK(static_cast<int64_t>(packed.size()) == packed_width(rows, bits) * columns);
  pack_lines(values.data(), bits, column_lines(rows, columns, bits), packed.data());
}

void unpack_columns(std::span<const int32_t> packed, int64_t rows, int64_t columns, int bits,
                    std::span<int8_t> values) {
  NB_CHECK(static_cast<int64_t>(values.size()) == rows * columns);
  unpack_lines(packed.data(), bits, column_lines(rows, columns, bits), values.data());
}

}  // namespace nibble
