// One checker per type; messages name the field as vLLM does: "... (parameter=NAME, value=VALUE)".
#include "server/fields.h"

#include <cmath>
#include <limits>

#include "base/format.h"

namespace nibble {
namespace {

// The value as an error message may show it; a long one is cut, and is never dumped whole.
std::string shown(const Json& value) {
  if (value.is_array() && value.size() > 16) return format("a list of {}", value.size());
  if (value.is_object() && value.size() > 16) return format("an object of {}", value.size());
  std::string text = dump_json(value);
  if (text.size() <= 80) return text;
  size_t end = 77;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end) + "...";
}

// Whole numbers, also as 3.0.
std::optional<int64_t> as_integer(const Json& value) {
  if (value.is_number_unsigned() &&
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
    return std::nullopt;
  if (value.is_number_integer()) return value.get<int64_t>();
  if (!value.is_number_float()) return std::nullopt;
  const auto number = value.get<double>();
  if (std::nearbyint(number) != number || std::fabs(number) > 9e15) return std::nullopt;
  return static_cast<int64_t>(number);
}

}  // namespace

Result<Json> parse_request_json(std::string_view text, std::string_view what) {
  Result<Json> parsed = parse_json(text, what, {.allow_duplicate_keys = true});
  if (parsed) return parsed;
  return Error{ErrorCode::kInvalidArgument, parsed.error().message};
}

const Json* Fields::find(const char* name) const {
  const auto it = body_.find(name);
  return it == body_.end() || it->is_null() ? nullptr : &*it;
}

void Fields::flag(const char* name, bool* out) {
  const Json* value = find(name);
  if (!value) return;
  if (!value->is_boolean()) return reject(name, "expected true or false", *value);
  *out = value->get<bool>();
}

void Fields::text(const char* name, std::string* out) {
  const Json* value = find(name);
  if (!value) return;
  if (!value->is_string()) return reject(name, "expected a string", *value);
  *out = value->get<std::string>();
}

void Fields::integer(const char* name, int64_t low, int64_t high, int64_t* out) {
  const Json* value = find(name);
  if (!value) return;
  const std::optional<int64_t> number = as_integer(*value);
  if (!number) return reject(name, "expected an integer of 64 bits", *value);
  if (*number < low || *number > high)
    return reject(name, format("expected a value from {} to {}", low, high), *value);
  *out = *number;
}

void Fields::integer(const char* name, int64_t low, int64_t high, int* out) {
  int64_t wide = *out;
  integer(name, low, high, &wide);
  *out = static_cast<int>(wide);
}

void Fields::number(const char* name, double low, double high, bool open_low, float* out) {
  const Json* value = find(name);
  if (!value) return;
  if (!value->is_number()) return reject(name, "expected a number", *value);
  const auto got = value->get<double>();
  if (!(got <= high) || !(open_low ? got > low : got >= low))
    return reject(name,
                  std::isinf(high)
                      ? format("expected a value {} {}", open_low ? ">" : ">=", low)
                      : format("expected a value in {}{}, {}]", open_low ? "(" : "[", low, high),
                  *value);
  *out = static_cast<float>(got);
}

void Fields::ids(const char* name, std::vector<int32_t>* out, size_t max_count) {
  const Json* value = find(name);
  if (!value) return;
  if (!value->is_array()) return reject(name, "expected a list of token ids", *value);
  if (value->size() > max_count)
    return reject(name, format("expected at most {} token ids", max_count), *value);
  out->reserve(value->size());
  for (const Json& id : *value) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX)
      return reject(name, "expected token ids", id);
    out->push_back(id.get<int32_t>());
  }
}

void Fields::texts(const char* name, std::vector<std::string>* out, size_t max_count) {
  const Json* value = find(name);
  if (!value) return;
  const auto take = [&](const Json& text) {
    if (!text.is_string() || text.get_ref<const std::string&>().empty())
      return reject(name, "expected a non-empty string or a list of them", text);
    out->push_back(text.get<std::string>());
  };
  if (!value->is_array()) return take(*value);
  if (value->size() > max_count)
    return reject(name, format("expected at most {} strings", max_count), *value);
  for (const Json& text : *value) take(text);
}

void Fields::reject(const char* name, std::string_view expected, const Json& found) {
  if (error_) return;
  fail(400, name, format("{}: {} (parameter={}, value={})", name, expected, name, shown(found)));
}

void Fields::fail(int status, const Json& param, std::string message) {
  if (error_) return;
  error_ = ApiError{status, status == 501 ? "NotImplementedError" : "BadRequestError",
                    std::move(message), param};
}

}  // namespace nibble
