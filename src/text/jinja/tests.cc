// Tests: `x is NAME`.
#include "text/jinja/builtin.h"
#include "text/jinja/strings.h"
#include "text/unicode.h"

namespace nibble::jinja {
namespace {

template <class T>
Value is_type(const Call& call) {
  return call.subject().is<T>();
}

Value order_test(const Call& call, bool (*accept)(int)) {
  return accept(compare(call.subject(), call.value(0)));
}

const std::vector<Row>& tests() {
  static const std::vector<Row> table = {
      {"defined", {}, [](const Call& c) -> Value { return !c.subject().is<Undefined>(); }},
      {"undefined", {}, is_type<Undefined>},
      {"none", {}, is_type<None>},
      {"string", {}, is_type<std::string>},
      {"mapping", {}, is_type<Mapping>},
      {"boolean", {}, is_type<bool>},
      {"integer", {}, is_type<int64_t>},
      {"float", {}, is_type<double>},
      {"number", {}, [](const Call& c) -> Value { return c.subject().is_number(); }},
      {"sequence",
       {},
       [](const Call& c) -> Value {
         return c.subject().is<Sequence>() || c.subject().is<std::string>() ||
                c.subject().is<Mapping>() || c.subject().is<Undefined>();
       }},
      {"iterable",
       {},
       [](const Call& c) -> Value {
         return c.subject().is<Sequence>() || c.subject().is<std::string>() ||
                c.subject().is<Mapping>() || c.subject().is<Undefined>();
       }},
      {"callable", {}, is_type<Callable>},
      {"true",
       {},
       [](const Call& c) -> Value { return c.subject().is<bool>() && c.subject().as<bool>(); }},
      {"false",
       {},
       [](const Call& c) -> Value { return c.subject().is<bool>() && !c.subject().as<bool>(); }},
      {"odd",
       {},
       [](const Call& c) -> Value {
         if (!c.subject().is_integer()) fail("odd expects an integer");
         return c.subject().integer() % 2 != 0;
       }},
      {"even",
       {},
       [](const Call& c) -> Value {
         if (!c.subject().is_integer()) fail("even expects an integer");
         return c.subject().integer() % 2 == 0;
       }},
      {"divisibleby",
       {"num"},
       [](const Call& c) -> Value {
         const int64_t n = c.integer_or(0, 0);
         if (n == 0 || !c.subject().is_integer()) fail("integer modulo by zero");
         return n == -1 || c.subject().integer() % n == 0;
       }},
      {"eq", {"other"}, [](const Call& c) -> Value { return equal(c.subject(), c.value(0)); }},
      {"equalto", {"other"}, [](const Call& c) -> Value { return equal(c.subject(), c.value(0)); }},
      {"==", {"other"}, [](const Call& c) -> Value { return equal(c.subject(), c.value(0)); }},
      {"ne", {"other"}, [](const Call& c) -> Value { return !equal(c.subject(), c.value(0)); }},
      {"!=", {"other"}, [](const Call& c) -> Value { return !equal(c.subject(), c.value(0)); }},
      {"lt", {"other"}, [](const Call& c) { return order_test(c, [](int x) { return x < 0; }); }},
      {"lessthan",
       {"other"},
       [](const Call& c) { return order_test(c, [](int x) { return x < 0; }); }},
      {"<", {"other"}, [](const Call& c) { return order_test(c, [](int x) { return x < 0; }); }},
      {"le", {"other"}, [](const Call& c) { return order_test(c, [](int x) { return x <= 0; }); }},
      {"<=", {"other"}, [](const Call& c) { return order_test(c, [](int x) { return x <= 0; }); }},
      {"gt", {"other"}, [](const Call& c) { return order_test(c, [](int x) { return x > 0; }); }},
      {"greaterthan",
       {"other"},
       [](const Call& c) { return order_test(c, [](int x) { return x > 0; }); }},
      {">", {"other"}, [](const Call& c) { return order_test(c, [](int x) { return x > 0; }); }},
      {"ge", {"other"}, [](const Call& c) { return order_test(c, [](int x) { return x >= 0; }); }},
      {">=", {"other"}, [](const Call& c) { return order_test(c, [](int x) { return x >= 0; }); }},
      {"in", {"seq"}, [](const Call& c) -> Value { return contains(c.value(0), c.subject()); }},
      {"lower",
       {},
       [](const Call& c) -> Value {
         const std::string t = to_string(c.subject());
         return map_characters(t, to_lower) == t && map_characters(t, to_upper) != t;
       }},
      {"upper",
       {},
       [](const Call& c) -> Value {
         const std::string t = to_string(c.subject());
         return map_characters(t, to_upper) == t && map_characters(t, to_lower) != t;
       }},
      {"sameas",
       {"other"},
       [](const Call& c) -> Value {
         return c.subject().type_name() == c.value(0).type_name() && equal(c.subject(), c.value(0));
       }},
  };
  return table;
}

}  // namespace

bool Evaluator::apply_test(const std::string& name, const Value& subject,
                           const Arguments& arguments) {
  const Row* row = find_row(tests(), name);
  if (row == nullptr) unknown("test", name, tests());
  return row->run(Call(subject, arguments, row->name, row->parameters, *this)).truthy();
}

}  // namespace nibble::jinja
