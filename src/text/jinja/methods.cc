// Methods of strings, dicts and lists.
#include "text/jinja/builtin.h"
#include "text/jinja/strings.h"
#include "text/unicode.h"

namespace nibble::jinja {
namespace {

std::string strip_call(const Call& call, bool left, bool right) {
  const std::string text = to_string(call.subject());
  if (!call.has(0) || call.value(0).is<None>()) return strip_text(text, nullptr, left, right);
  const std::string set = call.text(0);
  return strip_text(text, &set, left, right);
}

Value split_call(const Call& call, bool from_right) {
  const std::string& text = call.subject().as<std::string>();
  const int64_t limit = call.integer_or(1, -1);
  if (!call.has(0) || call.value(0).is<None>())
    return Value::list(split_whitespace(text, limit, from_right));
  return Value::list(split_text(text, call.text(0), limit, from_right));
}

// startswith and endswith take one string or a tuple of them.
Value affix_call(const Call& call, bool prefix) {
  const std::string& text = call.subject().as<std::string>();
  const auto matches = [&](const Value& affix) {
    if (!affix.is<std::string>())
      fail(format("{} first arg must be str or a tuple of str, not {}", call.name(),
                  affix.type_name()));
    return prefix ? text.starts_with(affix.as<std::string>())
                  : text.ends_with(affix.as<std::string>());
  };
  const Value& affix = call.value(0);
  if (!affix.is<Sequence>()) return matches(affix);
  for (const Value& one : *affix.as<Sequence>().items)
    if (matches(one)) return true;
  return false;
}

Value find_call(const Call& call, bool from_right) {
  const std::string& text = call.subject().as<std::string>();
  const std::string wanted = call.text(0);
  const size_t found = from_right ? text.rfind(wanted) : text.find(wanted);
  if (found == std::string::npos) return -1;
  return static_cast<int64_t>(count_code_points(std::string_view(text).substr(0, found)));
}

template <class Predicate>
Value every_character(const Call& call, Predicate predicate) {
  const std::string& text = call.subject().as<std::string>();
  for (const std::string_view c : characters(text))
    if (!predicate(decode_utf8(c).value)) return false;
  return !text.empty();
}

// "{} {1} {name}".format(...), without format specifications.
Value format_call(const std::string& text, const Arguments& arguments) {
  std::string out;
  size_t next = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if ((c == '{' || c == '}') && i + 1 < text.size() && text[i + 1] == c) {
      out += c;
      ++i;
    } else if (c == '{') {
      const size_t close = text.find('}', i);
      if (close == std::string::npos) fail("expected '}' before end of string");
      const std::string field = text.substr(i + 1, close - i - 1);
      const auto named =
          std::ranges::find_if(arguments.named, [&](const auto& p) { return p.first == field; });
      if (named != arguments.named.end()) {
        out += to_string(named->second);
      } else if (field.find_first_not_of("0123456789") == std::string::npos && field.size() < 6) {
        const size_t index = field.empty() ? next++ : static_cast<size_t>(std::stoi(field));
        if (index >= arguments.positional.size()) fail("Replacement index out of range");
        out += to_string(arguments.positional[index]);
      } else {
        fail(format("format field '{}' is not available in chat templates", field));
      }
      i = close;
    } else if (c == '}') {
      fail("Single '}' encountered in format string");
    } else {
      out += c;
    }
  }
  return out;
}

Value lines_call(const Call& call) {
  const std::string& text = call.subject().as<std::string>();
  List lines;
  size_t begin = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\n' && text[i] != '\r') continue;
    lines.emplace_back(text.substr(begin, i - begin));
    if (text[i] == '\r' && i + 1 < text.size() && text[i + 1] == '\n') ++i;
    begin = i + 1;
  }
  if (begin < text.size()) lines.emplace_back(text.substr(begin));
  return Value::list(std::move(lines));
}

