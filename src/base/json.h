// JSON with caps on size and depth, key order kept, duplicate keys refused. Doorkeeper of nlohmann.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/result.h"

namespace nibble {

using Json = nlohmann::ordered_json;

struct JsonLimits {
  size_t max_bytes = size_t{64} << 20;
  int max_depth = 64;  // of nested arrays and objects
  bool allow_duplicate_keys = false;
};

// Parses one JSON document. `what` names the source in errors ("config.json"). Never throws; a
// number that fits no 64-bit integer or finite double, bad UTF-8, or trailing bytes are errors.
Result<Json> parse_json(std::string_view text, std::string_view what, JsonLimits limits = {});

// Python's json.dumps(value, ensure_ascii=False): ", " and ": " between items, key order kept,
// shortest round-trip doubles in Python's notation (1e-07, 5.0). The format chat templates expect.
std::string dump_json_python(const Json& value);

// Compact one-line JSON; invalid UTF-8 is replaced by U+FFFD instead of failing.
std::string dump_json(const Json& value);

// `value.indent(2)` with a final newline, as Hugging Face writes config files.
std::string dump_json_pretty(const Json& value);

}  // namespace nibble
