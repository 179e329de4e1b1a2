// Values of the template language, with Python's notions of truth, equality, order and str().
// Immutable from a template's point of view, but for namespace() objects.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "base/json.h"

namespace nibble::jinja {

// Thrown inside text/jinja only; chat_template.cc turns it into an Error.
struct TemplateError : std::runtime_error {
  TemplateError(int line_number, const std::string& message)
      : std::runtime_error(message), line(line_number) {}
  int line;             // 0: not yet known
  bool raised = false;  // by raise_exception(): the message is the template's own
};
[[noreturn]] void fail(const std::string& message);

class Value;
class Dict;
class Evaluator;
struct Arguments;

using List = std::vector<Value>;

struct Undefined {
  std::string name;  // for error messages
};
struct None {};
struct Sequence {
  std::shared_ptr<const List> items;
  bool tuple = false;
};
struct Mapping {
  std::shared_ptr<const Dict> items;
};
struct Namespace {
  std::shared_ptr<std::map<std::string, Value>> members;
};
struct Callable {
  std::string name;
  std::shared_ptr<const std::function<Value(Evaluator&, const Arguments&)>> call;
};

class Value {
 public:
  using Variant = std::variant<Undefined, None, bool, int64_t, double, std::string, Sequence,
                               Mapping, Namespace, Callable>;
  Value() : data_(Undefined{}) {}
  Value(None none) : data_(none) {}
  Value(Undefined undefined) : data_(std::move(undefined)) {}
  Value(bool value) : data_(value) {}
  Value(int64_t value) : data_(value) {}
  Value(int value) : data_(int64_t{value}) {}
  Value(double value) : data_(value) {}
  Value(std::string value) : data_(std::move(value)) {}
  Value(std::string_view value) : data_(std::string(value)) {}
  Value(const char* value) : data_(std::string(value)) {}
  Value(Sequence value) : data_(std::move(value)) {}
  Value(Mapping value) : data_(std::move(value)) {}
  Value(Namespace value) : data_(std::move(value)) {}
  Value(Callable value) : data_(std::move(value)) {}
  static Value list(List items) {
    return Sequence{std::make_shared<const List>(std::move(items)), false};
  }
  static Value tuple(List items) {
    return Sequence{std::make_shared<const List>(std::move(items)), true};
  }
  static Value dict(Dict items);
  static Value function(std::string name, std::function<Value(Evaluator&, const Arguments&)> call) {
    return Callable{std::move(name),
                    std::make_shared<const std::function<Value(Evaluator&, const Arguments&)>>(
                        std::move(call))};
  }

  template <class T>
  bool is() const {
    return std::holds_alternative<T>(data_);
  }
  template <class T>
  const T& as() const {
    return std::get<T>(data_);
  }
  bool is_integer() const { return is<int64_t>() || is<bool>(); }
  bool is_number() const { return is_integer() || is<double>(); }
  int64_t integer() const { return is<bool>() ? int64_t{as<bool>()} : as<int64_t>(); }
  double number() const { return is<double>() ? as<double>() : static_cast<double>(integer()); }

  bool truthy() const;
  std::string_view type_name() const;  // Python's: "str", "int", "dict"...

 private:
  Variant data_;
};

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

// Insertion-ordered, string keys found by hash, other keys by scan.
class Dict {
 public:
  const Value* find(const Value& key) const;
  const Value* find(std::string_view key) const;
  void set(const Value& key, Value value);
  const std::vector<std::pair<Value, Value>>& items() const { return items_; }
  size_t size() const { return items_.size(); }

 private:
  std::vector<std::pair<Value, Value>> items_;
  std::unordered_map<std::string, size_t> index_;
};

inline Value Value::dict(Dict items) {
  return Mapping{std::make_shared<const Dict>(std::move(items))};
}

Value from_json(const Json& json);
// What tojson prints. Undefined and callables have no JSON and are an error.
Json to_json(const Value& value);

std::string to_string(const Value& value);  // str()
std::string repr(const Value& value);
bool equal(const Value& a, const Value& b);
// Negative, zero or positive; an error for values Python does not order.
int compare(const Value& a, const Value& b);
bool contains(const Value& container, const Value& item);

// The items a `for` loop sees; an error when the value is not iterable. Undefined iterates as
// empty.
List iterate(const Value& value);
size_t length(const Value& value);

// Code points of a string as separate strings.
std::vector<std::string_view> characters(std::string_view text);

}  // namespace nibble::jinja
