// Schema types to a set, then one attempt per type.
#include "text/tool_arguments.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "base/text.h"

namespace nibble {
namespace {

enum Type : uint32_t {
  kNull = 1,
  kInteger = 2,
  kNumber = 4,
  kBoolean = 8,
  kObject = 16,
  kArray = 32,
  kString = 64,
};

std::string trimmed(std::string_view text) {
  const auto blank = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  return std::string(text);
}

uint32_t named_type(std::string_view name) {
  static const std::map<std::string, uint32_t, std::less<>> kNames = {
      {"null", kNull},      {"none", kNull},       {"integer", kInteger}, {"int", kInteger},
      {"int32", kInteger},  {"int64", kInteger},   {"uint", kInteger},    {"uint32", kInteger},
      {"uint64", kInteger}, {"long", kInteger},    {"short", kInteger},   {"unsigned", kInteger},
      {"number", kNumber},  {"float", kNumber},    {"float32", kNumber},  {"float64", kNumber},
      {"double", kNumber},  {"boolean", kBoolean}, {"bool", kBoolean},    {"object", kObject},
      {"dict", kObject},    {"array", kArray},     {"arr", kArray},       {"list", kArray},
      {"sequence", kArray}, {"string", kString},   {"str", kString},      {"text", kString},
      {"varchar", kString}, {"char", kString},     {"enum", kString},
  };
  const auto it = kNames.find(ascii_lower(trimmed(name)));
  return it == kNames.end() ? 0u : it->second;
}

uint32_t value_type(const Json& value) {
  if (value.is_null()) return kNull;
  if (value.is_boolean()) return kBoolean;
  if (value.is_number_integer()) return kInteger;
  if (value.is_number_float()) return kNumber;
  if (value.is_string()) return kString;
  return value.is_array() ? kArray : kObject;
}

uint32_t schema_types(const Json& schema, int depth) {
  if (!schema.is_object() || depth > 32) return 0;
  uint32_t types = 0;
  if (const auto it = schema.find("type"); it != schema.end()) {
    if (it->is_string()) types |= named_type(it->get_ref<const std::string&>());
    if (it->is_array())
      for (const Json& name : *it)
        if (name.is_string()) types |= named_type(name.get_ref<const std::string&>());
  }
  if (const auto it = schema.find("enum"); it != schema.end() && it->is_array())
    for (const Json& member : *it) types |= value_type(member);
  for (const char* key : {"anyOf", "oneOf", "allOf"})
    if (const auto it = schema.find(key); it != schema.end() && it->is_array())
      for (const Json& branch : *it) types |= schema_types(branch, depth + 1);
  return types;
}

// Digits with single underscores between them, Python's int() and float().
std::optional<std::string> without_underscores(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      out += text[i];
      continue;
    }
    const auto digit = [&](size_t at) {
      return at < text.size() && text[at] >= '0' && text[at] <= '9';
    };
    if (i == 0 || !digit(i - 1) || !digit(i + 1)) return std::nullopt;
  }
  return out;
}

std::optional<Json> as_integer(std::string_view raw) {
  const std::optional<std::string> text = without_underscores(trimmed(raw));
  if (!text || text->empty()) return std::nullopt;
  const std::string digits = text->front() == '+' ? text->substr(1) : *text;
  if (digits.empty() ||
      digits.find_first_not_of("0123456789", digits[0] == '-' ? 1 : 0) != std::string::npos)
    return std::nullopt;
  int64_t value = 0;
  const auto read = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (read.ec == std::errc() && read.ptr == digits.data() + digits.size()) return Json(value);
  // Beyond 64 bits a JSON reader would round; keep the nearest double.
  double large = 0;
  const auto wide = std::from_chars(digits.data(), digits.data() + digits.size(), large);
  if (wide.ec != std::errc() || wide.ptr != digits.data() + digits.size()) return std::nullopt;
  return Json(large);
}

std::optional<Json> as_number(std::string_view raw) {
  const std::optional<std::string> text = without_underscores(trimmed(raw));
  if (!text || text->empty()) return std::nullopt;
  const char* begin = text->data() + (text->front() == '+' ? 1 : 0);
  const char* end = text->data() + text->size();
  double value = 0;
  const auto read = std::from_chars(begin, end, value);
  if (read.ec != std::errc() || read.ptr != end || !std::isfinite(value)) return std::nullopt;
  if (value == std::floor(value) && std::fabs(value) < 9.2e18)
    return Json(static_cast<int64_t>(value));
  return Json(value);
}

}  // namespace

const Json& parameter_schema(const Json& tools, std::string_view function,
                             std::string_view parameter) {
  static const Json kNull;
  if (!tools.is_array()) return kNull;
  for (const Json& tool : tools) {
    const auto member = [](const Json& object, std::string_view key) -> const Json& {
      if (!object.is_object()) return kNull;
      const auto it = object.find(key);
      return it == object.end() ? kNull : *it;
    };
    const Json& described = member(tool, "function").is_null() ? tool : member(tool, "function");
    if (member(described, "name") != std::string(function)) continue;
    return member(member(member(described, "parameters"), "properties"), parameter);
  }
  return kNull;
}

Json convert_argument(std::string_view text, const Json& schema) {
  uint32_t types = schema_types(schema, 0);
  if (types == 0) types = kString;
  if ((types & kNull) != 0 && ascii_lower(text) == "null") return nullptr;
  if ((types & kInteger) != 0)
    if (const std::optional<Json> value = as_integer(text)) return *value;
  if ((types & kNumber) != 0)
    if (const std::optional<Json> value = as_number(text)) return *value;
  if ((types & kBoolean) != 0) {
    const std::string word = ascii_lower(trimmed(text));
    if (word == "true" || word == "1") return true;
    if (word == "false" || word == "0") return false;
  }
  const auto parsed = [&]() -> std::optional<Json> {
    Result<Json> json = parse_json(text, "argument", {.allow_duplicate_keys = true});
    if (!json) return std::nullopt;
    return std::move(*json);
  };
  if ((types & (kObject | kArray)) != 0)
    if (const std::optional<Json> value = parsed()) return *value;
  if ((types & kString) != 0) return std::string(text);
  if (const std::optional<Json> value = parsed()) return *value;
  return std::string(text);
}

std::string convert_argument_text(std::string_view text, const Json& schema) {
  const uint32_t types = schema_types(schema, 0);
  if ((types & (kInteger | kNumber)) != 0) {
    std::string digits = without_underscores(trimmed(text)).value_or("");
    const bool negative = digits.starts_with('-');
    if (negative || digits.starts_with('+')) digits.erase(0, 1);
    digits.erase(0, std::min(digits.find_first_not_of('0'), digits.size()));
    if (digits.size() > 18 && digits.find_first_not_of("0123456789") == std::string::npos)
      return (negative ? "-" : "") + digits;
  }
  return dump_json_python(convert_argument(text, schema));
}

}  // namespace nibble
