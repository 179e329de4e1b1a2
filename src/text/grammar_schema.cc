// A schema is first made plain (references and allOf merged into one object), then each type
// becomes an expression. Properties come in the schema's order, so no state has to remember which
// ones were written.
#include "text/grammar_schema.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <optional>
#include <set>

#include "base/format.h"
#include "text/grammar_formats.h"
#include "text/grammar_json.h"
#include "text/grammar_number.h"
#include "text/grammar_regex.h"
#include "text/grammar_schema_merge.h"

namespace nibble {
namespace {

constexpr int kMaxDepth = 128;
constexpr int kMaxSchemas = 20'000;    // after merging and spreading anyOf over its siblings
constexpr int64_t kMaxCount = 20'000;  // of items, characters, properties

constexpr std::array kUnsupported = {
    "not",
    "if",
    "then",
    "else",
    "dependentRequired",
    "dependencies",
    "contains",
    "minContains",
    "maxContains",
    "dependentSchemas",
    "propertyNames",
    "uniqueItems",
    "multipleOf",
    "$dynamicRef",
    "$recursiveRef",
    "unevaluatedItems",
};
constexpr std::array kObjectWords = {"properties",    "required",      "additionalProperties",
                                     "minProperties", "maxProperties", "patternProperties"};
constexpr std::array kArrayWords = {"items", "prefixItems", "minItems", "maxItems"};
constexpr std::array kStringWords = {"minLength", "maxLength", "pattern", "format"};
constexpr std::array kNumberWords = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"};

template <size_t N>
bool has_any(const Json& schema, const std::array<const char*, N>& words) {
  return std::ranges::any_of(words, [&](const char* word) { return schema.contains(word); });
}

bool is_of_type(const Json& value, std::string_view type) {
  if (type == "object") return value.is_object();
  if (type == "array") return value.is_array();
  if (type == "string") return value.is_string();
  if (type == "boolean") return value.is_boolean();
  if (type == "null") return value.is_null();
  if (type == "number") return value.is_number();
  return value.is_number_integer() ||
         (value.is_number_float() && std::floor(value.get<double>()) == value.get<double>());
}

}  // namespace

class SchemaGrammar::Builder {
 public:
  Builder(const Json& root, const GrammarOptions& options, GrammarRules* rules)
      : root_(root), options_(options), r_(*rules), json_(options, rules) {}

  Result<ExprId> value(const Json& schema, const std::string& path, int depth) {
    if (depth > kMaxDepth) return error(path, format("nested deeper than {}", kMaxDepth));
    if (++num_schemas_ > kMaxSchemas)
      return error(path,
                   format("more than {} schemas once allOf and anyOf are spread out", kMaxSchemas));
    if (schema.is_boolean()) return schema.get<bool>() ? json_.any_value() : r_.never();
    if (!schema.is_object()) return error(path, "a schema must be an object or a boolean");
    if (schema.contains("$ref") && !has_siblings(schema))
      return reference(schema["$ref"], path, depth);
    if (schema.contains("$ref") || schema.contains("allOf")) {
      NB_TRY(const Json merged, merge_schemas(schema, root_, path));
      return value(merged, path, depth + 1);
    }
    for (const char* word : kUnsupported) {
      const auto it = schema.find(word);
      if (it == schema.end()) continue;
      const std::string_view name = word;
      if (name == "uniqueItems" && *it == false) continue;
      if (name == "unevaluatedItems" && *it == false) continue;
      if (name == "multipleOf" && *it == 1 && schema.value("type", Json()) == "integer") continue;
      return make_error(ErrorCode::kUnsupported, "json schema {}.{}: this keyword is not supported",
                        path, word);
    }
    if (schema.contains("const") || schema.contains("enum")) return literals(schema, path);
    for (const char* word : {"anyOf", "oneOf"})
      if (schema.contains(word)) return any_of(schema, word, path, depth);
    NB_TRY(const ExprId typed, by_type(schema, path, depth));
    if (schema.value("nullable", Json()) == true) return r_.choice({typed, r_.bytes("null")});
    return typed;
  }

