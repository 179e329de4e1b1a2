// Global functions.
#include <ctime>

#include "base/format.h"
#include "text/jinja/evaluator.h"

namespace nibble::jinja {
namespace {

Value range_function(Evaluator& evaluator, const Arguments& arguments) {
  int64_t bounds[3] = {0, 0, 1};
  const size_t n = arguments.positional.size();
  if (n < 1 || n > 3) fail(format("range expected 1 to 3 arguments, got {}", n));
  for (const Value& value : arguments.positional)
    if (!value.is_integer())
      fail(format("'{}' object cannot be interpreted as an integer", value.type_name()));
  if (n == 1) bounds[1] = arguments.positional[0].integer();
  for (size_t i = 0; n > 1 && i < n; ++i) bounds[i] = arguments.positional[i].integer();
  if (bounds[2] == 0) fail("range() arg 3 must not be zero");
  List items;
  for (int64_t i = bounds[0]; bounds[2] > 0 ? i < bounds[1] : i > bounds[1];) {
    if (items.size() >= 100000)
      fail("Range too big. The sandbox blocks ranges larger than 100000.");
    evaluator.count_steps(1);
    items.emplace_back(i);
    if (__builtin_add_overflow(i, bounds[2], &i)) break;
  }
  return Value::list(std::move(items));
}

Dict keyword_dict(const Arguments& arguments) {
  Dict dict;
  for (const Value& value : arguments.positional) {
    if (!value.is<Mapping>()) fail(format("'{}' object is not a mapping", value.type_name()));
    for (const auto& [key, item] : value.as<Mapping>().items->items()) dict.set(key, item);
  }
  for (const auto& [key, value] : arguments.named) dict.set(Value(key), value);
  return dict;
}

}  // namespace

void add_globals(std::map<std::string, Value, std::less<>>* names) {
  (*names)["range"] = Value::function("range", range_function);
  (*names)["dict"] = Value::function("dict", [](Evaluator&, const Arguments& arguments) {
    return Value::dict(keyword_dict(arguments));
  });
  (*names)["namespace"] = Value::function("namespace", [](Evaluator&, const Arguments& arguments) {
    auto members = std::make_shared<std::map<std::string, Value>>();
    const Dict initial = keyword_dict(arguments);
    for (const auto& [key, value] : initial.items()) (*members)[to_string(key)] = value;
    return Value(Namespace{std::move(members)});
  });
  (*names)["raise_exception"] =
      Value::function("raise_exception", [](Evaluator&, const Arguments& arguments) -> Value {
        TemplateError error(0,
                            arguments.positional.empty() ? "" : to_string(arguments.positional[0]));
        error.raised = true;
        throw error;
      });
  (*names)["strftime_now"] =
      Value::function("strftime_now", [](Evaluator&, const Arguments& arguments) -> Value {
        if (arguments.positional.empty() || !arguments.positional[0].is<std::string>())
          fail("strftime_now expects a format");
        const std::time_t now = std::time(nullptr);
        std::tm local{};
        localtime_r(&now, &local);
        char buffer[512];
        const size_t size = std::strftime(
            buffer, sizeof buffer, arguments.positional[0].as<std::string>().c_str(), &local);
        return std::string(buffer, size);
      });
}

}  // namespace nibble::jinja
