// YAML documents as JSON values. Doorkeeper of yaml-cpp.
#pragma once

#include <string_view>

#include "base/json.h"

namespace nibble {

// Scalars become null, booleans, integers, doubles or strings as YAML 1.2's core schema says;
// quoted scalars stay strings. Anchors that would expand without bound, documents over 1 MiB and
// nesting over 32 levels are errors. `what` names the source.
Result<Json> parse_yaml(std::string_view text, std::string_view what);

}  // namespace nibble