  Result<ExprId> qwen_parameters(const Json& given, const std::string& path) {
    Json schema = given;
    if (schema.is_object() && (schema.contains("$ref") || schema.contains("allOf"))) {
      NB_TRY(schema, merge_schemas(given, root_, path));
    }
    const auto properties = schema.is_object() ? schema.find("properties") : schema.end();
    if (!schema.is_object() || properties == schema.end() || !properties->is_object())
      return any_qwen_parameters();
    NB_TRY(const std::vector<std::string> required, required_names(schema, path));
    std::vector<ExprId> parts;
    for (const auto& [name, property] : properties->items()) {
      if (name.empty() || name.find_first_of(">\n<") != std::string::npos)
        return error(path + ".properties",
                     format("the name \"{}\" cannot be written in a tag", name));
      const std::string place = path + ".properties." + name;
      NB_TRY(const ExprId text, qwen_value(property, place, 0));
      const ExprId part =
          r_.call_new(name, r_.sequence({r_.bytes("<parameter=" + name + ">\n"), text}));
      const bool is_required = std::ranges::find(required, name) != required.end();
      parts.push_back(is_required ? part : r_.optional(part));
    }
    return r_.sequence(std::move(parts));
  }

 private:
  Error error(const std::string& path, std::string_view what) const {
    return make_error(ErrorCode::kInvalidArgument, "json schema {}: {}", path, what);
  }

  static bool has_siblings(const Json& schema) {
    for (const auto& [key, unused] : schema.items())
      if (key != "$ref" && !is_annotation(key)) return true;
    return false;
  }

  Result<ExprId> reference(const Json& ref, const std::string& path, int depth) {
    NB_TRY(const Json* target, find_reference(root_, ref, path));
    const auto [known, is_new] = references_.try_emplace(target, -1);
    if (!is_new) return r_.call(known->second);
    const RuleId rule = r_.add_rule(ref.get<std::string>());
    known->second = rule;
    NB_TRY(const ExprId body, value(*target, ref.get<std::string>(), depth + 1));
    r_.define(rule, body);
    return r_.call(rule);
  }

  Result<ExprId> literals(const Json& schema, const std::string& path) {
    Json values = Json::array();
    if (schema.contains("const")) {
      values.push_back(schema["const"]);
    } else {
      if (!schema["enum"].is_array() || schema["enum"].empty())
        return error(path + ".enum", "must be a list with at least one value");
      values = schema["enum"];
    }
    if (schema.contains("const") && schema.contains("enum") && schema["enum"].is_array() &&
        std::ranges::find(schema["enum"], schema["const"]) == schema["enum"].end())
      return error(path, "const is not one of enum");
    NB_TRY(const std::vector<std::string> types, types_of(schema, path));
    std::vector<ExprId> parts;
    for (const Json& v : values) {
      const bool fits =
          types.empty() || schema.value("nullable", Json()) == true ||
          std::ranges::any_of(types, [&](const std::string& t) { return is_of_type(v, t); });
      if (fits) parts.push_back(r_.bytes(dump_json_python(v)));
    }
    if (parts.empty()) return error(path, "no value of enum or const has the type asked for");
    return r_.choice(std::move(parts));
  }

  // Siblings hold for each branch.
  Result<ExprId> any_of(const Json& schema, const char* word, const std::string& path, int depth) {
    const Json& branches = schema[word];
    const std::string place = format("{}.{}", path, word);
    if (!branches.is_array() || branches.empty())
      return error(place, "must be a list with at least one schema");
    Json siblings = Json::object();
    for (const auto& [key, v] : schema.items())
      if (key != word && !is_annotation(key)) siblings[key] = v;
    std::vector<ExprId> parts;
    for (size_t i = 0; i < branches.size(); ++i) {
      const std::string branch_path = format("{}[{}]", place, i);
      if (siblings.empty()) {
        NB_TRY(const ExprId part, value(branches[i], branch_path, depth + 1));
        parts.push_back(part);
      } else {
        Json both = Json::object();
        both["allOf"] = Json::array({siblings, branches[i]});
        NB_TRY(const ExprId part, value(both, branch_path, depth + 1));
        parts.push_back(part);
      }
    }
    return r_.choice(std::move(parts));
  }