const std::vector<Row>& string_methods() {
  static const std::vector<Row> table = {
      {"strip", {"chars"}, [](const Call& c) -> Value { return strip_call(c, true, true); }},
      {"lstrip", {"chars"}, [](const Call& c) -> Value { return strip_call(c, true, false); }},
      {"rstrip", {"chars"}, [](const Call& c) -> Value { return strip_call(c, false, true); }},
      {"split", {"sep", "maxsplit"}, [](const Call& c) { return split_call(c, false); }},
      {"rsplit", {"sep", "maxsplit"}, [](const Call& c) { return split_call(c, true); }},
      {"splitlines", {}, lines_call},
      {"startswith", {"prefix"}, [](const Call& c) { return affix_call(c, true); }},
      {"endswith", {"suffix"}, [](const Call& c) { return affix_call(c, false); }},
      {"find", {"sub"}, [](const Call& c) { return find_call(c, false); }},
      {"rfind", {"sub"}, [](const Call& c) { return find_call(c, true); }},
      {"index",
       {"sub"},
       [](const Call& c) {
         const Value found = find_call(c, false);
         if (found.integer() < 0) fail("substring not found");
         return found;
       }},
      {"count",
       {"sub"},
       [](const Call& c) -> Value {
         const std::string wanted = c.text(0);
         const std::string& text = c.subject().as<std::string>();
         if (wanted.empty()) return static_cast<int64_t>(count_code_points(text)) + 1;
         return static_cast<int64_t>(split_text(text, wanted, -1, false).size()) - 1;
       }},
      {"upper",
       {},
       [](const Call& c) -> Value {
         return map_characters(c.subject().as<std::string>(), to_upper);
       }},
      {"lower",
       {},
       [](const Call& c) -> Value {
         return map_characters(c.subject().as<std::string>(), to_lower);
       }},
      {"title", {}, [](const Call& c) -> Value { return title(c.subject().as<std::string>()); }},
      {"capitalize",
       {},
       [](const Call& c) -> Value { return capitalize(c.subject().as<std::string>()); }},
      {"replace",
       {"old", "new", "count"},
       [](const Call& c) -> Value {
         return replace_all(c.subject().as<std::string>(), c.text(0), c.text(1),
                            c.integer_or(2, -1));
       }},
      {"removeprefix",
       {"prefix"},
       [](const Call& c) -> Value {
         const std::string& text = c.subject().as<std::string>();
         const std::string prefix = c.text(0);
         return text.starts_with(prefix) ? text.substr(prefix.size()) : text;
       }},
      {"removesuffix",
       {"suffix"},
       [](const Call& c) -> Value {
         const std::string& text = c.subject().as<std::string>();
         const std::string suffix = c.text(0);
         return text.ends_with(suffix) ? text.substr(0, text.size() - suffix.size()) : text;
       }},
      {"join",
       {"iterable"},
       [](const Call& c) -> Value {
         std::string out;
         bool first = true;
         for (const Value& item : iterate(c.value(0))) {
           if (!item.is<std::string>())
             fail(format("sequence item: expected str instance, {} found", item.type_name()));
           if (!first) out += c.subject().as<std::string>();
           first = false;
           out += item.as<std::string>();
         }
         return out;
       }},
      {"isdigit",
       {},
       [](const Call& c) {
         return every_character(
             c, [](char32_t x) { return x < 128 ? x >= '0' && x <= '9' : is_number(x); });
       }},
      {"isalpha", {}, [](const Call& c) { return every_character(c, is_letter); }},
      {"isalnum",
       {},
       [](const Call& c) {
         return every_character(c, [](char32_t x) { return is_letter(x) || is_number(x); });
       }},
      {"isspace", {}, [](const Call& c) { return every_character(c, is_space); }},
      {"isupper",
       {},
       [](const Call& c) -> Value {
         const std::string& t = c.subject().as<std::string>();
         return map_characters(t, to_upper) == t && map_characters(t, to_lower) != t;
       }},
      {"islower",
       {},
       [](const Call& c) -> Value {
         const std::string& t = c.subject().as<std::string>();
         return map_characters(t, to_lower) == t && map_characters(t, to_upper) != t;
       }},
      {"zfill",
       {"width"},
       [](const Call& c) -> Value {
         std::string text = c.subject().as<std::string>();
         const int64_t width = std::min<int64_t>(c.integer_or(0, 0), 4096);
         const size_t sign = !text.empty() && (text[0] == '-' || text[0] == '+') ? 1 : 0;
         while (static_cast<int64_t>(count_code_points(text)) < width) text.insert(sign, "0");
         return text;
       }},
  };
  return table;
}

