// yaml-cpp behind base/yaml.h, and a small writer.
#include "base/yaml.h"

#include <yaml-cpp/yaml.h>

#include <cctype>
#include <charconv>
#include <cmath>
#include <optional>

#include "base/format.h"

namespace nibble {
namespace {

// `!!str` and its like; everything else would ask for a type that JSON lacks.
bool is_core_tag(std::string_view tag) {
  constexpr std::string_view prefix = "tag:yaml.org,2002:";
  if (!tag.starts_with(prefix)) return false;
  tag.remove_prefix(prefix.size());
  for (const std::string_view type : {"str", "int", "float", "bool", "null", "map", "seq"})
    if (tag == type) return true;
  return false;
}

std::optional<Json> number(std::string_view text) {
  std::string digits;
  for (const char c : text)
    if (c != '_') digits += c;
  if (digits.empty()) return std::nullopt;
  const char* begin = digits.data() + (digits[0] == '+' ? 1 : 0);
  const char* end = digits.data() + digits.size();
  if (begin == end || !(std::isdigit(static_cast<unsigned char>(end[-1])) || end[-1] == '.'))
    return std::nullopt;
  int64_t integer = 0;
  if (const auto [stop, error] = std::from_chars(begin, end, integer);
      error == std::errc() && stop == end)
    return Json(integer);
  double real = 0;
  if (const auto [stop, error] = std::from_chars(begin, end, real);
      error == std::errc() && stop == end && std::isfinite(real))
    return Json(real);
  return std::nullopt;
}

// What a plain (unquoted) scalar means to PyYAML.
Json plain_scalar(const std::string& text) {
  for (const char* word : {"", "~", "null", "Null", "NULL"})
    if (text == word) return nullptr;
  for (const char* word : {"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"})
    if (text == word) return true;
  for (const char* word : {"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"})
    if (text == word) return false;
  if (std::optional<Json> value = number(text)) return *std::move(value);
  return text;
}

class Reader {
 public:
  Reader(std::string_view what, const YamlLimits& limits) : what_(what), limits_(limits) {}

  Result<Json> read(const YAML::Node& node, int depth) {
    if (depth > limits_.max_depth)
      return fail(node, format("nested deeper than {}", limits_.max_depth));
    if (++num_values_ > limits_.max_values)
      return fail(node, format("more than {} values", limits_.max_values));
    const std::string& tag = node.Tag();
    if (!tag.empty() && tag != "?" && tag != "!" && !is_core_tag(tag))
      return fail(node, format("tag {} is not allowed", tag));
    switch (node.Type()) {
      case YAML::NodeType::Scalar:
        return tag == "!" || tag == "tag:yaml.org,2002:str" ? Json(node.Scalar())
                                                            : plain_scalar(node.Scalar());
      case YAML::NodeType::Sequence: {
        Json list = Json::array();
        for (const YAML::Node& item : node) {
          NB_TRY(Json value, read(item, depth + 1));
          list.push_back(std::move(value));
        }
        return list;
      }
      case YAML::NodeType::Map: {
        Json object = Json::object();
        for (const auto& entry : node) {
          const YAML::Node& key = entry.first;
          const YAML::Node& item = entry.second;
          if (!key.IsScalar()) return fail(key, "a key that is not a plain word");
          if (object.contains(key.Scalar()))
            return fail(key, format("key \"{}\" appears twice", key.Scalar()));
          NB_TRY(Json value, read(item, depth + 1));
          object[key.Scalar()] = std::move(value);
        }
        return object;
      }
      default: return Json(nullptr);
    }
  }

