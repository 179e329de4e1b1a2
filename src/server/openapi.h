// The OpenAPI 3.1 document of the API, made from the route table and the field tables beside it.
#pragma once

#include "base/json.h"

namespace nibble {

// `with_keys`: the server asks for a bearer token.
Json openapi_document(bool with_keys);

}  // namespace nibble