  Result<std::vector<std::string>> types_of(const Json& schema, const std::string& path) {
    std::vector<std::string> types;
    const auto it = schema.find("type");
    if (it == schema.end()) return types;
    static constexpr std::string_view kTypes[] = {"object",  "array",   "string", "number",
                                                  "integer", "boolean", "null"};
    for (const Json& type : it->is_array() ? *it : Json::array({*it})) {
      if (!type.is_string() ||
          std::ranges::find(kTypes, type.get<std::string>()) == std::end(kTypes))
        return error(path + ".type", format("{} is not a type; types are object, array, string, "
                                            "number, integer, boolean, null",
                                            dump_json(type)));
      types.push_back(type.get<std::string>());
    }
    if (types.empty()) return error(path + ".type", "an empty list");
    return types;
  }

  Result<ExprId> by_type(const Json& schema, const std::string& path, int depth) {
    NB_TRY(std::vector<std::string> types, types_of(schema, path));
    if (types.empty()) {
      // Keywords of one type ask for that type here: a schema of which only they are known would
      // allow everything else as well.
      if (has_any(schema, kObjectWords)) types.push_back("object");
      if (has_any(schema, kArrayWords)) types.push_back("array");
      if (has_any(schema, kStringWords)) types.push_back("string");
      if (has_any(schema, kNumberWords)) types.push_back("number");
      if (types.empty()) return json_.any_value();
    }
    std::vector<ExprId> parts;
    for (const std::string& type : types) {
      NB_TRY(const ExprId part, of_type(type, schema, path, depth));
      parts.push_back(part);
    }
    return r_.choice(std::move(parts));
  }

  Result<ExprId> of_type(const std::string& type, const Json& schema, const std::string& path,
                         int depth) {
    if (type == "object") return object(schema, path, depth);
    if (type == "array") return array(schema, path, depth);
    if (type == "string") return string_of(schema, path);
    if (type == "number") return number(schema, path);
    if (type == "integer") return integer(schema, path);
    if (type == "boolean") return r_.choice({r_.bytes("true"), r_.bytes("false")});
    return r_.bytes("null");
  }

  // A count such as minItems; `fallback` when absent.
  Result<int64_t> count(const Json& schema, const char* word, int64_t fallback,
                        const std::string& path) {
    const auto it = schema.find(word);
    if (it == schema.end()) return fallback;
    const bool whole =
        it->is_number_integer() ||
        (it->is_number_float() && std::floor(it->get<double>()) == it->get<double>());
    const double number = whole ? it->get<double>() : -1;
    if (number < 0)
      return error(format("{}.{}", path, word), format("{} is not a count", dump_json(*it)));
    if (number > static_cast<double>(kMaxCount))
      return error(format("{}.{}", path, word),
                   format("{} is more than the {} supported", dump_json(*it), kMaxCount));
    return static_cast<int64_t>(number);
  }
  struct Counts {
    int32_t min, max;
  };
  Result<Counts> counts(const Json& schema, const char* min_word, const char* max_word,
                        const std::string& path) {
    NB_TRY(const int64_t min, count(schema, min_word, 0, path));
    NB_TRY(const int64_t max, count(schema, max_word, -1, path));
    if (max >= 0 && max < min)
      return error(path, format("{} {} is more than {} {}", min_word, min, max_word, max));
    return Counts{static_cast<int32_t>(min), static_cast<int32_t>(max)};
  }

  // --- strings

