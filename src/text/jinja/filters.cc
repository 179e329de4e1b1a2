// Filters.
#include <charconv>
#include <cmath>

#include "text/jinja/builtin.h"
#include "text/jinja/strings.h"
#include "text/unicode.h"

namespace nibble::jinja {
namespace {

std::string escape_html(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&#34;"; break;
      case '\'': out += "&#39;"; break;
      default: out += c;
    }
  }
  return out;
}

// json.dumps(value, indent=n): like Python, items on lines of their own, "," without a blank.
void dump_indented(const Json& json, int indent, int level, std::string* out) {
  const auto newline = [&](int at) {
    *out += "\n" + std::string(static_cast<size_t>(indent * at), ' ');
  };
  if ((!json.is_array() && !json.is_object()) || json.empty()) {
    *out += dump_json_python(json);
    return;
  }
  *out += json.is_array() ? '[' : '{';
  bool first = true;
  for (const auto& [key, item] : json.items()) {
    if (!first) *out += ',';
    first = false;
    newline(level + 1);
    if (json.is_object()) *out += dump_json_python(Json(key)) + ": ";
    dump_indented(item, indent, level + 1, out);
  }
  newline(level);
  *out += json.is_array() ? ']' : '}';
}

Value item_attribute(const Call& call, const Value& item, const Value& path) {
  if (path.is_integer()) return call.evaluator().attribute(item, path);
  Value current = item;
  for (const Value& part : split_text(to_string(path), ".", -1, false)) {
    const std::string& name = part.as<std::string>();
    const bool number = !name.empty() && name.size() < 10 &&
                        name.find_first_not_of("0123456789") == std::string::npos;
    if (current.is<Undefined>()) return current;
    current = call.evaluator().attribute(current, number ? Value(int64_t{std::stoi(name)}) : part);
  }
  return current;
}

Value sort_filter(const Call& call) {
  List items = iterate(call.subject());
  call.evaluator().count_steps(items.size() * 8);
  const bool reverse = call.flag_or(0, false);
  const bool case_sensitive = call.flag_or(1, false);
  const auto key = [&](const Value& item) {
    Value value =
        call.has(2) && !call.value(2).is<None>() ? item_attribute(call, item, call.value(2)) : item;
    if (!case_sensitive && value.is<std::string>())
      return Value(map_characters(value.as<std::string>(), to_lower));
    return value;
  };
  std::vector<std::pair<Value, Value>> keyed;
  for (Value& item : items) keyed.emplace_back(key(item), item);
  std::ranges::stable_sort(keyed, [&](const auto& a, const auto& b) {
    return reverse ? compare(b.first, a.first) < 0 : compare(a.first, b.first) < 0;
  });
  List sorted;
  for (auto& [ignored, item] : keyed) sorted.push_back(std::move(item));
  return Value::list(std::move(sorted));
}

Value extreme_filter(const Call& call, int sign) {
  const List items = iterate(call.subject());
  if (items.empty()) return Undefined{"No aggregated item, sequence was empty."};
  const bool case_sensitive = call.flag_or(0, false);
  const auto key = [&](const Value& item) {
    Value value =
        call.has(1) && !call.value(1).is<None>() ? item_attribute(call, item, call.value(1)) : item;
    if (!case_sensitive && value.is<std::string>())
      return Value(map_characters(value.as<std::string>(), to_lower));
    return value;
  };
  size_t best = 0;
  for (size_t i = 1; i < items.size(); ++i)
    if (compare(key(items[i]), key(items[best])) * sign > 0) best = i;
  return items[best];
}

Value default_filter(const Call& call) {
  const bool missing =
      call.subject().is<Undefined>() || (call.flag_or(1, false) && !call.subject().truthy());
  return missing ? call.value_or(0, "") : call.subject();
}

Value join_filter(const Call& call) {
  const std::string separator = to_string(call.value_or(0, ""));
  std::string out;
  bool first = true;
  for (const Value& item : iterate(call.subject())) {
    if (!first) out += separator;
    first = false;
    out += to_string(call.has(1) && !call.value(1).is<None>()
                         ? item_attribute(call, item, call.value(1))
                         : item);
    call.evaluator().count_steps(1 + out.size() / 4096);
  }
  return out;
}

