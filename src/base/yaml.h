// YAML as JSON values: reads recipes and writes them. Doorkeeper of yaml-cpp.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "base/json.h"

namespace nibble {

struct YamlLimits {
  size_t max_bytes = size_t{1} << 20;
  int max_depth = 32;
  size_t max_values = 100'000;  // after aliases are expanded
};

// Parses one document. Plain scalars become null, booleans, integers or doubles as PyYAML reads
// them; quoted ones stay strings. Duplicate keys, non-scalar keys and custom tags are errors with
// line and column. Never throws.
Result<Json> parse_yaml(std::string_view text, std::string_view what, YamlLimits limits = {});

// PyYAML's layout: keys in order, blocks indented by two, innermost collections of scalars inline.
std::string dump_yaml(const Json& value);

}  // namespace nibble
