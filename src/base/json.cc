// JSON behind base/json.h: a SAX handler that counts depth before a DOM grows, and adds keys to an
// object without searching it, so that a header or vocabulary of 10^5 keys takes linear time.
#include "base/json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <vector>

#include "base/format.h"

namespace nibble {
namespace {

// Builds the DOM and stops at the first broken rule; nlohmann's own DOM parser checks neither
// depth nor duplicate keys.
class DomBuilder {
 public:
  DomBuilder(Json* root, const JsonLimits& limits) : root_(root), limits_(limits) {}

  bool null() { return place(nullptr) != nullptr; }
  bool boolean(bool value) { return place(value) != nullptr; }
  bool number_integer(Json::number_integer_t value) { return place(value) != nullptr; }
  bool number_unsigned(Json::number_unsigned_t value) { return place(value) != nullptr; }
  bool number_float(Json::number_float_t value, const std::string& text) {
    if (!std::isfinite(value)) return fail(format("number {} is out of range", text));
    return place(value) != nullptr;
  }
  bool string(std::string& value) { return place(std::move(value)) != nullptr; }
  bool binary(Json::binary_t&) { return fail("binary value"); }  // not in JSON text
  bool start_object(size_t) { return open(Json::object()); }
  bool start_array(size_t) { return open(Json::array()); }
  bool end_object() {
    const bool unique = merge_duplicates(&members(*open_.back()));
    open_.pop_back();
    return unique;
  }
  bool end_array() {
    open_.pop_back();
    return true;
  }
  bool key(std::string& name) {
    next_ = &members(*open_.back()).emplace_back(std::move(name), nullptr).second;
    return true;
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) {
    if (error_.empty()) {
      // "[json.exception.parse_error.101] parse error at line 1, column 2: REASON; last read: ..."
      std::string_view reason = error.what();
      if (const size_t cut = reason.find("] "); cut != std::string_view::npos)
        reason.remove_prefix(cut + 2);
      if (const size_t cut = reason.find(": "); reason.starts_with("parse error") && cut < 48)
        reason.remove_prefix(cut + 2);
      error_ = format("not valid JSON at byte {}: {}", position, clipped(reason));
    }
    return false;
  }

  const std::string& error() const { return error_; }

 private:
  using Members = Json::object_t::Container;
  static Members& members(Json& object) { return object.get_ref<Json::object_t&>(); }

  // The input may hold a string of any length; the error stays one readable line.
  static std::string clipped(std::string_view text) {
    constexpr size_t kMaxShown = 160;
    std::string line;
    for (const char c : text.substr(0, kMaxShown))
      line += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    return text.size() > kMaxShown ? line + "..." : line;
  }

  bool fail(std::string message) {
    error_ = std::move(message);
    return false;
  }

