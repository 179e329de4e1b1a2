// Python semantics of values.
#include "text/jinja/value.h"

#include <algorithm>
#include <cmath>

#include "base/format.h"
#include "text/unicode.h"

namespace nibble::jinja {
namespace {

constexpr int kMaxDepth = 200;  // of nested containers that are printed or compared

std::string repr_string(const std::string& text) {
  // Python prefers single quotes unless the text has some and no double ones.
  const bool has_single = text.find('\'') != std::string::npos;
  const bool has_double = text.find('"') != std::string::npos;
  const char quote = has_single && !has_double ? '"' : '\'';
  std::string out(1, quote);
  for (const char c : text) {
    switch (c) {
      case '\\': out += "\\\\"; break;
      case '\n': out += "\\n"; break;
      case '\r': out += "\\r"; break;
      case '\t': out += "\\t"; break;
      default:
        if (c == quote) {
          out += '\\';
          out += c;
        } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
          out += format("\\x{:02x}", static_cast<unsigned char>(c));
        } else {
          out += c;
        }
    }
  }
  return out + quote;
}

std::string repr_at(const Value& value, int depth) {
  if (depth > kMaxDepth) fail("a value nested too deeply to print");
  if (value.is<Undefined>()) return "Undefined";
  if (value.is<None>()) return "None";
  if (value.is<bool>()) return value.as<bool>() ? "True" : "False";
  if (value.is<int64_t>()) return std::to_string(value.as<int64_t>());
  if (value.is<double>()) {
    const double number = value.as<double>();
    if (std::isnan(number)) return "nan";
    if (std::isinf(number)) return number < 0 ? "-inf" : "inf";
    return dump_json_python(Json(number));
  }
  if (value.is<std::string>()) return repr_string(value.as<std::string>());
  if (value.is<Sequence>()) {
    const Sequence& sequence = value.as<Sequence>();
    std::string out = sequence.tuple ? "(" : "[";
    for (size_t i = 0; i < sequence.items->size(); ++i) {
      if (i > 0) out += ", ";
      out += repr_at((*sequence.items)[i], depth + 1);
    }
    if (sequence.tuple && sequence.items->size() == 1) out += ',';
    return out + (sequence.tuple ? ")" : "]");
  }
  if (value.is<Mapping>()) {
    std::string out = "{";
    for (const auto& [key, item] : value.as<Mapping>().items->items()) {
      if (out.size() > 1) out += ", ";
      out += repr_at(key, depth + 1) + ": " + repr_at(item, depth + 1);
    }
    return out + "}";
  }
  if (value.is<Namespace>()) return "<Namespace>";
  return format("<function {}>", value.as<Callable>().name);
}

bool equal_at(const Value& a, const Value& b, int depth) {
  if (depth > kMaxDepth) fail("values nested too deeply to compare");
  if (a.is_number() && b.is_number()) {
    if (a.is_integer() && b.is_integer()) return a.integer() == b.integer();
    return a.number() == b.number();
  }
  if (a.is<Undefined>() || b.is<Undefined>()) return a.is<Undefined>() && b.is<Undefined>();
  if (a.is<None>() || b.is<None>()) return a.is<None>() && b.is<None>();
  if (a.is<std::string>() && b.is<std::string>()) return a.as<std::string>() == b.as<std::string>();
  if (a.is<Sequence>() && b.is<Sequence>()) {
    const Sequence& x = a.as<Sequence>();
    const Sequence& y = b.as<Sequence>();
    if (x.tuple != y.tuple || x.items->size() != y.items->size()) return false;
    for (size_t i = 0; i < x.items->size(); ++i)
      if (!equal_at((*x.items)[i], (*y.items)[i], depth + 1)) return false;
    return true;
  }
  if (a.is<Mapping>() && b.is<Mapping>()) {
    const Dict& x = *a.as<Mapping>().items;
    const Dict& y = *b.as<Mapping>().items;
    if (x.size() != y.size()) return false;
    for (const auto& [key, item] : x.items()) {
      const Value* other = y.find(key);
      if (other == nullptr || !equal_at(item, *other, depth + 1)) return false;
    }
    return true;
  }
  if (a.is<Namespace>() && b.is<Namespace>())
    return a.as<Namespace>().members == b.as<Namespace>().members;
  if (a.is<Callable>() && b.is<Callable>()) return a.as<Callable>().call == b.as<Callable>().call;
  return false;
}

Value from_json_at(const Json& json, int depth) {
  if (depth > kMaxDepth) fail("variables nested too deeply");
  switch (json.type()) {
    case Json::value_t::null: return None{};
    case Json::value_t::boolean: return json.get<bool>();
    case Json::value_t::number_integer: return json.get<int64_t>();
    case Json::value_t::number_unsigned:
      if (json.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) return json.get<double>();
      return static_cast<int64_t>(json.get<uint64_t>());
    case Json::value_t::number_float: return json.get<double>();
    case Json::value_t::string: return json.get<std::string>();
    case Json::value_t::array: {
      List items;
      items.reserve(json.size());
      for (const Json& item : json) items.push_back(from_json_at(item, depth + 1));
      return Value::list(std::move(items));
    }
    case Json::value_t::object: {
      Dict items;
      for (const auto& [key, item] : json.items())
        items.set(Value(key), from_json_at(item, depth + 1));
      return Value::dict(std::move(items));
    }
    default: return None{};
  }
}

Json to_json_at(const Value& value, int depth) {
  if (depth > kMaxDepth) fail("a value nested too deeply for JSON");
  if (value.is<None>()) return nullptr;
  if (value.is<bool>()) return value.as<bool>();
  if (value.is<int64_t>()) return value.as<int64_t>();
  if (value.is<double>()) return value.as<double>();
  if (value.is<std::string>()) return value.as<std::string>();
  if (value.is<Sequence>()) {
    Json array = Json::array();
    for (const Value& item : *value.as<Sequence>().items)
      array.push_back(to_json_at(item, depth + 1));
    return array;
  }
  if (value.is<Mapping>()) {
    Json object = Json::object();
    for (const auto& [key, item] : value.as<Mapping>().items->items()) {
      // json.dumps turns scalar keys into strings.
      std::string name;
      if (key.is<std::string>()) {
        name = key.as<std::string>();
      } else if (key.is<None>() || key.is_number()) {
        name = dump_json_python(to_json_at(key, depth + 1));
      } else {
        fail(format("keys must be str, int, float, bool or None, not {}", key.type_name()));
      }
      object[name] = to_json_at(item, depth + 1);
    }
    return object;
  }
  fail(format("Object of type {} is not JSON serializable", value.type_name()));
}

}  // namespace

