// Keyword by keyword: bounds tighten, lists of names unite, subschemas that meet become an allOf.
#include "text/grammar_schema_merge.h"

#include <algorithm>
#include <array>

#include "base/format.h"

namespace nibble {
namespace {

constexpr int kMaxSteps = 2000;  // references and parts of allOf followed in one merge

Error error(const std::string& path, std::string_view what) {
  return make_error(ErrorCode::kInvalidArgument, "json schema {}: {}", path, what);
}

Json as_list(const Json& value) {
  return value.is_array() ? value : Json::array({value});
}

// The types both allow; an integer is a number.
Json common_types(const Json& a, const Json& b) {
  Json out = Json::array();
  for (const Json& x : as_list(a))
    for (const Json& y : as_list(b)) {
      Json both;
      if (x == y) both = x;
      if ((x == "integer" && y == "number") || (x == "number" && y == "integer")) both = "integer";
      if (!both.is_null() && std::ranges::find(out, both) == out.end()) out.push_back(both);
    }
  return out.size() == 1 ? out[0] : out;
}

Json both_of(const Json& a, const Json& b) {
  if (a == b || b == true || b.empty()) return a;
  if (a == true || a.empty()) return b;
  if (a == false || b == false) return false;
  Json out = Json::object();
  out["allOf"] = Json::array({a, b});
  return out;
}

class Merger {
 public:
  Merger(const Json& root, const std::string& path) : root_(root), path_(path) {}

  // Adds the keywords of `schema` to `out`.
  Status add(const Json& schema, Json* out, int depth) {
    if (++steps_ > kMaxSteps || depth > 64)
      return error(path_, "references that go round in a circle, or too many to follow");
    if (schema == true) return {};
    if (schema == false) {
      (*out)["enum"] = Json::array();
      return error(path_, "allOf with a schema that allows nothing");
    }
    if (!schema.is_object()) return error(path_, "a schema must be an object or a boolean");
    if (const auto ref = schema.find("$ref"); ref != schema.end()) {
      NB_TRY(const Json* target, find_reference(root_, *ref, path_));
      NB_TRY_STATUS(add(*target, out, depth + 1));
    }
    if (const auto all = schema.find("allOf"); all != schema.end()) {
      if (!all->is_array() || all->empty())
        return error(path_ + ".allOf", "must be a list with at least one schema");
      for (const Json& part : *all) NB_TRY_STATUS(add(part, out, depth + 1));
    }
    for (const auto& [key, value] : schema.items())
      if (key != "$ref" && key != "allOf" && !is_annotation(key))
        NB_TRY_STATUS(add_keyword(key, value, out));
    return {};
  }

  Json take_pending() { return std::move(pending_); }

 private:
  Status add_keyword(const std::string& key, const Json& value, Json* out) {
    const auto known = out->find(key);
    if (known == out->end()) {
      (*out)[key] = value;
      return {};
    }
    Json& old = *known;
    if (old == value) return {};
    const auto is = [&](std::initializer_list<const char*> words) {
      return std::ranges::any_of(words, [&](const char* word) { return key == word; });
    };
    if (key == "type") {
      old = common_types(old, value);
      if (old.is_array() && old.empty())
        return error(path_, "allOf of types that exclude each other");
    } else if (key == "properties" && old.is_object() && value.is_object()) {
      for (const auto& [name, property] : value.items())
        old[name] = old.contains(name) ? both_of(old[name], property) : property;
    } else if (key == "required" && old.is_array() && value.is_array()) {
      for (const Json& name : value)
        if (std::ranges::find(old, name) == old.end()) old.push_back(name);
    } else if (is({"additionalProperties", "items", "unevaluatedProperties"})) {
      old = both_of(old, value);
    } else if (is({"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"}) &&
               old.is_number() && value.is_number()) {
      if (value.get<double>() > old.get<double>()) old = value;
    } else if (is({"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"}) &&
               old.is_number() && value.is_number()) {
      if (value.get<double>() < old.get<double>()) old = value;
    } else if (key == "enum" && old.is_array() && value.is_array()) {
      Json common = Json::array();
      for (const Json& v : old)
        if (std::ranges::find(value, v) != value.end()) common.push_back(v);
      if (common.empty()) return error(path_, "allOf of enums that have no value in common");
      old = common;
    } else if (key == "anyOf" || key == "oneOf") {
      // Both must hold: the second waits as an allOf of its own.
      Json later = Json::object();
      later[key] = value;
      pending_.push_back(later);
    } else if (key == "nullable") {
      old = false;
    } else {
      return make_error(ErrorCode::kUnsupported,
                        "json schema {}: two different values of {} cannot be combined", path_,
                        key);
    }
    return {};
  }

  const Json& root_;
  const std::string& path_;
  int steps_ = 0;
  Json pending_ = Json::array();
};

}  // namespace

bool is_annotation(std::string_view keyword) {
  static constexpr std::array<std::string_view, 18> kWords = {
      "title",       "description",      "default",
      "examples",    "example",          "$schema",
      "$id",         "$comment",         "$defs",
      "definitions", "deprecated",       "readOnly",
      "writeOnly",   "contentMediaType", "contentEncoding",
      "$anchor",     "strict",           "discriminator"};
  return keyword.starts_with("x-") || std::ranges::find(kWords, keyword) != kWords.end();
}

Result<const Json*> find_reference(const Json& root, const Json& reference,
                                   const std::string& path) {
  const std::string place = path + ".$ref";
  if (!reference.is_string()) return error(place, "must be a string");
  const std::string text = reference.get<std::string>();
  if (text != "#" && !text.starts_with("#/"))
    return make_error(
        ErrorCode::kUnsupported,
        "json schema {}: \"{}\": only references into the same schema (\"#/...\") are "
        "supported",
        place, text);
  const Json* here = &root;
  for (size_t start = 2; start <= text.size() && text.size() > 1;) {
    const size_t end = std::min(text.find('/', start), text.size());
    std::string name;
    for (size_t i = start; i < end; ++i) {
      if (text[i] == '~' && i + 1 < end && (text[i + 1] == '0' || text[i + 1] == '1')) {
        name += text[++i] == '0' ? '~' : '/';
      } else if (text[i] == '%' && i + 2 < end) {
        name += static_cast<char>(std::strtol(text.substr(i + 1, 2).c_str(), nullptr, 16));
        i += 2;
      } else {
        name += text[i];
      }
    }
    start = end + 1;
    if (here->is_object() && here->contains(name)) {
      here = &(*here)[name];
    } else if (here->is_array() && !name.empty() && name.size() < 9 &&
               name.find_first_not_of("0123456789") == std::string::npos &&
               std::stoul(name) < here->size()) {
      here = &(*here)[std::stoul(name)];
    } else {
      return error(place, format("\"{}\" is not in the schema", text));
    }
  }
  return here;
}

Result<Json> merge_schemas(const Json& schema, const Json& root, const std::string& path) {
  Merger merger(root, path);
  Json out = Json::object();
  NB_TRY_STATUS(merger.add(schema, &out, 0));
  const Json pending = merger.take_pending();
  if (pending.empty()) return out;
  // What is left is spread over the branches of the first anyOf, each of which merges again.
  for (const char* word : {"anyOf", "oneOf"}) {
    const auto it = out.find(word);
    if (it == out.end() || !it->is_array()) continue;
    for (Json& branch : *it) {
      Json both = Json::object();
      both["allOf"] = Json::array({branch});
      for (const Json& later : pending) both["allOf"].push_back(later);
      branch = both;
    }
    break;
  }
  return out;
}

}  // namespace nibble