  // Of equal keys the last value wins and the first position stays, as in Python.
  bool merge_duplicates(Members* members) {
    if (members->size() < 2) return true;
    std::vector<size_t> order(members->size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::ranges::stable_sort(order, {},
                             [&](size_t i) { return std::string_view((*members)[i].first); });
    std::vector<bool> dropped;
    for (size_t i = 1; i < order.size(); ++i) {
      if ((*members)[order[i - 1]].first != (*members)[order[i]].first) continue;
      if (!limits_.allow_duplicate_keys)
        return fail(
            format("key \"{}\" occurs twice in one object", clipped((*members)[order[i]].first)));
      dropped.resize(members->size());
      dropped[order[i]] = true;
      (*members)[order[i - 1]].second = std::move((*members)[order[i]].second);
      order[i] = order[i - 1];  // a third occurrence lands on the first as well
    }
    if (dropped.empty()) return true;
    Members kept;
    kept.reserve(members->size());
    for (size_t i = 0; i < members->size(); ++i)
      if (!dropped[i]) kept.emplace_back((*members)[i].first, std::move((*members)[i].second));
    *members = std::move(kept);
    return true;
  }

  Json* place(Json value) {
    if (open_.empty()) {
      *root_ = std::move(value);
      return root_;
    }
    if (open_.back()->is_array()) {
      open_.back()->push_back(std::move(value));
      return &open_.back()->back();
    }
    *next_ = std::move(value);
    return next_;
  }

  bool open(Json container) {
    if (static_cast<int>(open_.size()) >= limits_.max_depth)
      return fail(format("nested deeper than {} levels", limits_.max_depth));
    open_.push_back(place(std::move(container)));
    return true;
  }

  Json* root_;
  const JsonLimits& limits_;
  std::vector<Json*> open_;  // a parent does not grow while its child is open
  Json* next_ = nullptr;     // where the value of the last key goes
  std::string error_;
};

void append_python_double(double value, std::string* out) {
  if (std::isnan(value)) {
    *out += "NaN";
    return;
  }
  if (std::isinf(value)) {
    *out += value < 0 ? "-Infinity" : "Infinity";
    return;
  }
  // Python's repr: the shortest digits that read back; scientific below 1e-4 and from 1e16.
  char buffer[64];
  const double magnitude = std::fabs(value);
  const bool scientific = magnitude != 0 && (magnitude < 1e-4 || magnitude >= 1e16);
  const auto end =
      std::to_chars(buffer, buffer + sizeof buffer, value,
                    scientific ? std::chars_format::scientific : std::chars_format::fixed)
          .ptr;
  const std::string_view digits(buffer, static_cast<size_t>(end - buffer));
  *out += digits;
  if (!scientific && digits.find('.') == std::string_view::npos) *out += ".0";
}

void append_python_string(std::string_view text, std::string* out) {
  // Python escapes ", \, and C0 controls only; DEL and non-ASCII stay raw.
  static constexpr char kHex[] = "0123456789abcdef";
  *out += '"';
  for (const char c : text) {
    switch (c) {
      case '"': *out += "\\\""; break;
      case '\\': *out += "\\\\"; break;
      case '\n': *out += "\\n"; break;
      case '\r': *out += "\\r"; break;
      case '\t': *out += "\\t"; break;
      case '\b': *out += "\\b"; break;
      case '\f': *out += "\\f"; break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          *out += "\\u00";
          *out += kHex[(c >> 4) & 0xf];
          *out += kHex[c & 0xf];
        } else {
          *out += c;
        }
    }
  }
  *out += '"';
}

void append_python(const Json& value, std::string* out) {
  switch (value.type()) {
    case Json::value_t::object: {
      *out += '{';
      bool first = true;
      for (const auto& [key, item] : value.items()) {
        if (!first) *out += ", ";
        first = false;
        append_python_string(key, out);
        *out += ": ";
        append_python(item, out);
      }
      *out += '}';
      return;
    }
    case Json::value_t::array: {
      *out += '[';
      bool first = true;
      for (const Json& item : value) {
        if (!first) *out += ", ";
        first = false;
        append_python(item, out);
      }
      *out += ']';
      return;
    }
    case Json::value_t::number_float: append_python_double(value.get<double>(), out); return;
    case Json::value_t::string:
      append_python_string(value.get_ref<const std::string&>(), out);
      return;
    default: *out += value.dump(); return;
  }
}

}  // namespace

Result<Json> parse_json(std::string_view text, std::string_view what, JsonLimits limits) {
  if (text.size() > limits.max_bytes)
    return make_error(ErrorCode::kInvalidArgument, "{}: {} bytes of JSON, the limit is {}", what,
                      text.size(), limits.max_bytes);
  Json root;
  DomBuilder builder(&root, limits);
  // The lexer itself never throws through sax_parse; the handler turns its errors into text.
  if (!Json::sax_parse(text.begin(), text.end(), &builder))
    return make_error(ErrorCode::kCorrupt, "{}: {}", what,
                      builder.error().empty() ? "not valid JSON" : builder.error());
  return root;
}

std::string dump_json_python(const Json& value) {
  std::string out;
  append_python(value, &out);
  return out;
}

std::string dump_json(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string dump_json_pretty(const Json& value) {
  return value.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace nibble