void fail(const std::string& message) {
  throw TemplateError(0, message);
}

const Value* Dict::find(std::string_view key) const {
  const auto it = index_.find(std::string(key));
  return it == index_.end() ? nullptr : &items_[it->second].second;
}

const Value* Dict::find(const Value& key) const {
  if (key.is<std::string>()) return find(std::string_view(key.as<std::string>()));
  for (const auto& [other, value] : items_)
    if (!other.is<std::string>() && equal(other, key)) return &value;
  return nullptr;
}

void Dict::set(const Value& key, Value value) {
  if (const Value* existing = find(key)) {
    *const_cast<Value*>(existing) = std::move(value);
    return;
  }
  if (key.is<std::string>()) index_[key.as<std::string>()] = items_.size();
  items_.emplace_back(key, std::move(value));
}

bool Value::truthy() const {
  if (is<Undefined>() || is<None>()) return false;
  if (is<bool>()) return as<bool>();
  if (is<int64_t>()) return as<int64_t>() != 0;
  if (is<double>()) return as<double>() != 0;
  if (is<std::string>()) return !as<std::string>().empty();
  if (is<Sequence>()) return !as<Sequence>().items->empty();
  if (is<Mapping>()) return as<Mapping>().items->size() > 0;
  return true;
}

std::string_view Value::type_name() const {
  if (is<Undefined>()) return "Undefined";
  if (is<None>()) return "NoneType";
  if (is<bool>()) return "bool";
  if (is<int64_t>()) return "int";
  if (is<double>()) return "float";
  if (is<std::string>()) return "str";
  if (is<Sequence>()) return as<Sequence>().tuple ? "tuple" : "list";
  if (is<Mapping>()) return "dict";
  return is<Namespace>() ? "Namespace" : "function";
}