 private:
  Error fail(const YAML::Node& node, const std::string& why) const {
    const YAML::Mark mark = node.Mark();
    return make_error(ErrorCode::kInvalidArgument, "{}: line {}, column {}: {}", what_,
                      mark.line + 1, mark.column + 1, why);
  }
  std::string_view what_;
  const YamlLimits& limits_;
  size_t num_values_ = 0;
};

bool needs_quotes(const std::string& text, bool inline_collection) {
  if (text.empty() || !plain_scalar(text).is_string()) return true;
  if (std::string_view("-?:,[]{}#&*!|>'\"%@` ").find(text.front()) != std::string_view::npos)
    return true;
  if (text.back() == ' ' || text.back() == ':') return true;
  for (const char* part : {": ", " #"})
    if (text.find(part) != std::string::npos) return true;
  return inline_collection && text.find_first_of(",[]{}:?") != std::string::npos;
}

std::string scalar_text(const Json& value, bool inline_collection) {
  if (!value.is_string()) return dump_json(value);
  const std::string& text = value.get_ref<const std::string&>();
  for (const char c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return dump_json(value);
  if (!needs_quotes(text, inline_collection)) return text;
  std::string quoted = "'";
  for (const char c : text) quoted += c == '\'' ? "''" : std::string(1, c);
  return quoted + "'";
}

std::string inline_text(const Json& value) {
  if (!value.is_structured()) return scalar_text(value, true);
  std::vector<std::string> parts;
  if (value.is_array()) {
    for (const Json& item : value) parts.push_back(inline_text(item));
    return format("[{}]", join(parts, ", "));
  }
  for (const auto& [key, item] : value.items())
    parts.push_back(format("{}: {}", scalar_text(key, true), inline_text(item)));
  return format("{{{}}}", join(parts, ", "));
}

// An empty {} or [] inside does not keep a collection from being inline.
bool fits_inline(const Json& value) {
  if (!value.is_structured() || value.empty()) return true;
  for (const Json& item : value)
    if (item.is_structured() && !item.empty()) return false;
  return true;
}

void write_block(const Json& value, size_t indent, std::string* out) {
  const std::string margin(indent, ' ');
  if (value.is_array()) {
    for (const Json& item : value) {
      if (fits_inline(item) && !item.is_object()) {
        *out += margin + "- " + inline_text(item) + "\n";
        continue;
      }
      std::string block;
      write_block(item, indent + 2, &block);
      block.replace(0, indent + 2, margin + "- ");
      *out += block;
    }
    return;
  }
  for (const auto& [key, item] : value.items()) {
    *out += margin + scalar_text(key, false) + ":";
    if (!item.is_structured()) {
      *out += " " + scalar_text(item, false) + "\n";
    } else if (fits_inline(item)) {
      *out += " " + inline_text(item) + "\n";
    } else {
      *out += "\n";
      // Lists of a mapping stay at the mapping's own margin, as PyYAML writes them.
      write_block(item, item.is_array() ? indent : indent + 2, out);
    }
  }
}

}  // namespace

Result<Json> parse_yaml(std::string_view text, std::string_view what, YamlLimits limits) {
  if (text.size() > limits.max_bytes)
    return make_error(ErrorCode::kInvalidArgument, "{}: {} bytes, the limit is {}", what,
                      text.size(), limits.max_bytes);
  try {
    const std::vector<YAML::Node> documents = YAML::LoadAll(std::string(text));
    if (documents.size() > 1)
      return make_error(ErrorCode::kInvalidArgument, "{}: {} documents in one file, expected one",
                        what, documents.size());
    if (documents.empty()) return Json(nullptr);
    return Reader(what, limits).read(documents.front(), 1);
  } catch (const YAML::Exception& error) {
    return make_error(ErrorCode::kInvalidArgument, "{}: line {}, column {}: {}", what,
                      error.mark.line + 1, error.mark.column + 1, error.msg);
  } catch (const std::exception& error) {
    return make_error(ErrorCode::kInvalidArgument, "{}: {}", what, error.what());
  }
}

std::string dump_yaml(const Json& value) {
  if (!value.is_structured() || value.empty()) return inline_text(value) + "\n";
  std::string out;
  write_block(value, 0, &out);
  return out;
}

}  // namespace nibble
