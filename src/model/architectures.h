// config.json -> ModelSpec. One row per model family.
#pragma once

#include <span>
#include <string>

#include "base/json.h"
#include "base/result.h"
#include "model/config.h"

namespace nibble {

// `config` is the parsed config.json, nested (`text_config`) or flat. Errors name the field, the
// value found and what was expected; an unknown architecture lists the known ones, nearest first.
Result<ModelSpec> parse_model_config(const Json& config);

// Class names of `architectures[0]` that load.
std::span<const std::string_view> known_architectures();

}  // namespace nibble