  Result<ExprId> string_of(const Json& schema, const std::string& path) {
    const bool has_length = schema.contains("minLength") || schema.contains("maxLength");
    std::optional<std::string> pattern;
    bool search = false;
    if (const auto it = schema.find("pattern"); it != schema.end()) {
      if (!it->is_string()) return error(path + ".pattern", "must be a string");
      pattern = it->get<std::string>();
      search = true;
    }
    if (const auto it = schema.find("format"); it != schema.end()) {
      if (!it->is_string()) return error(path + ".format", "must be a string");
      // An annotation by the standard: where pattern or a length is given too, that counts.
      const std::string_view known = string_format_pattern(it->get<std::string>());
      if (!known.empty() && !pattern && !has_length) pattern = known;
    }
    if (pattern && has_length)
      return make_error(ErrorCode::kUnsupported,
                        "json schema {}: pattern together with minLength or maxLength is not "
                        "supported; write the length into the pattern",
                        path);
    if (pattern) {
      Result<ExprId> inside =
          parse_grammar_regex(*pattern, {.search = search, .json_string = true}, &r_);
      if (!inside) return error(path + ".pattern", inside.error().message);
      return r_.call_new("string", r_.sequence({r_.bytes("\""), *inside, r_.bytes("\"")}));
    }
    if (!has_length) return json_.string();
    NB_TRY(const Counts length, counts(schema, "minLength", "maxLength", path));
    return r_.call_new(
        "string", r_.sequence({r_.bytes("\""), r_.repeat(json_.character(), length.min, length.max),
                               r_.bytes("\"")}));
  }

  // --- numbers

  Result<std::optional<NumberBound>> bound(const Json& schema, bool is_lower,
                                           const std::string& path) {
    const char* words[] = {is_lower ? "minimum" : "maximum",
                           is_lower ? "exclusiveMinimum" : "exclusiveMaximum"};
    std::optional<NumberBound> best;
    double best_value = 0;
    for (int i = 0; i < 2; ++i) {
      const auto it = schema.find(words[i]);
      if (it == schema.end()) continue;
      if (i == 1 && it->is_boolean()) continue;  // draft 4: taken below
      if (!it->is_number()) return error(format("{}.{}", path, words[i]), "must be a number");
      const double v = it->get<double>();
      bool exclusive = i == 1;
      if (i == 0 && schema.value(words[1], Json()) == true) exclusive = true;
      if (std::fabs(v) >= 1e18) {
        if ((v < 0) == is_lower) continue;  // no number we write goes so far
        return error(format("{}.{}", path, words[i]), "a bound past 1e18 is not supported");
      }
      const bool tighter =
          !best || (is_lower ? v > best_value : v < best_value) || (v == best_value && exclusive);
      if (!tighter) continue;
      best_value = v;
      best =
          NumberBound{it->is_number_integer() ? dump_json(*it) : format("{:.15f}", v), exclusive};
    }
    return best;
  }

  Result<ExprId> integer(const Json& schema, const std::string& path) {
    NB_TRY(const std::optional<NumberBound> low, bound(schema, true, path));
    NB_TRY(const std::optional<NumberBound> high, bound(schema, false, path));
    if (!low && !high) {
      if (integer_ < 0) integer_ = r_.call_new("integer", any_integer(&r_));
      return integer_;
    }
    std::optional<int64_t> first;
    std::optional<int64_t> last;
    if (low) first = whole_bound(*low, true);
    if (high) last = whole_bound(*high, false);
    if (first && last && *first > *last) return error(path, "no integer lies within the bounds");
    return r_.call_new("integer", integer_between(first, last, &r_));
  }
  static int64_t whole_bound(const NumberBound& bound, bool is_lower) {
    const bool is_whole = bound.decimal.find('.') == std::string::npos ||
                          bound.decimal.find_last_not_of('0') == bound.decimal.find('.');
    const int64_t truncated = std::stoll(bound.decimal);
    const bool negative = bound.decimal.starts_with('-');
    if (is_whole) return truncated + (bound.exclusive ? (is_lower ? 1 : -1) : 0);
    // Truncation goes towards zero.
    if (is_lower) return negative ? truncated : truncated + 1;
    return negative ? truncated - 1 : truncated;
  }

