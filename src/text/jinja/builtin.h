// What filters, tests and methods share: a row of a table, and the arguments of one call.
#pragma once

#include <algorithm>
#include <span>

#include "base/format.h"
#include "base/text.h"
#include "text/jinja/evaluator.h"

namespace nibble::jinja {
// The arguments of one call, matched to parameter names.
class Call {
 public:
  Call(const Value& subject, const Arguments& arguments, std::string_view name,
       std::span<const std::string_view> parameters, Evaluator& evaluator)
      : subject_(subject),
        arguments_(arguments),
        name_(name),
        evaluator_(evaluator),
        values_(parameters.size()) {
    if (arguments.positional.size() > parameters.size())
      fail(format("{}() takes at most {} argument(s), {} given", name, parameters.size(),
                  arguments.positional.size()));
    for (size_t i = 0; i < arguments.positional.size(); ++i) values_[i] = &arguments.positional[i];
    for (const auto& [key, value] : arguments.named) {
      const auto it = std::ranges::find(parameters, std::string_view(key));
      if (it == parameters.end())
        fail(format("{}() got an unexpected keyword argument '{}'", name, key));
      values_[static_cast<size_t>(it - parameters.begin())] = &value;
    }
  }

  const Value& subject() const { return subject_; }
  const Arguments& arguments() const { return arguments_; }
  Evaluator& evaluator() const { return evaluator_; }
  bool has(size_t i) const { return values_[i] != nullptr; }
  const Value& value(size_t i) const {
    if (!has(i)) fail(format("{}() is missing an argument", name_));
    return *values_[i];
  }
  Value value_or(size_t i, Value fallback) const { return has(i) ? *values_[i] : fallback; }
  std::string text(size_t i) const {
    if (!value(i).is<std::string>())
      fail(format("{}() expects a string, got {}", name_, value(i).type_name()));
    return value(i).as<std::string>();
  }
  int64_t integer_or(size_t i, int64_t fallback) const {
    if (!has(i)) return fallback;
    if (!value(i).is_integer())
      fail(format("{}() expects an integer, got {}", name_, value(i).type_name()));
    return value(i).integer();
  }
  bool flag_or(size_t i, bool fallback) const { return has(i) ? value(i).truthy() : fallback; }
  std::string_view name() const { return name_; }

 private:
  const Value& subject_;
  const Arguments& arguments_;
  std::string_view name_;
  Evaluator& evaluator_;
  std::vector<const Value*> values_;
};

using Builtin = Value (*)(const Call&);
struct Row {
  std::string_view name;
  std::vector<std::string_view> parameters;
  Builtin run;
};

inline const Row* find_row(const std::vector<Row>& table, std::string_view name) {
  const auto it = std::ranges::find(table, name, &Row::name);
  return it == table.end() ? nullptr : &*it;
}

[[noreturn]] inline void unknown(std::string_view kind, const std::string& name,
                                 const std::vector<Row>& table) {
  std::vector<std::string_view> names;
  for (const Row& row : table) names.push_back(row.name);
  const std::string nearest = nearest_name(name, std::span<const std::string_view>(names));
  fail(format("No {} named '{}'{}", kind, name,
              nearest.empty() ? "" : format(", the nearest is '{}'", nearest)));
}

}  // namespace nibble::jinja