Value int_filter(const Call& call) {
  const Value& value = call.subject();
  const Value fallback = call.value_or(0, 0);
  if (value.is_integer()) return value.integer();
  if (value.is<double>())
    return std::isfinite(value.number()) && std::fabs(value.number()) < 9e18
               ? Value(static_cast<int64_t>(value.number()))
               : fallback;
  if (!value.is<std::string>()) return fallback;
  const std::string text = strip_text(value.as<std::string>(), nullptr, true, true);
  const std::string digits = text.starts_with("+") ? text.substr(1) : text;
  int64_t whole = 0;
  const char* end = digits.data() + digits.size();
  const int base = static_cast<int>(std::clamp<int64_t>(call.integer_or(1, 10), 2, 36));
  if (const auto r = std::from_chars(digits.data(), end, whole, base);
      r.ec == std::errc() && r.ptr == end && !digits.empty())
    return whole;
  double real = 0;
  if (const auto r = std::from_chars(digits.data(), end, real);
      r.ec == std::errc() && r.ptr == end && !digits.empty() && std::fabs(real) < 9e18)
    return static_cast<int64_t>(real);
  return fallback;
}

Value float_filter(const Call& call) {
  const Value& value = call.subject();
  const Value fallback = call.value_or(0, 0.0);
  if (value.is_number()) return value.number();
  if (!value.is<std::string>()) return fallback;
  const std::string text = strip_text(value.as<std::string>(), nullptr, true, true);
  double real = 0;
  const char* end = text.data() + text.size();
  const auto r = std::from_chars(text.data(), end, real);
  return r.ec == std::errc() && r.ptr == end && !text.empty() ? Value(real) : fallback;
}

Value round_filter(const Call& call) {
  if (!call.subject().is_number()) fail("round expects a number");
  const double scale =
      std::pow(10.0, static_cast<double>(std::clamp<int64_t>(call.integer_or(0, 0), -15, 15)));
  const std::string method = call.has(1) ? call.text(1) : "common";
  const double x = call.subject().number() * scale;
  if (method == "ceil") return std::ceil(x) / scale;
  if (method == "floor") return std::floor(x) / scale;
  return std::nearbyint(x) / scale;
}

Value indent_filter(const Call& call) {
  const std::string pad =
      call.has(0) && call.value(0).is<std::string>()
          ? call.text(0)
          : std::string(static_cast<size_t>(std::clamp<int64_t>(call.integer_or(0, 4), 0, 256)),
                        ' ');
  const bool first = call.flag_or(1, false);
  const bool blank = call.flag_or(2, false);
  std::string out;
  bool is_first = true;
  for (const Value& line : split_text(to_string(call.subject()), "\n", -1, false)) {
    const std::string& text = line.as<std::string>();
    if (!is_first) out += '\n';
    if (is_first ? first : (blank || !text.empty())) out += pad;
    is_first = false;
    out += text;
  }
  return out;
}

Value unique_filter(const Call& call) {
  List kept;
  List keys;
  for (const Value& item : iterate(call.subject())) {
    Value key = item.is<std::string>() && !call.flag_or(0, false)
                    ? Value(map_characters(item.as<std::string>(), to_lower))
                    : item;
    call.evaluator().count_steps(keys.size() + 1);
    if (std::ranges::any_of(keys, [&](const Value& seen) { return equal(seen, key); })) continue;
    keys.push_back(std::move(key));
    kept.push_back(item);
  }
  return Value::list(std::move(kept));
}

Value dictsort_filter(const Call& call) {
  if (!call.subject().is<Mapping>()) fail("dictsort expects a dict");
  const bool by_value = call.has(1) && call.text(1) == "value";
  const bool case_sensitive = call.flag_or(0, false);
  const bool reverse = call.flag_or(2, false);
  const auto key = [&](const std::pair<Value, Value>& entry) {
    const Value& value = by_value ? entry.second : entry.first;
    return !case_sensitive && value.is<std::string>()
               ? Value(map_characters(value.as<std::string>(), to_lower))
               : value;
  };
  auto entries = call.subject().as<Mapping>().items->items();
  std::ranges::stable_sort(entries, [&](const auto& a, const auto& b) {
    return reverse ? compare(key(b), key(a)) < 0 : compare(key(a), key(b)) < 0;
  });
  List out;
  for (const auto& [name, value] : entries) out.push_back(Value::tuple({name, value}));
  return Value::list(std::move(out));
}

Value batch_filter(const Call& call) {
  const int64_t size = call.integer_or(0, 0);
  if (size < 1) fail("batch expects a size of 1 or more");
  List out;
  List current;
  for (const Value& item : iterate(call.subject())) {
    current.push_back(item);
    if (static_cast<int64_t>(current.size()) < size) continue;
    out.push_back(Value::list(std::exchange(current, {})));
  }
  if (!current.empty()) {
    while (call.has(1) && static_cast<int64_t>(current.size()) < std::min<int64_t>(size, 65536))
      current.push_back(call.value(1));
    out.push_back(Value::list(std::move(current)));
  }
  return Value::list(std::move(out));
}

