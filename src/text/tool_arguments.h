// From the raw text of a tool-call parameter to a JSON value of the type its schema asks for.
#pragma once

#include <string>
#include <string_view>

#include "base/json.h"

namespace nibble {

// `tools` is the request's list of OpenAI tool objects. Null when there is no schema.
const Json& parameter_schema(const Json& tools, std::string_view function,
                             std::string_view parameter);

// Tries null, integer, number, boolean, object/array, string in this order, as far as `schema`
// allows them; a schema that says nothing means string. What no type accepts is parsed as JSON,
// else kept as the raw string. Rules: docs/reference/tool-calls.md.
Json convert_argument(std::string_view text, const Json& schema);

// The same as JSON text in Python's spacing. Integers beyond 64 bits keep every digit.
std::string convert_argument_text(std::string_view text, const Json& schema);

}  // namespace nibble