const std::vector<Row>& dict_methods() {
  static const std::vector<Row> table = {
      {"items",
       {},
       [](const Call& c) {
         List items;
         for (const auto& [key, value] : c.subject().as<Mapping>().items->items())
           items.push_back(Value::tuple({key, value}));
         return Value::list(std::move(items));
       }},
      {"keys", {}, [](const Call& c) { return Value::list(iterate(c.subject())); }},
      {"values",
       {},
       [](const Call& c) {
         List items;
         for (const auto& [key, value] : c.subject().as<Mapping>().items->items())
           items.push_back(value);
         return Value::list(std::move(items));
       }},
      {"get",
       {"key", "default"},
       [](const Call& c) {
         const Value* found = c.subject().as<Mapping>().items->find(c.value(0));
         return found != nullptr ? *found : c.value_or(1, None{});
       }},
      {"copy", {}, [](const Call& c) { return c.subject(); }},
  };
  return table;
}

const std::vector<Row>& list_methods() {
  static const std::vector<Row> table = {
      {"index",
       {"value"},
       [](const Call& c) -> Value {
         const List items = iterate(c.subject());
         for (size_t i = 0; i < items.size(); ++i)
           if (equal(items[i], c.value(0))) return static_cast<int64_t>(i);
         fail("value is not in list");
       }},
      {"count",
       {"value"},
       [](const Call& c) -> Value {
         int64_t count = 0;
         for (const Value& item : iterate(c.subject())) count += equal(item, c.value(0));
         return count;
       }},
      {"copy", {}, [](const Call& c) { return c.subject(); }},
  };
  return table;
}

// Sandboxed templates may not change what they are given.
constexpr std::string_view kMutators[] = {"append", "clear",      "pop",    "reverse",
                                          "insert", "sort",       "extend", "remove",
                                          "update", "setdefault", "popitem"};

}  // namespace

Value bound_method(const Value& object, const std::string& name) {
  const std::vector<Row>* table = nullptr;
  if (object.is<std::string>()) table = &string_methods();
  if (object.is<Mapping>()) table = &dict_methods();
  if (object.is<Sequence>()) table = &list_methods();
  if (table == nullptr) return Undefined{name};
  if (object.is<std::string>() && name == "format")
    return Value::function(name, [object](Evaluator&, const Arguments& arguments) {
      return format_call(object.as<std::string>(), arguments);
    });
  if (const Row* row = find_row(*table, name))
    return Value::function(name, [object, row](Evaluator& evaluator, const Arguments& arguments) {
      return row->run(Call(object, arguments, row->name, row->parameters, evaluator));
    });
  const bool mutator =
      !object.is<std::string>() && std::ranges::find(kMutators, name) != std::end(kMutators);
  const bool is_member =
      object.is<Mapping>() && object.as<Mapping>().items->find(std::string_view(name)) != nullptr;
  if (mutator && !is_member)
    return Value::function(name, [name](Evaluator&, const Arguments&) -> Value {
      fail(
          format("access to attribute '{}' is unsafe: templates may not change their input", name));
    });
  return Undefined{name};
}

}  // namespace nibble::jinja