Value list_edge(const Call& call, bool first) {
  const List items = iterate(call.subject());
  if (items.empty()) return Undefined{"No first item, sequence was empty."};
  return first ? items.front() : items.back();
}

const std::vector<Row>& filters() {
  static const std::vector<Row> table = {
      {"trim",
       {"chars"},
       [](const Call& c) -> Value {
         return c.evaluator().call(bound_method(Value(to_string(c.subject())), "strip"),
                                   c.arguments());
       }},
      {"length",
       {},
       [](const Call& c) -> Value { return static_cast<int64_t>(length(c.subject())); }},
      {"count",
       {},
       [](const Call& c) -> Value { return static_cast<int64_t>(length(c.subject())); }},
      {"string", {}, [](const Call& c) -> Value { return to_string(c.subject()); }},
      {"safe", {}, [](const Call& c) -> Value { return to_string(c.subject()); }},
      {"tojson",
       {"indent", "ensure_ascii", "separators", "sort_keys"},
       [](const Call& c) -> Value {
         for (const size_t refused : {1u, 2u, 3u})
           if (c.has(refused) && c.value(refused).truthy())
             fail("tojson takes only `indent` in chat templates");
         const Json json = to_json(c.subject());
         if (!c.has(0) || c.value(0).is<None>()) return dump_json_python(json);
         std::string out;
         dump_indented(json, static_cast<int>(std::clamp<int64_t>(c.integer_or(0, 0), 0, 16)), 0,
                       &out);
         return out;
       }},
      {"items",
       {},
       [](const Call& c) {
         if (c.subject().is<Undefined>()) return Value::list({});
         if (!c.subject().is<Mapping>()) fail("Can only get item pairs from a mapping.");
         return c.evaluator().call(bound_method(c.subject(), "items"), {});
       }},
      {"default", {"default_value", "boolean"}, default_filter},
      {"d", {"default_value", "boolean"}, default_filter},
      {"join", {"d", "attribute"}, join_filter},
      {"upper",
       {},
       [](const Call& c) -> Value { return map_characters(to_string(c.subject()), to_upper); }},
      {"lower",
       {},
       [](const Call& c) -> Value { return map_characters(to_string(c.subject()), to_lower); }},
      {"title", {}, [](const Call& c) -> Value { return title(to_string(c.subject())); }},
      {"capitalize", {}, [](const Call& c) -> Value { return capitalize(to_string(c.subject())); }},
      {"replace",
       {"old", "new", "count"},
       [](const Call& c) -> Value {
         return replace_all(to_string(c.subject()), c.text(0), c.text(1), c.integer_or(2, -1));
       }},
      {"first", {}, [](const Call& c) { return list_edge(c, true); }},
      {"last", {}, [](const Call& c) { return list_edge(c, false); }},
      {"list", {}, [](const Call& c) { return Value::list(iterate(c.subject())); }},
      {"int", {"default", "base"}, int_filter},
      {"float", {"default"}, float_filter},
      {"abs",
       {},
       [](const Call& c) -> Value {
         if (!c.subject().is_number()) fail("abs expects a number");
         if (c.subject().is<double>()) return std::fabs(c.subject().number());
         const int64_t value = c.subject().integer();
         if (value == INT64_MIN) fail("integer result is too large");
         return value < 0 ? -value : value;
       }},
      {"round", {"precision", "method"}, round_filter},
      {"reverse",
       {},
       [](const Call& c) -> Value {
         List items = iterate(c.subject());
         std::reverse(items.begin(), items.end());
         if (!c.subject().is<std::string>()) return Value::list(std::move(items));
         std::string out;
         for (const Value& item : items) out += item.as<std::string>();
         return out;
       }},
      {"sort", {"reverse", "case_sensitive", "attribute"}, sort_filter},
      {"unique", {"case_sensitive"}, unique_filter},
      {"min", {"case_sensitive", "attribute"}, [](const Call& c) { return extreme_filter(c, -1); }},
      {"max", {"case_sensitive", "attribute"}, [](const Call& c) { return extreme_filter(c, 1); }},
      {"sum",
       {"attribute", "start"},
       [](const Call& c) -> Value {
         double total = 0;
         int64_t whole = 0;
         bool real = false;
         const Value start = c.value_or(1, 0);
         List items = iterate(c.subject());
         items.push_back(start);
         for (size_t i = 0; i < items.size(); ++i) {
           const bool is_start = i + 1 == items.size();
           const Value value = !is_start && c.has(0) && !c.value(0).is<None>()
                                   ? item_attribute(c, items[i], c.value(0))
                                   : items[i];
           if (!value.is_number()) fail("sum expects numbers");
           real |= value.is<double>();
           total += value.number();
           if (!real && __builtin_add_overflow(whole, value.integer(), &whole))
             fail("integer result is too large");
         }
         return real ? Value(total) : Value(whole);
       }},
      {"indent", {"width", "first", "blank"}, indent_filter},
      {"batch", {"linecount", "fill_with"}, batch_filter},
      {"dictsort", {"case_sensitive", "by", "reverse"}, dictsort_filter},
      {"wordcount",
       {},
       [](const Call& c) -> Value {
         return static_cast<int64_t>(split_whitespace(to_string(c.subject()), -1, false).size());
       }},
      {"escape", {}, [](const Call& c) -> Value { return escape_html(to_string(c.subject())); }},
      {"e", {}, [](const Call& c) -> Value { return escape_html(to_string(c.subject())); }},
      {"attr",
       {"name"},
       [](const Call& c) { return c.evaluator().attribute(c.subject(), c.value(0)); }},
  };
  return table;
}