  Result<ExprId> number(const Json& schema, const std::string& path) {
    NB_TRY(const std::optional<NumberBound> low, bound(schema, true, path));
    NB_TRY(const std::optional<NumberBound> high, bound(schema, false, path));
    if (!low && !high) {
      if (number_ < 0) number_ = r_.call_new("number", any_number(&r_));
      return number_;
    }
    if (low && high && std::stod(low->decimal) > std::stod(high->decimal))
      return error(path, "no number lies within the bounds");
    return r_.call_new("number", number_between(low, high, &r_));
  }

  // --- arrays

  Result<ExprId> array(const Json& schema, const std::string& path, int depth) {
    NB_TRY(const Counts length, counts(schema, "minItems", "maxItems", path));
    const auto items = schema.find("items");
    // Draft 7 wrote prefixItems as a list under items.
    const bool old_tuple = items != schema.end() && items->is_array();
    const auto prefix = old_tuple ? items : schema.find("prefixItems");
    Json rest_schema = true;
    const auto rest_place = old_tuple ? schema.find("additionalItems") : items;
    if (rest_place != schema.end()) rest_schema = *rest_place;
    if (prefix != schema.end() && rest_place == schema.end()) rest_schema = options_.open_objects;

    std::vector<ExprId> tuple;
    if (prefix != schema.end()) {
      if (!prefix->is_array()) return error(path + ".prefixItems", "must be a list");
      for (size_t i = 0; i < prefix->size(); ++i) {
        if (length.max >= 0 && i >= static_cast<size_t>(length.max)) break;
        NB_TRY(const ExprId item,
               value((*prefix)[i], format("{}.prefixItems[{}]", path, i), depth + 1));
        tuple.push_back(r_.call_new("item", item));
      }
    }
    const auto num_tuple = static_cast<int32_t>(tuple.size());
    const bool no_rest = rest_schema == false || length.max == num_tuple;
    if (no_rest && length.min > num_tuple)
      return error(path, format("minItems {} with only {} items allowed", length.min, num_tuple));
    ExprId rest = r_.empty();
    if (!no_rest) {
      NB_TRY(const ExprId body, value(rest_schema, path + ".items", depth + 1));
      const ExprId item = r_.call_new("item", body);
      if (tuple.empty()) return json_.list_of(item, length.min, length.max);
      rest = r_.repeat(r_.call_new("next item", r_.sequence({json_.comma(), item})),
                       std::max(0, length.min - num_tuple),
                       length.max < 0 ? -1 : length.max - num_tuple);
    }
    // From the back: item i and what may follow it.
    ExprId tail = rest;
    for (int32_t i = num_tuple - 1; i >= 0; --i) {
      std::vector<ExprId> parts;
      if (i > 0) parts.push_back(json_.comma());
      parts.push_back(tuple[static_cast<size_t>(i)]);
      parts.push_back(tail);
      tail = r_.call_new("tuple", r_.sequence(std::move(parts)));
      if (i >= length.min) tail = r_.optional(tail);
    }
    return r_.sequence({json_.open("["), tail, json_.close("]")});
  }

  // --- objects

  Result<std::vector<std::string>> required_names(const Json& schema, const std::string& path) {
    std::vector<std::string> names;
    const auto it = schema.find("required");
    if (it == schema.end() || it->is_boolean()) return names;  // draft 3 wrote a boolean
    if (!it->is_array()) return error(path + ".required", "must be a list of names");
    for (const Json& name : *it) {
      if (!name.is_string()) return error(path + ".required", "must be a list of names");
      names.push_back(name.get<std::string>());
    }
    return names;
  }