Value from_json(const Json& json) {
  return from_json_at(json, 0);
}
Json to_json(const Value& value) {
  return to_json_at(value, 0);
}

std::string to_string(const Value& value) {
  if (value.is<Undefined>()) return "";
  if (value.is<std::string>()) return value.as<std::string>();
  return repr(value);
}

std::string repr(const Value& value) {
  return repr_at(value, 0);
}
bool equal(const Value& a, const Value& b) {
  return equal_at(a, b, 0);
}

int compare(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    if (a.is_integer() && b.is_integer())
      return a.integer() < b.integer() ? -1 : a.integer() > b.integer();
    return a.number() < b.number() ? -1 : a.number() > b.number();
  }
  if (a.is<std::string>() && b.is<std::string>())
    return a.as<std::string>().compare(b.as<std::string>());  // UTF-8 orders like code points
  if (a.is<Sequence>() && b.is<Sequence>() && a.as<Sequence>().tuple == b.as<Sequence>().tuple) {
    const List& x = *a.as<Sequence>().items;
    const List& y = *b.as<Sequence>().items;
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i)
      if (!equal(x[i], y[i])) return compare(x[i], y[i]);
    return x.size() < y.size() ? -1 : x.size() > y.size();
  }
  if (a.is<Undefined>() || b.is<Undefined>())
    fail(format("'{}' is undefined", (a.is<Undefined>() ? a : b).as<Undefined>().name));
  fail(
      format("'<' not supported between instances of '{}' and '{}'", a.type_name(), b.type_name()));
}

bool contains(const Value& container, const Value& item) {
  if (container.is<std::string>()) {
    if (!item.is<std::string>())
      fail(format("'in <string>' requires string as left operand, not {}", item.type_name()));
    return container.as<std::string>().find(item.as<std::string>()) != std::string::npos;
  }
  if (container.is<Mapping>()) return container.as<Mapping>().items->find(item) != nullptr;
  if (container.is<Sequence>()) {
    for (const Value& candidate : *container.as<Sequence>().items)
      if (equal(candidate, item)) return true;
    return false;
  }
  if (container.is<Undefined>()) return false;
  fail(format("argument of type '{}' is not iterable", container.type_name()));
}

std::vector<std::string_view> characters(std::string_view text) {
  std::vector<std::string_view> out;
  while (!text.empty()) {
    const auto size = static_cast<size_t>(decode_utf8(text).num_bytes);
    out.push_back(text.substr(0, size));
    text.remove_prefix(size);
  }
  return out;
}

List iterate(const Value& value) {
  if (value.is<Sequence>()) return *value.as<Sequence>().items;
  List items;
  if (value.is<Undefined>()) return items;
  if (value.is<Mapping>()) {
    for (const auto& [key, item] : value.as<Mapping>().items->items()) items.push_back(key);
    return items;
  }
  if (value.is<std::string>()) {
    for (const std::string_view c : characters(value.as<std::string>())) items.emplace_back(c);
    return items;
  }
  fail(format("'{}' object is not iterable", value.type_name()));
}

size_t length(const Value& value) {
  if (value.is<std::string>()) return characters(value.as<std::string>()).size();
  if (value.is<Sequence>()) return value.as<Sequence>().items->size();
  if (value.is<Mapping>()) return value.as<Mapping>().items->size();
  if (value.is<Undefined>()) return 0;
  fail(format("object of type '{}' has no len()", value.type_name()));
}

}  // namespace nibble::jinja