// map, select, reject, selectattr, rejectattr: the first argument names another filter or test.
Value higher_order(Evaluator& evaluator, const std::string& name, const Value& subject,
                   const Arguments& arguments) {
  const List items = iterate(subject);
  evaluator.count_steps(items.size());
  Arguments rest;
  const auto text_at = [&](size_t i) {
    if (i >= arguments.positional.size() || !arguments.positional[i].is<std::string>())
      fail(format("{} expects a name", name));
    return arguments.positional[i].as<std::string>();
  };
  const auto take_rest = [&](size_t from) {
    if (arguments.positional.size() > from)
      rest.positional.assign(arguments.positional.begin() + static_cast<ptrdiff_t>(from),
                             arguments.positional.end());
  };
  List out;
  if (name == "map") {
    const auto named = [&](std::string_view key) -> const Value* {
      for (const auto& [other, value] : arguments.named)
        if (other == key) return &value;
      return nullptr;
    };
    if (const Value* path = named("attribute")) {
      static const std::vector<std::string_view> kNoParameters;
      const Call call(subject, rest, name, kNoParameters, evaluator);
      for (const Value& item : items) {
        Value value = item_attribute(call, item, *path);
        const Value* fallback = named("default");
        out.push_back(value.is<Undefined>() && fallback != nullptr ? *fallback : value);
      }
      return Value::list(std::move(out));
    }
    const std::string filter = text_at(0);
    take_rest(1);
    rest.named = arguments.named;
    for (const Value& item : items) out.push_back(evaluator.apply_filter(filter, item, rest));
    return Value::list(std::move(out));
  }
  const bool by_attribute = name.ends_with("attr");
  const bool keep = name.starts_with("select");
  const size_t test_at = by_attribute ? 1 : 0;
  const bool has_test = arguments.positional.size() > test_at;
  const std::string test = has_test ? text_at(test_at) : "";
  take_rest(test_at + 1);
  static const std::vector<std::string_view> kNoParameters;
  const Arguments none;
  const Call call(subject, none, name, kNoParameters, evaluator);
  if (by_attribute && arguments.positional.empty()) fail(format("{} expects an attribute", name));
  for (const Value& item : items) {
    const Value value = by_attribute ? item_attribute(call, item, arguments.positional[0]) : item;
    const bool passes = has_test ? evaluator.apply_test(test, value, rest) : value.truthy();
    if (passes == keep) out.push_back(item);
  }
  return Value::list(std::move(out));
}

}  // namespace

Value Evaluator::apply_filter(const std::string& name, const Value& subject,
                              const Arguments& arguments) {
  count_steps(1 + (subject.is<std::string>() ? subject.as<std::string>().size() / 64 : 0));
  for (const std::string_view special : {"map", "select", "reject", "selectattr", "rejectattr"})
    if (name == special) return higher_order(*this, name, subject, arguments);
  const Row* row = find_row(filters(), name);
  if (row == nullptr) unknown("filter", name, filters());
  return row->run(Call(subject, arguments, row->name, row->parameters, *this));
}

}  // namespace nibble::jinja