  Result<ExprId> object(const Json& schema, const std::string& path, int depth) {
    Json properties = Json::object();
    if (const auto it = schema.find("properties"); it != schema.end()) {
      if (!it->is_object()) return error(path + ".properties", "must be an object");
      properties = *it;
    }
    NB_TRY(const std::vector<std::string> required, required_names(schema, path));
    NB_TRY(const Counts size, counts(schema, "minProperties", "maxProperties", path));
    Json additional = properties.empty() || options_.open_objects;
    if (const auto it = schema.find("additionalProperties"); it != schema.end())
      additional = *it;
    else if (schema.value("unevaluatedProperties", Json()) == false)
      additional = false;
    const auto patterns = schema.find("patternProperties");
    if (patterns != schema.end() && !schema.contains("additionalProperties")) additional = false;
    // A name that is required but not described is an additional property that must be there.
    for (const std::string& name : required)
      if (!properties.contains(name))
        properties[name] = additional == false ? Json(true) : additional;

    std::vector<ExprId> extras;
    if (patterns != schema.end()) {
      if (!patterns->is_object()) return error(path + ".patternProperties", "must be an object");
      for (const auto& [pattern, property] : patterns->items()) {
        const std::string place = format("{}.patternProperties.{}", path, pattern);
        const Result<ExprId> key =
            parse_grammar_regex(pattern, {.search = true, .json_string = true}, &r_);
        if (!key) return error(place, key.error().message);
        NB_TRY(const ExprId body, value(property, place, depth + 1));
        extras.push_back(r_.sequence({r_.bytes("\""), *key, r_.bytes("\""), json_.colon(), body}));
      }
    }
    if (additional != false && patterns == schema.end()) {
      NB_TRY(const ExprId body, value(additional, path + ".additionalProperties", depth + 1));
      extras.push_back(r_.sequence({other_key(properties), json_.colon(), body}));
    }
    const ExprId extra =
        extras.empty() ? r_.never() : r_.call_new("extra", r_.choice(std::move(extras)));

    const auto is_required = [&](const std::string& name) {
      return std::ranges::find(required, name) != required.end();
    };
    if (properties.empty()) return json_.object_of(extra, size.min, size.max);
    std::set<std::string> distinct(required.begin(), required.end());
    const auto num_required = static_cast<int64_t>(distinct.size());
    if (size.min > num_required ||
        (size.max >= 0 && (extra_possible(additional, patterns != schema.end()) ||
                           size.max < static_cast<int64_t>(properties.size()))))
      return make_error(ErrorCode::kUnsupported,
                        "json schema {}: minProperties and maxProperties are supported only where "
                        "`properties` is absent or cannot break them",
                        path);

    // `after`: what may follow once something has been written; `first`: once nothing has.
    ExprId after = r_.repeat(r_.call_new("more", r_.sequence({json_.comma(), extra})), 0, -1);
    ExprId first = r_.optional(r_.sequence({extra, after}));
    std::vector<std::pair<std::string, Json>> list;
    for (const auto& [name, property] : properties.items()) list.emplace_back(name, property);
    for (auto it = list.rbegin(); it != list.rend(); ++it) {
      const auto& [name, property] = *it;
      NB_TRY(const ExprId body, value(property, path + ".properties." + name, depth + 1));
      const ExprId entry =
          r_.call_new(name, r_.sequence({r_.bytes(dump_json(Json(name))), json_.colon(), body}));
      const ExprId more_after = r_.call_new("after " + name, after);
      const ExprId written_first = r_.sequence({entry, more_after});
      const ExprId written_after = r_.sequence({json_.comma(), entry, more_after});
      if (is_required(name)) {
        first = written_first;
        after = written_after;
      } else {
        first = r_.choice({written_first, r_.call_new("before " + name, first)});
        after = r_.choice({written_after, more_after});
      }
    }
    return r_.call_new("object", r_.sequence({json_.open("{"), first, json_.close("}")}));
  }

  static bool extra_possible(const Json& additional, bool has_patterns) {
    return has_patterns || additional != false;
  }

  // A key that is none of `properties`.
  ExprId other_key(const Json& properties) {
    std::vector<std::string> names;
    for (const auto& [name, unused] : properties.items()) {
      const std::string text = dump_json(Json(name));
      // A name with escapes can be spelt in other ways; it is not excluded.
      if (text.size() == name.size() + 2) names.push_back(name);
    }
    std::ranges::sort(names);
    return json_.string_but(names);
  }
  // --- Qwen's tags

