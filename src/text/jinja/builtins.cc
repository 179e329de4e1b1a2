// Filters, tests, methods and global functions: one table each.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <ctime>
#include <span>

#include "base/format.h"
#include "base/text.h"
#include "text/jinja/evaluator.h"
#include "text/unicode.h"

namespace nibble::jinja {
namespace {

// The arguments of one call, matched to parameter names.
class Call {
 public:
  Call(const Value& subject, const Arguments& arguments, std::string_view name,
       std::span<const std::string_view> parameters, Evaluator& evaluator)
      : subject_(subject), name_(name), evaluator_(evaluator), values_(parameters.size()) {
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

const Row* find_row(const std::vector<Row>& table, std::string_view name) {
  const auto it = std::ranges::find(table, name, &Row::name);
  return it == table.end() ? nullptr : &*it;
}

[[noreturn]] void unknown(std::string_view kind, const std::string& name,
                          const std::vector<Row>& table) {
  std::vector<std::string_view> names;
  for (const Row& row : table) names.push_back(row.name);
  const std::string nearest = nearest_name(name, std::span<const std::string_view>(names));
  fail(format("No {} named '{}'{}", kind, name,
              nearest.empty() ? "" : format(", the nearest is '{}'", nearest)));
}

// ---- text ------------------------------------------------------------------------------------

bool strips(std::string_view character, const std::string* set) {
  if (set == nullptr) {
    const char32_t c = decode_utf8(character).value;
    return is_space(c) || (c >= 0x1c && c <= 0x1f);
  }
  return set->find(character) != std::string::npos;
}

std::string strip_text(const std::string& text, const std::string* set, bool left, bool right) {
  const std::vector<std::string_view> all = characters(text);
  size_t begin = 0;
  size_t end = all.size();
  while (left && begin < end && strips(all[begin], set)) ++begin;
  while (right && begin < end && strips(all[end - 1], set)) --end;
  std::string out;
  for (size_t i = begin; i < end; ++i) out += all[i];
  return out;
}

std::string strip_call(const Call& call, bool left, bool right) {
  const std::string text = to_string(call.subject());
  if (!call.has(0) || call.value(0).is<None>()) return strip_text(text, nullptr, left, right);
  const std::string set = call.text(0);
  return strip_text(text, &set, left, right);
}

std::string map_characters(const std::string& text, char32_t (*change)(char32_t)) {
  std::string out;
  for (const std::string_view c : characters(text)) append_utf8(change(decode_utf8(c).value), &out);
  return out;
}

std::string capitalize(const std::string& text) {
  std::string out;
  for (const std::string_view c : characters(text)) {
    const char32_t value = decode_utf8(c).value;
    append_utf8(out.empty() ? to_upper(value) : to_lower(value), &out);
  }
  return out;
}

std::string title(const std::string& text) {
  std::string out;
  bool inside = false;
  for (const std::string_view c : characters(text)) {
    const char32_t value = decode_utf8(c).value;
    append_utf8(inside ? to_lower(value) : to_upper(value), &out);
    inside = is_letter(value);
  }
  return out;
}

std::string replace_all(const std::string& text, const std::string& from, const std::string& to,
                        int64_t count) {
  std::string out;
  size_t at = 0;
  if (from.empty()) {
    for (const std::string_view c : characters(text)) {
      if (count-- != 0) out += to;
      out += c;
    }
    if (count != 0) out += to;
    return out;
  }
  while (count-- != 0) {
    const size_t found = text.find(from, at);
    if (found == std::string::npos) break;
    out.append(text, at, found - at);
    out += to;
    at = found + from.size();
  }
  return out.append(text, at, std::string::npos);
}

List split_whitespace(const std::string& text, int64_t limit, bool from_right) {
  std::vector<std::string> words;
  const std::vector<std::string_view> all = characters(text);
  const auto n = static_cast<int64_t>(all.size());
  const int64_t direction = from_right ? -1 : 1;
  int64_t i = from_right ? n - 1 : 0;
  const auto inside = [&] { return i >= 0 && i < n; };
  while (inside()) {
    while (inside() && strips(all[static_cast<size_t>(i)], nullptr)) i += direction;
    if (!inside()) break;
    const int64_t begin = i;
    if (limit >= 0 && static_cast<int64_t>(words.size()) >= limit) {
      // The rest in one piece, stripped at its far end only.
      i = from_right ? -1 : n;
      std::string rest;
      if (from_right) {
        for (int64_t k = 0; k <= begin; ++k) rest += all[static_cast<size_t>(k)];
        words.push_back(strip_text(rest, nullptr, true, false));
      } else {
        for (int64_t k = begin; k < n; ++k) rest += all[static_cast<size_t>(k)];
        words.push_back(strip_text(rest, nullptr, false, true));
      }
      break;
    }
    while (inside() && !strips(all[static_cast<size_t>(i)], nullptr)) i += direction;
    std::string word;
    const int64_t low = from_right ? i + 1 : begin;
    const int64_t high = from_right ? begin + 1 : i;
    for (int64_t k = low; k < high; ++k) word += all[static_cast<size_t>(k)];
    words.push_back(std::move(word));
  }
  if (from_right) std::reverse(words.begin(), words.end());
  return {words.begin(), words.end()};
}

List split_text(const std::string& text, const std::string& separator, int64_t limit,
                bool from_right) {
  if (separator.empty()) fail("empty separator");
  std::vector<std::string> parts;
  if (from_right) {
    size_t end = text.size();
    while (limit < 0 || static_cast<int64_t>(parts.size()) < limit) {
      if (end < separator.size()) break;
      const size_t found = text.rfind(separator, end - separator.size());
      if (found == std::string::npos) break;
      parts.push_back(text.substr(found + separator.size(), end - found - separator.size()));
      end = found;
    }
    parts.push_back(text.substr(0, end));
    std::reverse(parts.begin(), parts.end());
  } else {
    size_t at = 0;
    while (limit < 0 || static_cast<int64_t>(parts.size()) < limit) {
      const size_t found = text.find(separator, at);
      if (found == std::string::npos) break;
      parts.push_back(text.substr(at, found - at));
      at = found + separator.size();
    }
    parts.push_back(text.substr(at));
  }
  return {parts.begin(), parts.end()};
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

// ---- filters ---------------------------------------------------------------------------------

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
      {"trim", {"chars"}, [](const Call& c) -> Value { return strip_call(c, true, true); }},
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

// ---- tests -----------------------------------------------------------------------------------

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

// ---- functions -------------------------------------------------------------------------------

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

Value Evaluator::apply_filter(const std::string& name, const Value& subject,
                              const Arguments& arguments) {
  count_steps(1 + (subject.is<std::string>() ? subject.as<std::string>().size() / 64 : 0));
  for (const std::string_view special : {"map", "select", "reject", "selectattr", "rejectattr"})
    if (name == special) return higher_order(*this, name, subject, arguments);
  const Row* row = find_row(filters(), name);
  if (row == nullptr) unknown("filter", name, filters());
  return row->run(Call(subject, arguments, row->name, row->parameters, *this));
}

bool Evaluator::apply_test(const std::string& name, const Value& subject,
                           const Arguments& arguments) {
  const Row* row = find_row(tests(), name);
  if (row == nullptr) unknown("test", name, tests());
  return row->run(Call(subject, arguments, row->name, row->parameters, *this)).truthy();
}

void add_globals(std::map<std::string, Value, std::less<>>* names) {
  (*names)["range"] = Value::function("range", range_function);
  (*names)["dict"] = Value::function("dict", [](Evaluator&, const Arguments& arguments) {
    return Value::dict(keyword_dict(arguments));
  });
  (*names)["namespace"] = Value::function("namespace", [](Evaluator&, const Arguments& arguments) {
    auto members = std::make_shared<std::map<std::string, Value>>();
    for (const auto& [key, value] : keyword_dict(arguments).items())
      (*members)[to_string(key)] = value;
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
