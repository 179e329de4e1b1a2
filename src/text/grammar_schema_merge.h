// Makes schemas plain: `$ref` and `allOf` become one object whose keywords all hold.
#pragma once

#include <string>
#include <string_view>

#include "base/json.h"
#include "base/result.h"

namespace nibble {

// Keywords that say nothing about values: title, description, $defs...
bool is_annotation(std::string_view keyword);

// "#", "#/$defs/Node": a place in `root`, which the result points into.
Result<const Json*> find_reference(const Json& root, const Json& reference,
                                   const std::string& path);

// `schema` without `$ref` and `allOf` on its top level. kUnsupported for keywords that cannot be
// combined (two patterns), kInvalidArgument for references that lead nowhere or round in a circle.
Result<Json> merge_schemas(const Json& schema, const Json& root, const std::string& path);

}  // namespace nibble