  // Text without closing tags, then the newline and the tag that end a value.
  ExprId raw_value() {
    return r_.until({"\n</parameter>"}, {r_.bytes("\n")},
                    {"</parameter>", "</function>", "</tool_call>"}, /*may_end=*/false);
  }
  ExprId closed(ExprId text) { return r_.sequence({text, r_.bytes("\n</parameter>\n")}); }

  // One parameter's value with its closing tag. Strings stand bare, all else is JSON.
  Result<ExprId> qwen_value(const Json& property, const std::string& path, int depth) {
    if (depth > kMaxDepth) return error(path, format("nested deeper than {}", kMaxDepth));
    Json schema = property;
    if (schema.is_object() && (schema.contains("$ref") || schema.contains("allOf"))) {
      NB_TRY(schema, merge_schemas(property, root_, path));
    }
    if (!schema.is_object()) return raw_value();
    std::vector<ExprId> parts;
    if (schema.contains("enum") || schema.contains("const")) {
      const Json values =
          schema.contains("const") ? Json::array({schema["const"]}) : schema["enum"];
      if (!values.is_array() || values.empty())
        return error(path + ".enum", "must be a list with at least one value");
      for (const Json& v : values) {
        const std::string text = v.is_string() ? v.get<std::string>() : dump_json_python(v);
        if (text.find("</") != std::string::npos)
          return error(path + ".enum", format("\"{}\" holds what looks like a closing tag", text));
        parts.push_back(r_.bytes(text));
      }
      return closed(r_.choice(std::move(parts)));
    }
    for (const char* word : {"anyOf", "oneOf"}) {
      if (!schema.contains(word) || !schema[word].is_array() || schema[word].empty()) continue;
      for (size_t i = 0; i < schema[word].size(); ++i) {
        NB_TRY(const ExprId part,
               qwen_value(schema[word][i], format("{}.{}[{}]", path, word, i), depth + 1));
        parts.push_back(part);
      }
      return r_.choice(std::move(parts));
    }
    NB_TRY(const std::vector<std::string> types, types_of(schema, path));
    const bool may_be_string = types.empty() || std::ranges::find(types, "string") != types.end();
    if (may_be_string && types.size() == 1 && schema.contains("pattern")) {
      if (!schema["pattern"].is_string()) return error(path + ".pattern", "must be a string");
      const Result<ExprId> text =
          parse_grammar_regex(schema["pattern"].get<std::string>(), {.search = true}, &r_);
      if (!text) return error(path + ".pattern", text.error().message);
      return closed(*text);
    }
    if (may_be_string) return raw_value();
    NB_TRY(const ExprId json, value(schema, path, depth + 1));
    return closed(json);
  }

  // For functions without described parameters.
  ExprId any_qwen_parameters() {
    const ExprId name = r_.repeat(r_.chars(CharSet::of(U"<> \n\r\t\"").complement()), 1, 64);
    return r_.repeat(r_.call_new("parameter", r_.sequence({r_.bytes("<parameter="), name,
                                                           r_.bytes(">\n"), raw_value()})),
                     0, -1);
  }

  const Json& root_;
  GrammarOptions options_;
  GrammarRules& r_;
  JsonGrammar json_;
  int num_schemas_ = 0;
  std::map<const Json*, RuleId> references_;
  ExprId number_ = -1;
  ExprId integer_ = -1;

  friend class SchemaGrammar;
};

SchemaGrammar::SchemaGrammar(const Json& schema, const GrammarOptions& options, GrammarRules* rules)
    : builder_(std::make_unique<Builder>(schema, options, rules)) {}
SchemaGrammar::~SchemaGrammar() = default;

Result<ExprId> SchemaGrammar::value(std::string_view path) {
  return builder_->value(builder_->root_, std::string(path), 0);
}
Result<ExprId> SchemaGrammar::qwen_parameters(std::string_view path) {
  return builder_->qwen_parameters(builder_->root_, std::string(path));
}

}  // namespace nibble
