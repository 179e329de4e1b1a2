// yaml-cpp nodes to Json.
#include "base/yaml.h"

#include <yaml-cpp/yaml.h>

#include <charconv>
#include <cmath>

#include "base/format.h"

namespace nibble {
namespace {

constexpr size_t kMaxBytes = size_t{1} << 20;
constexpr size_t kMaxNodes = 100'000;  // aliases count each time they are used
constexpr int kMaxDepth = 32;

Json plain_scalar(const std::string& text) {
  if (text.empty() || text == "~" || text == "null" || text == "Null" || text == "NULL")
    return nullptr;
  if (text == "true" || text == "True" || text == "TRUE") return true;
  if (text == "false" || text == "False" || text == "FALSE") return false;
  const char* begin = text.data() + (text[0] == '+' ? 1 : 0);
  const char* end = text.data() + text.size();
  int64_t whole = 0;
  if (const auto read = std::from_chars(begin, end, whole);
      read.ec == std::errc() && read.ptr == end)
    return whole;
  double real = 0;
  const bool numeric = text.find_first_of("0123456789") != std::string::npos;
  if (const auto read = std::from_chars(begin, end, real);
      numeric && read.ec == std::errc() && read.ptr == end && std::isfinite(real))
    return real;
  return text;
}

Result<Json> convert(const YAML::Node& node, std::string_view what, int depth, size_t* num_nodes) {
  const auto line = [&] { return node.Mark().line + 1; };
  if (depth > kMaxDepth)
    return make_error(ErrorCode::kCorrupt, "{}: line {}: nested deeper than {} levels", what,
                      line(), kMaxDepth);
  if (++*num_nodes > kMaxNodes)
    return make_error(ErrorCode::kCorrupt, "{}: more than {} values", what, kMaxNodes);
  switch (node.Type()) {
    case YAML::NodeType::Undefined:
    case YAML::NodeType::Null: return Json();
    case YAML::NodeType::Scalar:
      return node.Tag() == "!" ? Json(node.Scalar()) : plain_scalar(node.Scalar());
    case YAML::NodeType::Sequence: {
      Json list = Json::array();
      for (const YAML::Node& item : node) {
        NB_TRY(Json value, convert(item, what, depth + 1, num_nodes));
        list.push_back(std::move(value));
      }
      return list;
    }
    case YAML::NodeType::Map: {
      Json object = Json::object();
      for (const auto& entry : node) {
        if (!entry.first.IsScalar())
          return make_error(ErrorCode::kCorrupt, "{}: line {}: a key that is no text", what,
                            line());
        const std::string& key = entry.first.Scalar();
        if (object.contains(key))
          return make_error(ErrorCode::kCorrupt, "{}: line {}: key \"{}\" occurs twice", what,
                            entry.first.Mark().line + 1, key);
        NB_TRY(Json value, convert(entry.second, what, depth + 1, num_nodes));
        object[key] = std::move(value);
      }
      return object;
    }
  }
  return Json();
}

}  // namespace

Result<Json> parse_yaml(std::string_view text, std::string_view what) {
  if (text.size() > kMaxBytes)
    return make_error(ErrorCode::kInvalidArgument, "{}: {} bytes of YAML, the limit is {}", what,
                      text.size(), kMaxBytes);
  try {
    size_t num_nodes = 0;
    return convert(YAML::Load(std::string(text)), what, 0, &num_nodes);
  } catch (const YAML::Exception& error) {
    return make_error(ErrorCode::kCorrupt, "{}: line {}: {}", what, error.mark.line + 1, error.msg);
  }
}

}  // namespace nibble
